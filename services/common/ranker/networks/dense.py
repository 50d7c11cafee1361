"""Linear layers that know which inputs lie along their axes, and MLPs of them. Shapes: B samples, X inputs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from services.common.ranker.networks.names import Axes, Names, nothing


class Dense(nn.Linear):
    """A linear layer; its weights are migrated by the names of what it takes and gives."""

    def __init__(self, takes_width: int, gives_width: int, *, takes: Names = nothing, gives: Names = nothing, bias: bool = True) -> None:
        """Make the layer.

        Args:
            takes_width: numbers that it takes.
            gives_width: numbers that it gives.
            takes: names of those taken numbers that are inputs of the network; they come first.
            gives: the same of what it gives: a cross layer gives as many numbers as there are inputs.
            bias: whether it has one.
        """
        super().__init__(takes_width, gives_width, bias=bias)
        self._takes, self._gives = takes, gives

    def own_axes(self) -> dict[str, Axes]:
        """Return by weight the names along its axes."""
        axes: dict[str, Axes] = {"weight": (self._gives, self._takes)}
        return axes if self.bias is None else axes | {"bias": (self._gives,)}


class Mlp(nn.Module):
    """Linear layers with a ReLU after each."""

    def __init__(self, width: int, hidden: Sequence[int], *, takes: Names = nothing) -> None:
        """`width`: numbers that it takes; `takes`: their names, as far as they are inputs of the network."""
        super().__init__()
        sizes = (width, *hidden)
        self.layers = nn.ModuleList(
            Dense(before, after, takes=nothing if at else takes) for at, (before, after) in enumerate(pairwise(sizes))
        )
        self.width = sizes[-1]

    def forward(self, taken_BX: Tensor) -> Tensor:
        """Return float32 [B, last of hidden]."""
        given = taken_BX
        for layer in self.layers:
            given = functional.relu(layer(given))
        return given


class Head(nn.Module):
    """One task's MLP with a linear layer on top; returns a logit."""

    def __init__(self, width: int, hidden: Sequence[int], *, takes: Names = nothing) -> None:
        """Take what an Mlp takes."""
        super().__init__()
        self.mlp = Mlp(width, hidden, takes=takes)
        self.out = Dense(self.mlp.width, 1)

    def forward(self, taken_BX: Tensor) -> Tensor:
        """Return logits [B]."""
        return self.out(self.mlp(taken_BX)).squeeze(1)
