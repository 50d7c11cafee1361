"""What every ranking network is: one class for the trainer and the Triton backend. Rows come in as inputs; a network owns the dense part.

A network's own part is `build` and `deep`. The base class adds, per task, the dot product of user and item and the biases that rows carry,
so that nearest-neighbour recall (services/recommender/nearest.py) repeats the same product without torch, whichever network ranks.
Knows no ids, tables, labels or optimizers.

Shapes: G users, B samples (each belongs to one user), L history length, D row dimension, T tasks, U user features, F item features,
C = D - T content dimensions (the first T of every row are that task's bias).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.declared.sequences import SequenceInputs
from services.common.ranker.feature_spec import FeatureSpec
from services.common.ranker.inputs import RankerInputs
from services.common.ranker.network_spec import Spec
from services.common.ranker.networks.groups import of_samples
from services.common.ranker.networks.names import SEQUENCE_PREFIX, Axes, nothing
from services.common.ranker.networks.sequences import Events, Mean, SequencePool
from services.common.ranker.pooling import Pooled

Float32Array = npt.NDArray[np.float32]


class Rows(NamedTuple):
    """Embedding rows that belong to a RankerInputs.

    Attributes:
        user_GD, item_BD, history_GLD: one row each.
        user_pooled_GV, item_pooled_BV: of the declared features that make rows of tables, pooled; None when the spec has none.
        sequences: by sequence the events, float32 [P, W], and what the samples have to compare with them, float32 [B, Q].
    """

    user_GD: Tensor
    item_BD: Tensor
    history_GLD: Tensor
    user_pooled_GV: Tensor | None = None
    item_pooled_BV: Tensor | None = None
    sequences: tuple[tuple[Tensor, Tensor], ...] = ()

    def with_pooled(self, pooled: Pooled | None) -> Rows:
        """Return the rows with pooled ones beside them."""
        if pooled is None:
            return self
        return self.with_sides(list(map(torch.from_numpy, pooled.sides)))

    def with_sides(self, sides: Sequence[Tensor]) -> Rows:
        """Return the rows with those beside them that stand in `Pooled.sides`."""
        user_GV, items_BV, *of_sequences = sides
        sequences = tuple(zip(of_sequences[::2], of_sequences[1::2], strict=True))
        return self._replace(user_pooled_GV=user_GV, item_pooled_BV=items_BV, sequences=sequences)


@dataclass(frozen=True, slots=True)
class Samples:
    """What a network's own part sees: the contents of rows, the history and the features, of every sample or of its group.

    Attributes:
        user_BC, item_BC: the contents of the sample's rows.
        mean_BC: mean of the history's contents; zeros for an empty history.
        liked_BC: the same, each item weighted by its value less 0.5: what was liked counts for, what was not counts against.
        user_BU, items_BF: the features: FeatureSpec.user_inputs and item_inputs.
        history_GLC, centred_GL, mask_GL: of every group the history's contents, values less 0.5, and 1 where there is an item.
        group_B: the group of every sample, int64.
    """

    user_BC: Tensor
    item_BC: Tensor
    mean_BC: Tensor
    liked_BC: Tensor
    user_BU: Tensor
    items_BF: Tensor
    history_GLC: Tensor
    centred_GL: Tensor
    mask_GL: Tensor
    group_B: Tensor


class RankerNetwork(nn.Module):
    """The dense part. Two networks of the same class, spec and seed are equal.

    Attributes:
        num_tasks: heads; so many leading dimensions of a row are biases.
        num_content: the other dimensions of a row.
        dot_scale: float32 [T], the weight of the dot product in every task's logit.
        has_sequences: whether the feature spec declares any; `sequence_pools` are there then.
    """

    def __init__(self, spec: FeatureSpec, seed: int = 0) -> None:
        super().__init__()
        self.num_tasks, self.num_content = len(spec.tasks), spec.num_content_dims
        self.build(spec)
        self.dot_scale = nn.Parameter(torch.ones(self.num_tasks))
        self.has_sequences = bool(spec.plan.sequences)
        if self.has_sequences:
            # Behind all other weights, and by name: migration counts on both.
            self.sequence_pools = nn.ModuleDict({f"{SEQUENCE_PREFIX}{one.name}": self.pool_of(spec, one) for one in spec.plan.sequences})
        initialise(self, seed)

    def build(self, spec: FeatureSpec) -> None:
        """Make the layers; their weights are set afterwards, by `initialise`."""
        raise NotImplementedError

    def pool_of(self, spec: FeatureSpec, sequence: SequenceInputs) -> SequencePool:  # noqa: ARG002 - for those that override it
        """Return what pools a declared sequence before a candidate; here the mean of its events. Networks with attention override it."""
        return Mean(sequence)

    def deep(self, samples: Samples) -> Tensor:
        """Return the network's own part of the logits, float32 [B, T]."""
        raise NotImplementedError

    def forward(self, inputs: RankerInputs, rows: Rows) -> Tensor:
        """Return logits [B, T]; their sigmoid is the calibrated probability of each task."""
        samples, bias = self.samples(inputs, rows), self.num_tasks
        deep_BT = self.deep(samples)
        dot_B1 = ((samples.user_BC + samples.mean_BC) * samples.item_BC).sum(dim=1, keepdim=True)
        return deep_BT + self.dot_scale * dot_B1 + of_samples(rows.user_GD[:, :bias], samples.group_B) + rows.item_BD[:, :bias]

    def samples(self, inputs: RankerInputs, rows: Rows) -> Samples:
        """Return what `deep` sees."""
        group_B = torch.from_numpy(inputs.group_B)
        mask_GL = torch.from_numpy(inputs.history_mask_GL)
        centred_GL = (torch.from_numpy(inputs.history_values_GL) - 0.5) * mask_GL
        bias = self.num_tasks
        user_GC, item_BC, history_GLC = rows.user_GD[:, bias:], rows.item_BD[:, bias:], rows.history_GLD[..., bias:]
        num_G1 = mask_GL.sum(dim=1, keepdim=True).clamp(min=1.0)
        history_mean_GC = (history_GLC * mask_GL.unsqueeze(2)).sum(dim=1) / num_G1
        liked_mean_GC = (history_GLC * centred_GL.unsqueeze(2)).sum(dim=1) / num_G1
        user_BC, mean_BC, liked_BC = (of_samples(part_GC, group_B) for part_GC in (user_GC, history_mean_GC, liked_mean_GC))
        return Samples(
            user_BC=user_BC,
            item_BC=item_BC,
            mean_BC=mean_BC,
            liked_BC=liked_BC,
            user_BU=of_samples(_beside(inputs.user_GU, rows.user_pooled_GV), group_B),
            items_BF=torch.cat([_beside(inputs.items_BF, rows.item_pooled_BV), *self._of_sequences(inputs, rows, group_B)], dim=1),
            history_GLC=history_GLC,
            centred_GL=centred_GL,
            mask_GL=mask_GL,
            group_B=group_B,
        )

    def _of_sequences(self, inputs: RankerInputs, rows: Rows, group_B: Tensor) -> list[Tensor]:
        """Return by sequence float32 [B, W + Q]."""
        if not rows.sequences:
            return []
        seen = zip(self.sequence_pools.values(), rows.sequences, inputs.sequence_lengths, strict=True)
        return [pool(Events.of(events, torch.from_numpy(lengths_G), samples, group_B)) for pool, (events, samples), lengths_G in seen]

    def input_axes(self) -> dict[str, Axes | None]:
        """Return by weight, in the order of `state`, which inputs lie along its axes; None where the network does not say.

        When columns are added or dropped, what was learned of the others stays by these. Layers say it by a method `own_axes`, as `Dense`
        does; weights of other layers cannot be kept then.
        """
        axes: dict[str, Axes | None] = dict.fromkeys(self.state_dict())
        for path, module in self.named_modules():
            if hasattr(module, "own_axes"):
                axes |= {f"{path}.{name}".lstrip("."): own for name, own in module.own_axes().items()}
        return axes

    def own_axes(self) -> dict[str, Axes]:
        """Return the axes of those weights that are the network's own and no layer's."""
        return {"dot_scale": (nothing,)}

    def state(self) -> dict[str, Float32Array]:
        """Return copies of the weights by name."""
        return {name: value.detach().float().numpy().copy() for name, value in self.state_dict().items()}

    def load(self, tensors: Mapping[str, Float32Array]) -> None:
        """Replace the weights by what `state` returned.

        Raises:
            CorruptArtifact: a name or shape is not this network's.
        """
        own = self.state_dict()
        if own.keys() != tensors.keys():
            raise CorruptArtifact(f"dense weights: names differ from this network's: {sorted(own.keys() ^ tensors.keys())}")
        for name, value in tensors.items():
            if own[name].shape != value.shape:
                raise CorruptArtifact(f"dense weights: {name} has shape {value.shape}, want {tuple(own[name].shape)}")
        with torch.no_grad():
            for name, value in tensors.items():
                own[name].copy_(torch.tensor(value))


def sizes_of(spec: FeatureSpec, kind: type[Spec]) -> Spec:
    """Return the network's sizes in the feature spec.

    Raises:
        TypeError: the spec names another network; `make_network` makes that one.
    """
    if not isinstance(spec.network, kind):
        raise TypeError(f"the feature spec has sizes of {type(spec.network).__name__}, wanted are those of {kind.__name__}")
    return spec.network


def _beside(columns: Float32Array, pooled: Tensor | None) -> Tensor:
    numbers = torch.from_numpy(columns)
    return numbers if pooled is None else torch.cat([numbers, pooled], dim=1)


def initialise(network: nn.Module, seed: int) -> None:
    """Set all weights of linear layers from a generator of their own, whatever torch's global one did before."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
