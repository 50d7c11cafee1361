"""The passes between the matrix products of `WrittenOut` (written_out.py): compiled, each once over memory, for the items of one user.

Whatever is the same for all items of a request is multiplied into the weights before, not into every item: `prepare` makes the effective
weights and what the products take, `cross` is the first cross layer, `finish` the last layers and the probabilities.
Sums are taken in one fixed order: equal calls give equal bits.

Shapes: N items, L history, T tasks, C content dimensions, U user features, F item features. Columns X of the inputs, in an order of this
file's own: what differs by item and is no product with something of the user's, Z = 3C + 2 + F of them (item, pooled history, their
product, pooled value, share, item features), then a one, then the products of the item with user, mean and liked mean, then the user and
the user's features. R = Z + 1 rows of the effective weights, M = T * X + T * H + T * X + T columns of all layers side by side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.ranker.atomics import fast_kernel

Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

_HALF, _ZERO, _ONE = np.float32(0.5), np.float32(0.0), np.float32(1.0)
# Of exp (Cephes, expf): ln 2 in two parts, so that the remainder is exact, and a polynomial over [-ln 2 / 2, ln 2 / 2].
_LOWEST, _LOG2_E = np.float32(-87.0), np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_E5, _E4, _E3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E2, _E1, _E0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


class User(NamedTuple):
    """One user as rows and features: user_D, history_LD, centred_L (values of the history less 0.5), features_U."""

    user_D: Float32s
    history_LD: Float32s
    centred_L: Float32s
    features_U: Float32s


class Weights(NamedTuple):
    """What is prepared of the network's weights.

    Attributes:
        all_XM: all layers' weights of every input column.
        effective_RM: the same for one user; `prepare` fills the rows of the item and of the one, the others are those of `all_XM`.
        look_CV: of the attention, query by key, divided by the root of its dimensions; V = C + 1.
        null_1, dot_scale_T: as in the network.
    """

    all_XM: Float32s
    effective_RM: Float32s
    look_CV: Float32s
    null_1: Float32s
    dot_scale_T: Float32s


class Scratch(NamedTuple):
    """Memory of `prepare`, an item a column: items_CN, weights_LN, pooled_VN, sums_3N, bits_N."""

    items_CN: Float32s
    weights_LN: Float32s
    pooled_VN: Float32s
    sums_3N: Float32s
    bits_N: Int32s


@fast_kernel
def prepare(user: User, items_ND: Float32s, weights: Weights, scratch: Scratch, x0_NX: Float32s) -> None:
    """Fill `weights.effective_RM`, and all of `x0_NX` but the items' features, which are the caller's."""
    num_tasks, content = weights.dot_scale_T.size, weights.look_CV.shape[0]
    num_items, num_rows = items_ND.shape[0], weights.effective_RM.shape[0]
    means_2C = np.zeros((2, content), np.float32)
    looks_LC = np.empty((user.centred_L.size, content), np.float32)
    _look_at_history(user, num_tasks, weights.look_CV, means_2C, looks_LC)
    _make_effective(user, num_tasks, weights, means_2C)
    for c in range(content):
        for n in range(num_items):
            scratch.items_CN[c, n] = items_ND[n, num_tasks + c]
    _attend(user, num_tasks, looks_LC, weights.null_1[0], scratch)
    for n in range(num_items):
        for c in range(content):
            item, pooled = scratch.items_CN[c, n], scratch.pooled_VN[c, n]
            x0_NX[n, c] = item
            x0_NX[n, content + c] = pooled
            x0_NX[n, 2 * content + c] = item * pooled
            x0_NX[n, num_rows + c] = item * user.user_D[num_tasks + c]
            x0_NX[n, num_rows + content + c] = item * means_2C[0, c]
            x0_NX[n, num_rows + 2 * content + c] = item * means_2C[1, c]
            x0_NX[n, num_rows + 3 * content + c] = user.user_D[num_tasks + c]
        x0_NX[n, 3 * content] = scratch.pooled_VN[content, n]
        x0_NX[n, 3 * content + 1] = scratch.sums_3N[2, n]
        x0_NX[n, num_rows - 1] = _ONE
        for u in range(user.features_U.size):
            x0_NX[n, num_rows + 4 * content + u] = user.features_U[u]


@fast_kernel
def _look_at_history(user: User, num_tasks: int, look_CV: Float32s, means_2C: Float32s, looks_LC: Float32s) -> None:
    """Fill the history's means (plain, and by how much it was liked), and what an item is multiplied with to be attended to an entry."""
    content, length = look_CV.shape[0], user.centred_L.size
    for entry in range(length):
        row_D, centred = user.history_LD[entry], user.centred_L[entry]
        for c in range(content):
            means_2C[0, c] += row_D[num_tasks + c]
            means_2C[1, c] += row_D[num_tasks + c] * centred
            look = look_CV[c, content] * centred
            for k in range(content):
                look += look_CV[c, k] * row_D[num_tasks + k]
            looks_LC[entry, c] = look
    share = _ONE / np.float32(max(length, 1))
    for c in range(content):
        means_2C[0, c] *= share
        means_2C[1, c] *= share


@fast_kernel
def _make_effective(user: User, num_tasks: int, weights: Weights, means_2C: Float32s) -> None:
    """Fill the rows of the item's content and of the one."""
    all_XM, effective_RM, dot_scale_T = weights.all_XM, weights.effective_RM, weights.dot_scale_T
    content, num_rows, num_columns = means_2C.shape[1], effective_RM.shape[0], effective_RM.shape[1]
    one_M = effective_RM[num_rows - 1]
    one_M[:] = all_XM[num_rows - 1]
    for c in range(content):
        of_user, of_mean, of_liked = user.user_D[num_tasks + c], means_2C[0, c], means_2C[1, c]
        with_user, with_mean, with_liked = num_rows + c, num_rows + content + c, num_rows + 2 * content + c
        alone = num_rows + 3 * content + c
        for m in range(num_columns):
            products = of_user * all_XM[with_user, m] + of_mean * all_XM[with_mean, m] + of_liked * all_XM[with_liked, m]
            effective_RM[c, m] = all_XM[c, m] + products
            one_M[m] += of_user * all_XM[alone, m]
        for t in range(num_tasks):
            effective_RM[c, num_columns - num_tasks + t] += dot_scale_T[t] * (of_user + of_mean)
    for u in range(user.features_U.size):
        for m in range(num_columns):
            one_M[m] += user.features_U[u] * all_XM[num_rows + 4 * content + u, m]
    for t in range(num_tasks):
        one_M[num_columns - num_tasks + t] += user.user_D[t]


@fast_kernel
def _attend(user: User, num_tasks: int, looks_LC: Float32s, null_score: np.float32, scratch: Scratch) -> None:
    """Fill the pooled history and value of every item, and the share that the history took (`sums_3N[2]`)."""
    length, content = looks_LC.shape
    num_items = scratch.bits_N.size
    highest_N, total_N, share_N = scratch.sums_3N[0], scratch.sums_3N[1], scratch.sums_3N[2]
    highest_N[:] = null_score
    for entry in range(length):
        weights_N = scratch.weights_LN[entry]
        weights_N[:] = _ZERO
        for c in range(content):
            look, item_N = looks_LC[entry, c], scratch.items_CN[c]
            for n in range(num_items):
                weights_N[n] += look * item_N[n]
        for n in range(num_items):
            highest_N[n] = max(highest_N[n], weights_N[n])
    for n in range(num_items):
        total_N[n] = null_score - highest_N[n]
        share_N[n] = _ZERO
    _exp(total_N, scratch.bits_N)
    scratch.pooled_VN[:] = _ZERO
    for entry in range(length):
        weights_N, row_D = scratch.weights_LN[entry], user.history_LD[entry]
        for n in range(num_items):
            weights_N[n] -= highest_N[n]
        _exp(weights_N, scratch.bits_N)
        for n in range(num_items):
            share_N[n] += weights_N[n]
        for v in range(content + 1):
            value = row_D[num_tasks + v] if v < content else user.centred_L[entry]
            pooled_N = scratch.pooled_VN[v]
            for n in range(num_items):
                pooled_N[n] += value * weights_N[n]
    for n in range(num_items):
        total_N[n] = _ONE / (total_N[n] + share_N[n])
        share_N[n] *= total_N[n]
    for v in range(content + 1):
        pooled_N = scratch.pooled_VN[v]
        for n in range(num_items):
            pooled_N[n] *= total_N[n]


@fast_kernel
def _exp(values_N: Float32s, bits_N: Int32s) -> None:
    """Replace values up to 0 by their exponentials, several at once: a call of the C library's for each would take longer than the rest."""
    for n in range(values_N.size):
        value = max(values_N[n], _LOWEST)
        power = np.floor(value * _LOG2_E + _HALF)
        rest = value - power * _LN2_HIGH - power * _LN2_LOW
        series = ((((_E5 * rest + _E4) * rest + _E3) * rest + _E2) * rest + _E1) * rest + _E0
        values_N[n] = series * rest * rest + rest + _ONE
        bits_N[n] = (np.int32(power) + _EXPONENT_BIAS) << _MANTISSA_BITS
    powers_N = bits_N.view(np.float32)
    for n in range(values_N.size):
        values_N[n] *= powers_N[n]


@fast_kernel
def cross(x0_NX: Float32s, first_NK: Float32s, num_tasks: int) -> None:
    """Make of the first layers' products, in place, the outputs of the first cross layers (T * X) and of the first hidden layers."""
    num_items, width = x0_NX.shape
    for n in range(num_items):
        x0_X, hidden_K = x0_NX[n], first_NK[n, num_tasks * width :]
        for t in range(num_tasks):
            crossed_X = first_NK[n, t * width : (t + 1) * width]
            for x in range(width):
                crossed_X[x] *= x0_X[x]
        for k in range(hidden_K.size):
            hidden_K[k] = max(hidden_K[k], _ZERO)


@fast_kernel
def finish(
    x0_NX: Float32s,
    items_ND: Float32s,
    effective_RM: Float32s,
    crossed_TNR: Float32s,
    hidden_TNK: Float32s,
    bias_TK: Float32s,
    out_TK: Float32s,
    scores_NT: Float32s,
) -> None:
    """Fill the probabilities from the second layers' products."""
    num_tasks, num_items, num_rows = crossed_TNR.shape
    linear_R = np.empty(num_rows, np.float32)
    for t in range(num_tasks):
        for r in range(num_rows):
            linear_R[r] = effective_RM[r, effective_RM.shape[1] - num_tasks + t]
        for n in range(num_items):
            logit = items_ND[n, t]
            for r in range(num_rows):
                logit += x0_NX[n, r] * (crossed_TNR[t, n, r] + linear_R[r])
            for k in range(hidden_TNK.shape[2]):
                logit += out_TK[t, k] * max(hidden_TNK[t, n, k] + bias_TK[t, k], _ZERO)
            small = np.float32(math.exp(-abs(logit)))
            scores_NT[n, t] = _ONE / (_ONE + small) if logit >= _ZERO else small / (_ONE + small)
