"""Scoring by the network that ships, written out: the probabilities of `DcnDin` without torch's modules, for the items of one user.

All items of a request have the same user and history. So whatever of a layer depends on these alone is multiplied into its weights, once a
request: the products of the item with the user, with the mean and with the liked mean are linear in the item, and the user's own columns
are constants. Of the inputs that the towers have, half are left for the matrix products (62 of 125 for the spec that ships). The rest is
three compiled passes (written_kernels.py) over memory that stays from request to request. Nothing is approximated:
tests/unit/services/common/ranker/networks/test_written_out.py holds the probabilities within 1e-5 of torch's over random specs and weights.

Shapes: as in written_kernels.py; H and K are the units of the towers' two hidden layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.common.platform.errors import CorruptArtifact
from services.common.ranker.features import Features
from services.common.ranker.networks.dcn_din import DcnDin
from services.common.ranker.networks.written_kernels import Scratch, User, Weights, cross, finish, prepare
from services.common.ranker.pooling import Pooled

Float32Array = npt.NDArray[np.float32]

_WRITTEN_CROSS_LAYERS, _WRITTEN_HIDDEN_LAYERS = 2, 2
# Memory is made for so many items at least: requests of other sizes are rare and need not make it anew.
_LEAST_ITEMS = 128


def is_written_out(network: object) -> bool:
    """Say whether this network can be scored here: `DcnDin` itself with the layers that it has by default, and without sequences."""
    if type(network) is not DcnDin or network.has_sequences:
        return False
    wanted = (_WRITTEN_CROSS_LAYERS, _WRITTEN_HIDDEN_LAYERS)
    return all((len(tower.cross), len(tower.hidden)) == wanted for tower in network.towers)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of the network, as in the module's shapes; `num_inputs` are the towers' (X without the one)."""

    num_tasks: int
    content: int
    num_user: int
    num_item: int
    hidden: int
    second: int

    @classmethod
    def of(cls, network: DcnDin, num_user: int) -> _Sizes:
        tower, content = network.towers[0], network.num_content
        num_item = int(tower.cross[0].in_features) - 7 * content - 2 - num_user
        hidden, second = (int(layer.out_features) for layer in tower.hidden)
        return cls(network.num_tasks, content, num_user, num_item, hidden, second)

    @property
    def num_rows(self) -> int:
        """R: rows of the effective weights, the one's included."""
        return 3 * self.content + 2 + self.num_item + 1

    @property
    def width(self) -> int:
        """X: columns of the inputs, the one included."""
        return 7 * self.content + 2 + self.num_user + self.num_item + 1

    @property
    def first(self) -> int:
        """Columns of the first layers of all towers."""
        return self.num_tasks * (self.width + self.hidden)

    @property
    def columns(self) -> int:
        """M: columns of all layers side by side."""
        return self.first + self.num_tasks * (self.width + 1)

    def places(self) -> npt.NDArray[np.int64]:
        """Return where here each input of a tower stands, in the order of `blocks.wide`."""
        content, rows = self.content, self.num_rows
        starts_and_sizes = [
            (rows + 3 * content, content),  # user
            (0, content),  # item
            (content, content),  # pooled history
            (rows, content),  # user * item
            (2 * content, content),  # pooled * item
            (rows + content, content),  # mean * item
            (rows + 2 * content, content),  # liked * item
            (3 * content, 2),  # pooled value, share of the history
            (rows + 4 * content, self.num_user),
            (3 * content + 2, self.num_item),
        ]
        return np.concatenate([np.arange(start, start + size) for start, size in starts_and_sizes])


class _Memory:
    """What a request of N items is scored in, as arrays and as torch's views of them."""

    def __init__(self, sizes: _Sizes, num_items: int, length: int, floats: Float32Array, bits: npt.NDArray[np.int32]) -> None:
        tasks, rows, at = sizes.num_tasks, sizes.num_rows, 0

        def array(*shape: int) -> Float32Array:
            """Return the next part of the memory: without gaps, since loops over a stride that is not known are not vectorised."""
            nonlocal at
            size = int(np.prod(shape))
            at += size
            return floats[at - size : at].reshape(shape)

        self.x0_NX, self.first_NK = array(num_items, sizes.width), array(num_items, sizes.first)
        self.crossed_TNR, self.hidden_TNK = array(tasks, num_items, rows), array(tasks, num_items, sizes.second)
        self.scratch = Scratch(
            items_CN=array(sizes.content, num_items),
            weights_LN=array(length, num_items),
            pooled_VN=array(sizes.content + 1, num_items),
            sums_3N=array(3, num_items),
            bits_N=bits[:num_items],
        )
        self.item_features_NF = self.x0_NX[:, rows - 1 - sizes.num_item : rows - 1]
        first = torch.from_numpy(self.first_NK)
        self.taken: Tensor = torch.from_numpy(self.x0_NX)[:, :rows]
        self.first: Tensor = first
        crossed, hidden_from = tasks * sizes.width, sizes.hidden
        self.crosses = [first[:, task * sizes.width : (task + 1) * sizes.width] for task in range(tasks)]
        self.hiddens = [first[:, crossed + task * hidden_from : crossed + (task + 1) * hidden_from] for task in range(tasks)]
        self.crossed_outs: list[Tensor] = list(torch.from_numpy(self.crossed_TNR))
        self.hidden_outs: list[Tensor] = list(torch.from_numpy(self.hidden_TNK))

    @staticmethod
    def floats_by_item(sizes: _Sizes, length: int) -> int:
        """Return how much memory an item needs."""
        return sizes.width + sizes.first + sizes.num_tasks * (sizes.num_rows + sizes.second) + 2 * sizes.content + 1 + length + 3


class WrittenOut:
    """Scores by the weights that were loaded last. Not thread-safe."""

    def __init__(self, network: DcnDin, num_user: int, length: int) -> None:
        """Take over the network's weights.

        Args:
            network: one that `is_written_out`.
            num_user: how many numbers of the user's the network takes (FeatureSpec.user_inputs).
            length: most entries of a history.
        """
        sizes = self._sizes = _Sizes.of(network, num_user)
        self._length, self._attention = length, int(network.query.out_features)
        all_XM = np.zeros((sizes.width, sizes.columns), np.float32)
        self._weights = Weights(
            all_XM=all_XM,
            effective_RM=np.zeros((sizes.num_rows, sizes.columns), np.float32),
            look_CV=np.empty((sizes.content, sizes.content + 1), np.float32),
            null_1=np.empty(1, np.float32),
            dot_scale_T=np.empty(sizes.num_tasks, np.float32),
        )
        self._hidden_TKH = np.empty((sizes.num_tasks, sizes.second, sizes.hidden), np.float32)
        self._hidden_bias_TK = np.empty((sizes.num_tasks, sizes.second), np.float32)
        self._out_TK = np.empty((sizes.num_tasks, sizes.second), np.float32)
        effective = torch.from_numpy(self._weights.effective_RM)
        self._first_RK: Tensor = effective[:, : sizes.first]
        starts = [sizes.first + task * sizes.width for task in range(sizes.num_tasks)]
        self._second_XR: list[Tensor] = [effective[:, start : start + sizes.width].t() for start in starts]
        self._hidden_HK: list[Tensor] = [weight.t() for weight in torch.from_numpy(self._hidden_TKH)]
        self._room, self._last_size = 0, -1
        self._loaded: dict[str, Float32Array] = {}
        self.load(network.state())

    def load(self, tensors: Mapping[str, Float32Array]) -> None:
        """Replace the weights by those of a `RankerNetwork.state`; only what changed is prepared anew.

        Raises:
            CorruptArtifact: a name or shape is not this network's; nothing was replaced.
        """
        known = self._loaded
        if known and known.keys() != tensors.keys():
            raise CorruptArtifact(f"dense weights: names differ from this network's: {sorted(known.keys() ^ tensors.keys())}")
        for name, value in known.items():
            if tensors[name].shape != value.shape:
                raise CorruptArtifact(f"dense weights: {name} has shape {tensors[name].shape}, want {value.shape}")
        changed = {name for name, value in tensors.items() if name not in known or not np.array_equal(known[name], value)}
        self._loaded = {name: np.array(value, np.float32) if name in changed else known[name] for name, value in tensors.items()}
        self._prepare_heads()
        for task in range(self._sizes.num_tasks):
            if any(name.startswith(f"towers.{task}.") for name in changed):
                self._prepare_tower(task)
        self._weights.effective_RM[:] = self._weights.all_XM[: self._sizes.num_rows]

    def _prepare_heads(self) -> None:
        weights, loaded = self._weights, self._loaded
        weights.look_CV[:] = loaded["query.weight"].T @ loaded["key.weight"] / np.float32(self._attention**0.5)
        weights.null_1[:], weights.dot_scale_T[:] = loaded["null_score"], loaded["dot_scale"]

    def _prepare_tower(self, task: int) -> None:
        """Lay a tower's weights out, input by input.

        Its logit is out . (x1 + x0 * (W x1 + b)) with x1 the first cross layer's output. With the sum over the inputs x0 drawn out, that is
        x0 . (V x1 + v), where V is W and v is b, each row times its weight in `out`; the one's row of V is `out` itself, and of v it is the
        bias of `out`.
        """
        sizes, of = self._sizes, self._tower(task)
        places, one, all_XM = sizes.places(), sizes.num_rows - 1, self._weights.all_XM
        width, out_X, out_K = sizes.width, of("out.weight")[0, : sizes.width - 1], of("out.weight")[0, sizes.width - 1 :]
        crossed = task * width + places
        # x1 = x0 * (1 + product + bias): the one's row holds 1 + bias.
        all_XM[np.ix_(places, crossed)] = of("cross.0.weight").T
        all_XM[one, crossed] = 1.0 + of("cross.0.bias")
        start = sizes.num_tasks * width + task * sizes.hidden
        all_XM[places, start : start + sizes.hidden] = of("hidden.0.weight").T
        all_XM[one, start : start + sizes.hidden] = of("hidden.0.bias")
        second = sizes.first + task * width + places
        all_XM[np.ix_(places, second)] = out_X[:, None] * of("cross.1.weight")
        all_XM[one, second] = out_X
        linear = sizes.first + sizes.num_tasks * width + task
        all_XM[places, linear] = out_X * of("cross.1.bias")
        all_XM[one, linear] = of("out.bias")[0]
        self._hidden_TKH[task], self._hidden_bias_TK[task], self._out_TK[task] = of("hidden.1.weight"), of("hidden.1.bias"), out_K

    def _tower(self, task: int) -> Callable[[str], Float32Array]:
        return lambda name: self._loaded[f"towers.{task}.{name}"]

    def score(
        self, features: Features, user_D: Float32Array, items_ND: Float32Array, history_LD: Float32Array, pooled: Pooled | None = None
    ) -> Float32Array:
        """Return float32 [N, T]: probabilities.

        Args:
            features: of the user and of the N items.
            user_D, items_ND, history_LD: float32 rows, C-contiguous; of the history as many as `features` has entries, at most the spec's.
            pooled: the rows of the keys that `features` has, of one user and N items; None when the spec has no keyed features.
        """
        memory = self._memory(len(items_ND))
        user_U, num_columns = features.user_U.astype(np.float32), features.items_NF.shape[1]
        memory.item_features_NF[:, :num_columns] = features.items_NF
        if pooled is not None:
            user_U = np.concatenate([user_U, pooled.user_GV[0]])
            memory.item_features_NF[:, num_columns:] = pooled.items_BV
        centred_L = features.history_values_L[: len(history_LD)].astype(np.float32)
        centred_L -= 0.5
        user = User(user_D, history_LD, centred_L, user_U)
        prepare(user, items_ND, self._weights, memory.scratch, memory.x0_NX)
        with torch.inference_mode():
            torch.mm(memory.taken, self._first_RK, out=memory.first)
            cross(memory.x0_NX, memory.first_NK, self._sizes.num_tasks)
            for task in range(self._sizes.num_tasks):
                torch.mm(memory.crosses[task], self._second_XR[task], out=memory.crossed_outs[task])
                torch.mm(memory.hiddens[task], self._hidden_HK[task], out=memory.hidden_outs[task])
        scores_NT = np.empty((len(items_ND), self._sizes.num_tasks), np.float32)
        finish(
            memory.x0_NX,
            items_ND,
            self._weights.effective_RM,
            memory.crossed_TNR,
            memory.hidden_TNK,
            self._hidden_bias_TK,
            self._out_TK,
            scores_NT,
        )
        return scores_NT

    def _memory(self, num_items: int) -> _Memory:
        """Return memory for N items, the same as for the request before when that had as many."""
        if num_items > self._room:
            self._room = max(num_items, _LEAST_ITEMS)
            self._floats = np.empty(self._room * _Memory.floats_by_item(self._sizes, self._length), np.float32)
            self._bits = np.empty(self._room, np.int32)
        if num_items != self._last_size:
            self._last_memory = _Memory(self._sizes, num_items, self._length, self._floats, self._bits)
            self._last_size = num_items
        return self._last_memory
