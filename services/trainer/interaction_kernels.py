"""What every candidate sees of its user and history, and the gradient of it: the first half of the ranking network, compiled.

`interact` computes what `wide` and `attend` of services.common.ranker.networks.blocks put side by side for the towers, and the part of the
logits that does not pass through them; `interact_back` is its derivative. Rows are read from, and gradients added to, the unique rows of a
step by their places, so that nothing is copied to each sample. Sums are taken in one fixed order: equal calls give equal bits.

Shapes: G groups, whose samples lie side by side, B samples, L history length, U unique rows of a table, D row dimension, T tasks,
C = D - T content dimensions, A attention dimensions, V = C + 1, X inputs of the towers, of which 7C + 2 come from rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.ranker.atomics import fast_kernel

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

_HALF, _ZERO, _ONE = np.float32(0.5), np.float32(0.0), np.float32(1.0)


class Places(NamedTuple):
    """Which row every input has.

    Attributes:
        user_at_G, item_at_B, history_at_GL: places in the unique rows.
        shown_G: what the user's row is multiplied by, 0 or 1.
        values_GL: of the history, 0 to 1.
        lengths_G: how many of the L places of the history are filled; they come first.
        starts_G: int64 [G + 1]: the samples of group g are starts_G[g] to starts_G[g + 1].
    """

    user_at_G: Int64s
    item_at_B: Int64s
    history_at_GL: Int64s
    shown_G: Float32s
    values_GL: Float32s
    lengths_G: Int64s
    starts_G: Int64s


class Heads(NamedTuple):
    """Weights of this half, or their gradients."""

    query_AC: Float32s
    key_AV: Float32s
    null_1: Float32s
    dot_scale_T: Float32s


class Seen(NamedTuple):
    """What `interact` found and `interact_back` needs again.

    Attributes:
        x0_BX: inputs of the towers; the columns behind 7C + 2 are the caller's.
        weights_BL, null_B: of the attention: of every entry of the history, and of none.
        keys_GLA: of the histories' entries.
        means_G2C: of the history, and of the history by how much it was liked.
    """

    x0_BX: Float32s
    weights_BL: Float32s
    null_B: Float32s
    keys_GLA: Float32s
    means_G2C: Float32s


@fast_kernel
def interact(users_UD: Float32s, items_UD: Float32s, places: Places, heads: Heads, seen: Seen, base_BT: Float32s) -> None:
    """Fill `seen` and the base of the logits."""
    num_tasks, content = heads.dot_scale_T.size, heads.query_AC.shape[1]
    query_A = np.empty(heads.query_AC.shape[0], np.float32)
    for g in range(places.user_at_G.size):
        user_D, shown = users_UD[places.user_at_G[g]], places.shown_G[g]
        _look_at_history(g, items_UD, places, heads, seen)
        mean_C, liked_C = seen.means_G2C[g, 0], seen.means_G2C[g, 1]
        for b in range(places.starts_G[g], places.starts_G[g + 1]):
            item_D, x0_X = items_UD[places.item_at_B[b]], seen.x0_BX[b]
            _query(item_D, num_tasks, heads.query_AC, query_A)
            _attend(g, b, places, query_A, heads.null_1[0], seen)
            _pool(g, b, items_UD, num_tasks, content, places, seen)
            dot = _ZERO
            for c in range(content):
                of_user, of_item, pooled = user_D[num_tasks + c] * shown, item_D[num_tasks + c], x0_X[2 * content + c]
                x0_X[c] = of_user
                x0_X[content + c] = of_item
                x0_X[3 * content + c] = of_user * of_item
                x0_X[4 * content + c] = pooled * of_item
                x0_X[5 * content + c] = mean_C[c] * of_item
                x0_X[6 * content + c] = liked_C[c] * of_item
                dot += (of_user + mean_C[c]) * of_item
            for t in range(num_tasks):
                base_BT[b, t] = heads.dot_scale_T[t] * dot + user_D[t] * shown + item_D[t]


@fast_kernel
def _look_at_history(g: int, items_UD: Float32s, places: Places, heads: Heads, seen: Seen) -> None:
    """Fill the keys and means of a group."""
    num_tasks, content, length = heads.dot_scale_T.size, heads.query_AC.shape[1], places.lengths_G[g]
    mean_C, liked_C = seen.means_G2C[g, 0], seen.means_G2C[g, 1]
    mean_C[:] = _ZERO
    liked_C[:] = _ZERO
    for entry in range(length):
        row_D, centred = items_UD[places.history_at_GL[g, entry]], places.values_GL[g, entry] - _HALF
        for a in range(heads.key_AV.shape[0]):
            key = centred * heads.key_AV[a, content]
            for c in range(content):
                key += row_D[num_tasks + c] * heads.key_AV[a, c]
            seen.keys_GLA[g, entry, a] = key
        for c in range(content):
            mean_C[c] += row_D[num_tasks + c]
            liked_C[c] += row_D[num_tasks + c] * centred
    share = _ONE / np.float32(max(length, 1))
    for c in range(content):
        mean_C[c] *= share
        liked_C[c] *= share


@fast_kernel
def _query(item_D: Float32s, num_tasks: int, query_AC: Float32s, query_A: Float32s) -> None:
    """Fill the query of an item."""
    for a in range(query_AC.shape[0]):
        total = _ZERO
        for c in range(query_AC.shape[1]):
            total += query_AC[a, c] * item_D[num_tasks + c]
        query_A[a] = total


@fast_kernel
def _attend(g: int, b: int, places: Places, query_A: Float32s, null_score: np.float32, seen: Seen) -> None:
    """Fill the attention weights of a sample: a softmax over the history and the null entry."""
    length, weights_L = places.lengths_G[g], seen.weights_BL[b]
    scale = np.float32(1.0 / math.sqrt(query_A.size))
    highest = null_score
    for entry in range(length):
        score = _ZERO
        for a in range(query_A.size):
            score += query_A[a] * seen.keys_GLA[g, entry, a]
        weights_L[entry] = score * scale
        highest = max(highest, weights_L[entry])
    of_null = np.float32(math.exp(null_score - highest))
    total = of_null
    for entry in range(length):
        weights_L[entry] = np.float32(math.exp(weights_L[entry] - highest))
        total += weights_L[entry]
    for entry in range(length):
        weights_L[entry] /= total
    seen.null_B[b] = of_null / total


@fast_kernel
def _pool(g: int, b: int, items_UD: Float32s, num_tasks: int, content: int, places: Places, seen: Seen) -> None:
    """Fill the pooled history of a sample, its pooled value and the share that the history took."""
    x0_X = seen.x0_BX[b]
    x0_X[2 * content : 3 * content] = _ZERO
    value, share = _ZERO, _ZERO
    for entry in range(places.lengths_G[g]):
        row_D, weight = items_UD[places.history_at_GL[g, entry]], seen.weights_BL[b, entry]
        value += weight * (places.values_GL[g, entry] - _HALF)
        share += weight
        for c in range(content):
            x0_X[2 * content + c] += weight * row_D[num_tasks + c]
    x0_X[7 * content] = value
    x0_X[7 * content + 1] = share


@fast_kernel
def interact_back(
    items_UD: Float32s,
    places: Places,
    heads: Heads,
    seen: Seen,
    of_x0_BR: Float32s,
    of_base_BT: Float32s,
    of_heads: Heads,
    of_users_UD: Float32s,
    of_items_UD: Float32s,
) -> None:
    """Fill the gradients (`of_...`) of the weights and add those of the rows, from those of x0_BX [:, :7C + 2] and of the base."""
    num_attention, content = heads.query_AC.shape
    length = places.history_at_GL.shape[1]
    for part in (of_heads.query_AC, of_heads.key_AV):
        part[:] = _ZERO
    for part_1 in (of_heads.null_1, of_heads.dot_scale_T):
        part_1[:] = _ZERO
    of_group_3C, of_pooled_C = np.empty((3, content), np.float32), np.empty(content, np.float32)
    of_keys_LA, of_history_LC = np.empty((length, num_attention), np.float32), np.empty((length, content), np.float32)
    scratch_2A, of_weight_L = np.empty((2, num_attention), np.float32), np.empty(length, np.float32)
    for g in range(places.user_at_G.size):
        of_group_3C[:] = _ZERO
        of_keys_LA[:] = _ZERO
        of_history_LC[:] = _ZERO
        for b in range(places.starts_G[g], places.starts_G[g + 1]):
            of_user_D, of_item_D = of_users_UD[places.user_at_G[g]], of_items_UD[places.item_at_B[b]]
            of_base_T, shown = of_base_BT[b], places.shown_G[g]
            _products_back(g, b, heads, seen, of_x0_BR[b], of_base_T, of_heads, of_group_3C, of_pooled_C, of_item_D)
            for t in range(of_base_T.size):
                of_user_D[t] += of_base_T[t] * shown
                of_item_D[t] += of_base_T[t]
            _attend_back(
                g, b, items_UD, places, heads, seen, of_x0_BR[b], of_pooled_C, scratch_2A, of_weight_L,
                of_heads, of_keys_LA, of_history_LC, of_item_D,
            )  # fmt: skip
        _history_back(g, items_UD, places, heads, of_group_3C, of_keys_LA, of_history_LC, of_heads, of_users_UD, of_items_UD)


@fast_kernel
def _products_back(
    g: int,
    b: int,
    heads: Heads,
    seen: Seen,
    of_x0_R: Float32s,
    of_base_T: Float32s,
    of_heads: Heads,
    of_group_3C: Float32s,
    of_pooled_C: Float32s,
    of_item_D: Float32s,
) -> None:
    """Add what a sample's products with its item say about user, mean and liked mean (`of_group_3C`), and about the item."""
    num_tasks, content, x0_X = heads.dot_scale_T.size, heads.query_AC.shape[1], seen.x0_BX[b]
    of_dot, dot = _ZERO, _ZERO
    for t in range(num_tasks):
        of_dot += heads.dot_scale_T[t] * of_base_T[t]
    for c in range(content):
        user, item, pooled = x0_X[c], x0_X[content + c], x0_X[2 * content + c]
        mean, liked = seen.means_G2C[g, 0, c], seen.means_G2C[g, 1, c]
        by_user, by_pooled = of_x0_R[3 * content + c], of_x0_R[4 * content + c]
        by_mean, by_liked = of_x0_R[5 * content + c], of_x0_R[6 * content + c]
        dot += (user + mean) * item
        of_item = of_x0_R[content + c] + user * by_user + pooled * by_pooled + mean * by_mean + liked * by_liked
        of_item_D[num_tasks + c] += of_item + (user + mean) * of_dot
        of_group_3C[0, c] += of_x0_R[c] + item * (by_user + of_dot)
        of_group_3C[1, c] += item * (by_mean + of_dot)
        of_group_3C[2, c] += item * by_liked
        of_pooled_C[c] = of_x0_R[2 * content + c] + item * by_pooled
    for t in range(num_tasks):
        of_heads.dot_scale_T[t] += of_base_T[t] * dot


@fast_kernel
def _attend_back(
    g: int,
    b: int,
    items_UD: Float32s,
    places: Places,
    heads: Heads,
    seen: Seen,
    of_x0_R: Float32s,
    of_pooled_C: Float32s,
    scratch_2A: Float32s,
    of_weight_L: Float32s,
    of_heads: Heads,
    of_keys_LA: Float32s,
    of_history_LC: Float32s,
    of_item_D: Float32s,
) -> None:
    """Add what a sample's attention says about the history's rows and keys, the query and the item."""
    num_tasks, (num_attention, content) = heads.dot_scale_T.size, heads.query_AC.shape
    length, scale = places.lengths_G[g], np.float32(1.0 / math.sqrt(num_attention))
    of_value, of_share = of_x0_R[7 * content], of_x0_R[7 * content + 1]
    mixed = _ZERO
    for entry in range(length):
        row_D, weight = items_UD[places.history_at_GL[g, entry]], seen.weights_BL[b, entry]
        total = of_value * (places.values_GL[g, entry] - _HALF) + of_share
        for c in range(content):
            total += of_pooled_C[c] * row_D[num_tasks + c]
            of_history_LC[entry, c] += weight * of_pooled_C[c]
        of_weight_L[entry] = total
        mixed += weight * total
    of_heads.null_1[0] -= seen.null_B[b] * mixed
    query_A, of_query_A = scratch_2A[0], scratch_2A[1]
    item_C = seen.x0_BX[b, content : 2 * content]
    _query(item_C, 0, heads.query_AC, query_A)
    of_query_A[:] = _ZERO
    for entry in range(length):
        of_score = seen.weights_BL[b, entry] * (of_weight_L[entry] - mixed) * scale
        for a in range(num_attention):
            of_query_A[a] += of_score * seen.keys_GLA[g, entry, a]
            of_keys_LA[entry, a] += of_score * query_A[a]
    for a in range(num_attention):
        for c in range(content):
            of_heads.query_AC[a, c] += of_query_A[a] * item_C[c]
            of_item_D[num_tasks + c] += of_query_A[a] * heads.query_AC[a, c]


@fast_kernel
def _history_back(
    g: int,
    items_UD: Float32s,
    places: Places,
    heads: Heads,
    of_group_3C: Float32s,
    of_keys_LA: Float32s,
    of_history_LC: Float32s,
    of_heads: Heads,
    of_users_UD: Float32s,
    of_items_UD: Float32s,
) -> None:
    """Add what a whole group says about its user's row and the rows of its history."""
    num_tasks, (num_attention, content) = heads.dot_scale_T.size, heads.query_AC.shape
    length = places.lengths_G[g]
    share = _ONE / np.float32(max(length, 1))
    for c in range(content):
        of_users_UD[places.user_at_G[g], num_tasks + c] += of_group_3C[0, c] * places.shown_G[g]
    for entry in range(length):
        row, centred = places.history_at_GL[g, entry], places.values_GL[g, entry] - _HALF
        for a in range(num_attention):
            of_key = of_keys_LA[entry, a]
            for c in range(content):
                of_heads.key_AV[a, c] += of_key * items_UD[row, num_tasks + c]
                of_history_LC[entry, c] += of_key * heads.key_AV[a, c]
            of_heads.key_AV[a, content] += of_key * centred
        for c in range(content):
            of_items_UD[row, num_tasks + c] += of_history_LC[entry, c] + (of_group_3C[1, c] + centred * of_group_3C[2, c]) * share
