"""Logits of a micro-batch and the gradients of its loss: by torch's autograd for any network, written out for the network that ships.

Both ways read the rows of a step as one array per table with the places where each input stands, and leave the dense part's gradient in one
vector. Written out, a step takes a third of the time: the towers of all tasks go through one product a layer, nothing is copied to each
sample, and what is neither a product nor a row is one pass of compiled code. tests/unit/services/trainer/test_gradients.py holds the two
equal over random specs and batches.

Shapes: G groups, B samples, L history length, U unique rows of a table, D row dimension, T tasks, P floats of the dense part, X inputs of
the towers, H and K units of their hidden layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.common.ranker.inputs import Float32Array, Int64Array, RankerInputs
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.interface import RankerNetwork, Rows
from services.common.ranker.pooling import Pooled
from services.trainer.interaction_kernels import Heads, Places, Seen, interact, interact_back
from services.trainer.tower_kernels import first_layers, first_layers_back, last_layers_back, logits


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A micro-batch whose ids have become places in the unique rows of this step.

    Attributes:
        inputs: of the network; the filled places of a history come first, and the samples of a group lie side by side.
        users_UD, items_UD: unique rows.
        user_at_G, item_at_B, history_at_GL: which row each input has; anything where the history is empty.
        shown_G: 0 for a group that learns without its user's row, else 1.
        pooled: the rows of keyed features; None when the spec has none.
    """

    inputs: RankerInputs
    users_UD: Float32Array
    items_UD: Float32Array
    user_at_G: Int64Array
    item_at_B: Int64Array
    history_at_GL: Int64Array
    shown_G: Float32Array
    pooled: Pooled | None = None


class RowGradients(NamedTuple):
    """Gradients with respect to the rows of a `StepInputs`."""

    users_UD: Float32Array
    items_UD: Float32Array
    pooled: Pooled | None = None


class Gradients(Protocol):
    """The dense part of a learner, in one vector.

    Attributes:
        flat_P: the weights; the network's parameters are views of it.
        gradient_P: what `backward` left.
    """

    flat_P: Float32Array
    gradient_P: Float32Array

    def forward(self, step: StepInputs) -> Float32Array:
        """Return the logits [B, T]; they hold until the next call."""

    def backward(self, of_logits_BT: Float32Array) -> RowGradients:
        """Return the gradients of the rows, and leave the dense part's, for the last `forward`."""

    def named(self, vector_P: Float32Array) -> Float32Array:
        """Return a copy of a vector like `flat_P` in the order of the network's parameters, as states are saved."""

    def unnamed(self, vector_P: Float32Array) -> Float32Array:
        """Invert `named`."""


def gradients_of(network: RankerNetwork) -> Gradients:
    """Return the fastest way there is for this network."""
    is_written = type(network) is DcnDin and _has_written_layers(network) and not network.has_sequences
    return WrittenOut(network) if isinstance(network, DcnDin) and is_written else Autograd(network)


def _has_written_layers(network: DcnDin) -> bool:
    """Say whether the feature spec left the towers their two cross and two hidden layers, of whatever width."""
    return all((len(tower.cross), len(tower.hidden)) == (2, 2) for tower in network.towers)


class _Flat:
    """The parameters of a network in one vector, in an order of one's own."""

    def __init__(self, network: RankerNetwork, order: Sequence[str] = ()) -> None:
        """Move the parameters into the vector and make them views of it; those named in `order` come first."""
        parameters = dict(network.named_parameters())
        names = [*order, *(name for name in parameters if name not in set(order))]
        self.flat_P: Float32Array = np.concatenate([parameters[name].detach().numpy().reshape(-1) for name in names])
        self.gradient_P: Float32Array = np.zeros_like(self.flat_P)
        self._spans: dict[str, tuple[int, int]] = {}
        at, flat_P = 0, torch.from_numpy(self.flat_P)
        for name in names:
            parameter = parameters[name]
            self._spans[name] = (at, at + parameter.numel())
            parameter.data = flat_P[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        self._parameter_order = list(parameters)

    def named(self, vector_P: Float32Array) -> Float32Array:
        """Return a copy in the order of the network's parameters."""
        return np.concatenate([vector_P[slice(*self._spans[name])] for name in self._parameter_order])

    def unnamed(self, vector_P: Float32Array) -> Float32Array:
        """Return a copy in the order of `flat_P`."""
        result, at = np.empty_like(vector_P), 0
        for name in self._parameter_order:
            start, end = self._spans[name]
            result[start:end] = vector_P[at : at + end - start]
            at += end - start
        return result

    def _part(self, vector_P: Float32Array, first: str, last: str, *shape: int) -> Float32Array:
        """Return the parameters from `first` to `last`, which stand side by side, as one array: a view."""
        return vector_P[self._spans[first][0] : self._spans[last][1]].reshape(shape)


class Autograd(_Flat):
    """Any network, by torch's autograd."""

    def __init__(self, network: RankerNetwork) -> None:
        """Take the network's parameters over."""
        super().__init__(network)
        self._network = network
        self._logits_BT = torch.empty(0)
        self._leaves: list[Tensor] = []

    def forward(self, step: StepInputs) -> Float32Array:
        """Run the network on rows gathered from the unique ones."""
        wanted = (step.users_UD, step.items_UD, *(() if step.pooled is None else step.pooled.sides))
        self._leaves = [torch.from_numpy(rows).requires_grad_(True) for rows in wanted]
        users_UD, items_UD, *pooled = self._leaves
        mask_GL1 = torch.from_numpy(step.inputs.history_mask_GL).unsqueeze(2)
        rows = Rows(
            users_UD[torch.from_numpy(step.user_at_G)] * torch.from_numpy(step.shown_G).unsqueeze(1),
            items_UD[torch.from_numpy(step.item_at_B)],
            items_UD[torch.from_numpy(step.history_at_GL)] * mask_GL1,
        )
        if pooled:
            rows = rows.with_sides(pooled)
        self._logits_BT = self._network(step.inputs, rows)
        result: Float32Array = self._logits_BT.detach().numpy()
        return result

    def backward(self, of_logits_BT: Float32Array) -> RowGradients:
        """Go back through the graph of the last `forward`."""
        parameters = list(self._network.parameters())
        # A network of one's own need not look at everything that the spec declares.
        found = torch.autograd.grad(
            self._logits_BT, [*parameters, *self._leaves], torch.from_numpy(of_logits_BT), allow_unused=True, materialize_grads=True
        )
        self.gradient_P[:] = torch.cat([gradient.reshape(-1) for gradient in found[: len(parameters)]]).numpy()
        users_UD, items_UD, *pooled = (gradient.numpy() for gradient in found[len(parameters) :])
        return RowGradients(users_UD, items_UD, Pooled.of_sides(pooled) if pooled else None)


class _Space:
    """Memory for the arrays of a step, kept from step to step: the system's memory is dear by the page."""

    def __init__(self) -> None:
        self._buffers: dict[str, Float32Array] = {}

    def array(self, name: str, *shape: int) -> Float32Array:
        """Return an array of this shape, whatever is in it."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size + size // 4, np.float32)
        return buffer[:size].reshape(shape)


class WrittenOut(_Flat):
    """`DcnDin`, written out: forward as its `deep` has it, and the derivative of that by hand."""

    def __init__(self, network: DcnDin) -> None:
        """Take the network's parameters over."""
        num_tasks = network.num_tasks
        layers = ("cross.0", "hidden.0", "cross.1", "hidden.1", "out")
        kinds = [f"{layer}.{what}" for what in ("weight", "bias") for layer in layers]
        super().__init__(network, [f"towers.{task}.{kind}" for kind in kinds for task in range(num_tasks)])
        tower = network.towers[0]
        self._num_tasks, self._width = num_tasks, int(tower.cross[0].in_features)
        self._num_first, self._num_second = (int(layer.out_features) for layer in tower.hidden)
        self._weights, self._of_weights = self._views(network, self.flat_P), self._views(network, self.gradient_P)
        names = ("query.weight", "key.weight", "null_score", "dot_scale")
        self._heads, self._of_heads = (Heads(*(of[name] for name in names)) for of in (self._weights, self._of_weights))
        # The inputs of the towers that come from rows of user, item and history. Columns need no gradient; pooled rows, which stand among
        # them, do.
        self._num_from_rows = 7 * int(network.query.in_features) + 2
        self._space = _Space()
        self._last: dict[str, Any] = {}

    def _views(self, network: DcnDin, vector_P: Float32Array) -> Mapping[str, Float32Array]:
        tasks, width, first, second = self._num_tasks, self._width, self._num_first, self._num_second
        shapes = {
            "cross.1.weight": (tasks, width, width),
            "hidden.1.weight": (tasks, second, first),
            "out.weight": (tasks, 1, width + second),
            "cross.0.bias": (tasks, width),
            "hidden.0.bias": (tasks, first),
            "cross.1.bias": (tasks, width),
            "hidden.1.bias": (tasks, second),
            "out.bias": (tasks, 1),
        }
        views = {kind: self._part(vector_P, f"towers.0.{kind}", f"towers.{tasks - 1}.{kind}", *shape) for kind, shape in shapes.items()}
        # The first layers of all towers take the same inputs: one matrix.
        views["first.weight"] = self._part(
            vector_P, "towers.0.cross.0.weight", f"towers.{tasks - 1}.hidden.0.weight", tasks * (width + first), width
        )
        for name, value in network.named_parameters():
            if not name.startswith("towers."):
                views[name] = self._part(vector_P, name, name, *value.shape)
        return views

    def forward(self, step: StepInputs) -> Float32Array:
        """Interact, then one product a layer for the towers of all tasks."""
        inputs, weights, space = step.inputs, self._weights, self._space
        batch, tasks, width = len(inputs.item_keys_B), self._num_tasks, self._width
        num_groups, length = inputs.history_keys_GL.shape
        num_attention, content = weights["query.weight"].shape
        x0_BX = space.array("x0", batch, width)
        user, user_pooled, items, items_pooled = self._places_of_features(step)
        x0_BX[:, user:user_pooled] = inputs.user_GU[inputs.group_B]
        x0_BX[:, items:items_pooled] = inputs.items_BF
        if step.pooled is not None:
            x0_BX[:, user_pooled:items] = step.pooled.user_GV[inputs.group_B]
            x0_BX[:, items_pooled:] = step.pooled.items_BV
        logits_BT = space.array("logits", batch, tasks)
        places = Places(
            user_at_G=step.user_at_G,
            item_at_B=step.item_at_B,
            history_at_GL=step.history_at_GL,
            shown_G=step.shown_G,
            values_GL=inputs.history_values_GL,
            lengths_G=inputs.history_mask_GL.sum(axis=1).astype(np.int64),
            starts_G=np.searchsorted(inputs.group_B, np.arange(num_groups + 1)),
        )
        seen = Seen(
            x0_BX=x0_BX,
            weights_BL=space.array("weights", batch, length),
            null_B=space.array("null", batch),
            keys_GLA=space.array("keys", num_groups, length, num_attention),
            means_G2C=space.array("means", num_groups, 2, content),
        )
        interact(step.users_UD, step.items_UD, places, self._heads, seen, logits_BT)
        first_BN = space.array("first", batch, tasks * (width + self._num_first))
        _product(x0_BX, weights["first.weight"].T, first_BN)
        x1_TBX, h0_TBH = space.array("x1", tasks, batch, width), space.array("h0", tasks, batch, self._num_first)
        first_layers(x0_BX, first_BN, weights["cross.0.bias"], weights["hidden.0.bias"], x1_TBX, h0_TBH)
        second_TBX, h1_TBK = space.array("second", tasks, batch, width), space.array("h1", tasks, batch, self._num_second)
        _products(x1_TBX, weights["cross.1.weight"].transpose(0, 2, 1), second_TBX)
        _products(h0_TBH, weights["hidden.1.weight"].transpose(0, 2, 1), h1_TBK)
        towers = (x0_BX, x1_TBX, second_TBX, weights["cross.1.bias"], h1_TBK)
        logits(*towers, weights["hidden.1.bias"], weights["out.weight"], weights["out.bias"], logits_BT)
        self._last = {"step": step, "places": places, "seen": seen, "towers": towers, "first": first_BN, "h0": h0_TBH}
        return logits_BT

    def _places_of_features(self, step: StepInputs) -> tuple[int, int, int, int]:
        """Return where among the inputs the user's columns begin, the user's pooled rows, the items' columns, the items' pooled rows."""
        user_pooled = self._num_from_rows + step.inputs.user_GU.shape[1]
        items = user_pooled + (0 if step.pooled is None else step.pooled.user_GV.shape[1])
        return self._num_from_rows, user_pooled, items, items + step.inputs.items_BF.shape[1]

    def _of_pooled(self, step: StepInputs, of_x0_BX: Float32Array) -> Pooled | None:
        """Return the gradient of pooled rows: of a group's, the sum over its samples."""
        if step.pooled is None:
            return None
        _, user_pooled, items, items_pooled = self._places_of_features(step)
        starts_G = self._last["places"].starts_G[:-1]
        of_user_GV = np.add.reduceat(of_x0_BX[:, user_pooled:items], starts_G, axis=0)
        return Pooled(of_user_GV, of_x0_BX[:, items_pooled:].copy())

    def backward(self, of_logits_BT: Float32Array) -> RowGradients:
        """Go back the same way; a product's weight and its input each take one product more."""
        weights, out, space, last = self._weights, self._of_weights, self._space, self._last
        x0_BX, x1_TBX, second_TBX, cross_bias_TX, h1_TBK = last["towers"]
        first_BN, h0_TBH = last["first"], last["h0"]
        of_second_TBX, of_x1_TBX = space.array("of_second", *x1_TBX.shape), space.array("of_x1", *x1_TBX.shape)
        of_h1_TBK, of_h0_TBH = space.array("of_h1", *h1_TBK.shape), space.array("of_h0", *h0_TBH.shape)
        step: StepInputs = last["step"]
        num_wanted = self._num_from_rows if step.pooled is None else self._width
        of_first_BN, of_x0_BR = space.array("of_first", *first_BN.shape), space.array("of_x0", len(x0_BX), num_wanted)
        last_layers_back(
            x0_BX,
            x1_TBX,
            second_TBX,
            cross_bias_TX,
            h1_TBK,
            weights["out.weight"],
            of_logits_BT,
            of_second_TBX,
            of_x1_TBX,
            of_h1_TBK,
            of_x0_BR,
            out["cross.1.bias"],
            out["hidden.1.bias"],
            out["out.weight"],
            out["out.bias"],
        )
        _products(of_second_TBX.transpose(0, 2, 1), x1_TBX, out["cross.1.weight"])
        _products(of_h1_TBK.transpose(0, 2, 1), h0_TBH, out["hidden.1.weight"])
        _products(of_h1_TBK, weights["hidden.1.weight"], of_h0_TBH)
        of_x1 = torch.from_numpy(of_x1_TBX)
        torch.baddbmm(of_x1, torch.from_numpy(of_second_TBX), torch.from_numpy(weights["cross.1.weight"]), out=of_x1)
        biases = weights["cross.0.bias"], out["cross.0.bias"], out["hidden.0.bias"]
        first_layers_back(x0_BX, first_BN, biases[0], h0_TBH, of_x1_TBX, of_h0_TBH, of_first_BN, of_x0_BR, *biases[1:])
        _product(of_first_BN.T, x0_BX, out["first.weight"])
        of_x0 = torch.from_numpy(of_x0_BR)
        torch.addmm(of_x0, torch.from_numpy(of_first_BN), torch.from_numpy(weights["first.weight"][:, :num_wanted]), out=of_x0)
        of_users_UD, of_items_UD = np.zeros_like(step.users_UD), np.zeros_like(step.items_UD)
        rows = of_users_UD, of_items_UD
        interact_back(step.items_UD, last["places"], self._heads, last["seen"], of_x0_BR, of_logits_BT, self._of_heads, *rows)
        return RowGradients(of_users_UD, of_items_UD, self._of_pooled(step, of_x0_BR))


def _product(left: Float32Array, right: Float32Array, out: Float32Array) -> None:
    """Fill `out` with left @ right. torch's product: its threads are those that the process allowed torch."""
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))


def _products(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32], out: Float32Array) -> None:
    """Fill `out` with left[t] @ right[t]."""
    torch.bmm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))
