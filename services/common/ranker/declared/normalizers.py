"""The key `normalizer`, as EasyRec writes it: `method=log10,threshold=1e-10,default=-10`, zscore, minmax or expression."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from services.common.ranker.declared.expressions import BadExpression, compile_expression
from services.common.ranker.declared.values import Float64Array

Normalize = Callable[[Float64Array], Float64Array]
"""From any array of numbers to one of its shape; NaN stays NaN."""

_ARGUMENTS: dict[str, dict[str, float | None]] = {
    "log10": {"threshold": 1e-10, "default": -10.0},
    "zscore": {"mean": None, "standard_deviation": None},
    "minmax": {"min": None, "max": None},
}


class BadNormalizer(ValueError):
    """A normalizer cannot be read; says why."""


def compile_normalizer(text: str) -> Normalize:
    """Return the function that a normalizer is.

    Raises:
        BadNormalizer: its method is unknown, or its arguments are not those of the method.
    """
    head, _, rest = text.partition(",")
    method = head.replace(" ", "").removeprefix("method=")
    if method == "expression":
        return _of_expression(rest.strip())
    if method not in _ARGUMENTS or not head.strip().startswith("method"):
        raise BadNormalizer(f"{text!r:.100} names no method; write method=log10, zscore, minmax or expression")
    given = _numbers(method, rest)
    if method == "log10":
        return _log10(given["threshold"], given["default"])
    low, span = (given["mean"], given["standard_deviation"]) if method == "zscore" else (given["min"], given["max"] - given["min"])
    if span <= 0:
        raise BadNormalizer(f"{text!r:.100}: {'standard_deviation must be above 0' if method == 'zscore' else 'max must be above min'}")
    return lambda x: (x - low) / span


def _of_expression(rest: str) -> Normalize:
    name, _, expression = rest.partition("=")
    if name.strip() != "expr":
        raise BadNormalizer("method=expression needs expr=..., with x for the number")
    try:
        evaluate = compile_expression(expression, ["x"])
    except BadExpression as error:
        raise BadNormalizer(str(error)) from error
    return lambda x: np.broadcast_to(evaluate([x]), x.shape)


def _numbers(method: str, rest: str) -> dict[str, float]:
    given: dict[str, float | None] = dict(_ARGUMENTS[method])
    for part in filter(None, (part.strip() for part in rest.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in given:
            raise BadNormalizer(f"{name!r:.50} is no argument of {method}; it has {', '.join(given)}")
        try:
            given[name] = float(value)
        except ValueError as error:
            raise BadNormalizer(f"{name}={value!r:.50} is no number") from error
    missing = [name for name, value in given.items() if value is None or not math.isfinite(value)]
    if missing:
        raise BadNormalizer(f"method={method} needs a finite {missing[0]}")
    return {name: value for name, value in given.items() if value is not None}


def _log10(threshold: float, default: float) -> Normalize:
    def normalize(x: Float64Array) -> Float64Array:
        with np.errstate(all="ignore"):
            result: Float64Array = np.where(x > threshold, np.log10(x), default)
        return np.where(np.isnan(x), np.nan, result)

    return normalize
