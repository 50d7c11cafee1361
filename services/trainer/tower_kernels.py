"""What stands between the matrix products of the towers, the losses, and Adam: compiled, each one pass over memory.

Sums are taken in one fixed order: equal calls give equal bits. Shapes: T towers (one a task), B samples, X inputs, H and K units of the
first and second hidden layer, N = T * (X + H): the products of the towers' first layers side by side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from services.common.ranker.atomics import fast_kernel
from services.trainer.interaction_kernels import Float32s

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@fast_kernel
def first_layers(
    x0_BX: Float32s, products_BN: Float32s, cross_bias_TX: Float32s, hidden_bias_TH: Float32s, x1_TBX: Float32s, h0_TBH: Float32s
) -> None:
    """Fill x1 = x0 + x0 * (product + bias) of the first cross layer, and the first hidden layer, of every tower."""
    num_tasks, batch, width = x1_TBX.shape
    num_hidden = h0_TBH.shape[2]
    for t in range(num_tasks):
        for b in range(batch):
            for x in range(width):
                x1_TBX[t, b, x] = x0_BX[b, x] * (_ONE + products_BN[b, t * width + x] + cross_bias_TX[t, x])
            for h in range(num_hidden):
                h0_TBH[t, b, h] = max(products_BN[b, num_tasks * width + t * num_hidden + h] + hidden_bias_TH[t, h], _ZERO)


@fast_kernel
def logits(
    x0_BX: Float32s,
    x1_TBX: Float32s,
    products_TBX: Float32s,
    cross_bias_TX: Float32s,
    h1_TBK: Float32s,
    hidden_bias_TK: Float32s,
    out_T1Z: Float32s,
    out_bias_T1: Float32s,
    logits_BT: Float32s,
) -> None:
    """Add the towers' logits to `logits_BT`; h1_TBK comes in as products and goes out as the second hidden layer."""
    num_tasks, batch, width = x1_TBX.shape
    num_hidden = h1_TBK.shape[2]
    for t in range(num_tasks):
        for b in range(batch):
            total = out_bias_T1[t, 0]
            for x in range(width):
                total += out_T1Z[t, 0, x] * (x1_TBX[t, b, x] + x0_BX[b, x] * (products_TBX[t, b, x] + cross_bias_TX[t, x]))
            for k in range(num_hidden):
                h1_TBK[t, b, k] = max(h1_TBK[t, b, k] + hidden_bias_TK[t, k], _ZERO)
                total += out_T1Z[t, 0, width + k] * h1_TBK[t, b, k]
            logits_BT[b, t] += total


@fast_kernel
def last_layers_back(
    x0_BX: Float32s,
    x1_TBX: Float32s,
    products_TBX: Float32s,
    cross_bias_TX: Float32s,
    h1_TBK: Float32s,
    out_T1Z: Float32s,
    of_logits_BT: Float32s,
    of_products_TBX: Float32s,
    of_x1_TBX: Float32s,
    of_h1_TBK: Float32s,
    of_x0_BR: Float32s,
    of_cross_bias_TX: Float32s,
    of_hidden_bias_TK: Float32s,
    of_out_T1Z: Float32s,
    of_out_bias_T1: Float32s,
) -> None:
    """Fill the gradients down to the second layers' products, and what reaches x1 and x0 past them; of x0 the first R inputs are wanted."""
    num_tasks, batch, width = x1_TBX.shape
    num_hidden, wanted = h1_TBK.shape[2], of_x0_BR.shape[1]
    of_x0_BR[:] = _ZERO
    of_cross_bias_TX[:] = _ZERO
    of_hidden_bias_TK[:] = _ZERO
    of_out_T1Z[:] = _ZERO
    for t in range(num_tasks):
        of_bias = _ZERO
        for b in range(batch):
            of_logit = of_logits_BT[b, t]
            of_bias += of_logit
            for x in range(width):
                inner = products_TBX[t, b, x] + cross_bias_TX[t, x]
                of_out_T1Z[t, 0, x] += of_logit * (x1_TBX[t, b, x] + x0_BX[b, x] * inner)
                of_x1_TBX[t, b, x] = of_logit * out_T1Z[t, 0, x]
                of_products_TBX[t, b, x] = of_logit * out_T1Z[t, 0, x] * x0_BX[b, x]
                of_cross_bias_TX[t, x] += of_products_TBX[t, b, x]
            for x in range(wanted):
                of_x0_BR[b, x] += of_x1_TBX[t, b, x] * (products_TBX[t, b, x] + cross_bias_TX[t, x])
            for k in range(num_hidden):
                of_out_T1Z[t, 0, width + k] += of_logit * h1_TBK[t, b, k]
                of_unit = of_logit * out_T1Z[t, 0, width + k] if h1_TBK[t, b, k] > _ZERO else _ZERO
                of_h1_TBK[t, b, k] = of_unit
                of_hidden_bias_TK[t, k] += of_unit
        of_out_bias_T1[t, 0] = of_bias


@fast_kernel
def first_layers_back(
    x0_BX: Float32s,
    products_BN: Float32s,
    cross_bias_TX: Float32s,
    h0_TBH: Float32s,
    of_x1_TBX: Float32s,
    of_h0_TBH: Float32s,
    of_products_BN: Float32s,
    of_x0_BR: Float32s,
    of_cross_bias_TX: Float32s,
    of_hidden_bias_TH: Float32s,
) -> None:
    """Fill the gradients of the first layers' products and biases, and add what reaches x0 past the products."""
    num_tasks, batch, width = of_x1_TBX.shape
    num_hidden, wanted = h0_TBH.shape[2], of_x0_BR.shape[1]
    of_cross_bias_TX[:] = _ZERO
    of_hidden_bias_TH[:] = _ZERO
    for t in range(num_tasks):
        for b in range(batch):
            at = t * width
            for x in range(width):
                of_product = of_x1_TBX[t, b, x] * x0_BX[b, x]
                of_products_BN[b, at + x] = of_product
                of_cross_bias_TX[t, x] += of_product
            for x in range(wanted):
                of_x0_BR[b, x] += of_x1_TBX[t, b, x] * (_ONE + products_BN[b, at + x] + cross_bias_TX[t, x])
            at = num_tasks * width + t * num_hidden
            for h in range(num_hidden):
                of_unit = of_h0_TBH[t, b, h] if h0_TBH[t, b, h] > _ZERO else _ZERO
                of_products_BN[b, at + h] = of_unit
                of_hidden_bias_TH[t, h] += of_unit


@fast_kernel
def losses(
    logits_BT: Float32s,
    shift_BT: Float32s,
    ones_BT: Float32s,
    zeros_BT: Float32s,
    unit: np.float32,
    scores_BT: Float32s,
    of_logits_BT: Float32s,
    losses_T: npt.NDArray[np.float64],
) -> None:
    """Fill probabilities, the gradient of (sum of losses / unit) and the sums of losses by task.

    The loss of a sample and task is ones * softplus(-z) + zeros * softplus(z), where z is the logit plus its shift.
    """
    losses_T[:] = 0.0
    for b in range(logits_BT.shape[0]):
        for t in range(logits_BT.shape[1]):
            z = logits_BT[b, t] + shift_BT[b, t]
            small = np.float32(math.exp(-abs(z)))
            rest = np.float32(math.log1p(small))
            of_one = _ONE / (_ONE + small) if z >= _ZERO else small / (_ONE + small)
            of_zero = small / (_ONE + small) if z >= _ZERO else _ONE / (_ONE + small)
            scores_BT[b, t] = of_one
            of_logits_BT[b, t] = (zeros_BT[b, t] * of_one - ones_BT[b, t] * of_zero) / unit
            losses_T[t] += ones_BT[b, t] * (max(-z, _ZERO) + rest) + zeros_BT[b, t] * (max(z, _ZERO) + rest)


@fast_kernel
def adam(
    weights_P: Float32s,
    first_P: Float32s,
    second_P: Float32s,
    gradient_P: Float32s,
    rate: float,
    betas: tuple[float, float],
    second_correction: float,
    epsilon: float,
) -> float:
    """Move the weights by Adam; return the sum of squares of the gradient. Source: Kingma and Ba 2015.

    `rate` contains the correction of the first moment's bias; the second moment is divided by `second_correction`.
    """
    keep_1, take_1 = np.float32(betas[0]), np.float32(1.0 - betas[0])
    keep_2, take_2 = np.float32(betas[1]), np.float32(1.0 - betas[1])
    step, correction, floor = np.float32(rate), np.float32(1.0 / second_correction), np.float32(epsilon)
    square = 0.0
    for p in range(weights_P.size):
        gradient = gradient_P[p]
        square += np.float64(gradient) * np.float64(gradient)
        first_P[p] = keep_1 * first_P[p] + take_1 * gradient
        second_P[p] = keep_2 * second_P[p] + take_2 * gradient * gradient
        weights_P[p] -= step * first_P[p] / (np.sqrt(second_P[p] * correction) + floor)
    return square


@fast_kernel
def adagrad(
    rows_ND: Float32s,
    squares_NSD: Float32s,
    slots_U: npt.NDArray[np.int64],
    gradient_UD: Float32s,
    rate: float,
    bias_rate: float,
    num_biases: int,
    epsilon: float,
) -> float:
    """Move the rows of slots that are not -1 by Adagrad; return the sum of squares of their gradients. Source: Duchi et al. 2011."""
    content_rate, leading_rate, floor = np.float32(rate), np.float32(bias_rate), np.float32(epsilon)
    square = 0.0
    for u in range(slots_U.size):
        slot = slots_U[u]
        if slot < 0:
            continue
        for d in range(gradient_UD.shape[1]):
            gradient = gradient_UD[u, d]
            squares_NSD[slot, 0, d] += gradient * gradient
            square += np.float64(gradient) * np.float64(gradient)
            step = leading_rate if d < num_biases else content_rate
            rows_ND[slot, d] -= step * gradient / (np.sqrt(squares_NSD[slot, 0, d]) + floor)
    return square
