"""Expressions over numbers, such as `log1p(price / (1 + income))`: read into a tree, checked against what is allowed, run by numpy.

Nothing is ever evaluated as Python: a name that is no variable, a function that is not in the table, an attribute, an index or a text is
refused when the spec is read. An absent number makes the result absent, whatever is done with it, but for `coalesce` and `is_absent`.
Truths are 1 and 0.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from services.common.ranker.declared.values import Float64Array

MAX_CHARACTERS = 1_000
MAX_PARTS = 200

Evaluate = Callable[[Sequence[Float64Array]], Float64Array]
"""From the variables' columns, float64 [N] each, to the result, float64 [N] (one number when no variable is in it)."""


class BadExpression(ValueError):
    """An expression cannot be read, or holds what is not allowed; says what."""


def _sigmoid(x: Float64Array) -> Float64Array:
    # Of -|x|, so that exp never overflows.
    small = np.exp(-np.abs(x))
    result: Float64Array = np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))
    return np.where(np.isnan(x), np.nan, result)


def _coalesce(*parts: Float64Array) -> Float64Array:
    return reduce(lambda first, second: np.where(np.isnan(first), second, first), parts)


def _where(condition: Float64Array, yes: Float64Array, no: Float64Array) -> Float64Array:
    result: Float64Array = np.where(condition != 0, yes, no)
    return np.where(np.isnan(condition), np.nan, result)


def _folded(function: Any) -> Callable[..., Any]:
    return lambda *parts: reduce(function, parts)


_ANY = 16
# Name: (function, fewest and most arguments).
FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (np.abs, 1, 1), "sign": (np.sign, 1, 1), "floor": (np.floor, 1, 1), "ceil": (np.ceil, 1, 1), "rint": (np.rint, 1, 1),
    "trunc": (np.trunc, 1, 1), "sqrt": (np.sqrt, 1, 1), "exp": (np.exp, 1, 1), "log": (np.log, 1, 1), "ln": (np.log, 1, 1),
    "log1p": (np.log1p, 1, 1), "log2": (np.log2, 1, 1), "log10": (np.log10, 1, 1), "sin": (np.sin, 1, 1), "cos": (np.cos, 1, 1),
    "tan": (np.tan, 1, 1), "tanh": (np.tanh, 1, 1), "sigmoid": (_sigmoid, 1, 1), "where": (_where, 3, 3),
    "min": (_folded(np.minimum), 2, _ANY), "max": (_folded(np.maximum), 2, _ANY), "sum": (_folded(np.add), 2, _ANY),
    "coalesce": (_coalesce, 2, _ANY), "is_absent": (lambda x: np.isnan(x).astype(np.float64), 1, 1),
}  # fmt: skip

_BINARY: Mapping[type[ast.operator], Any] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_COMPARED: Mapping[type[ast.cmpop], Any] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_ALLOWED = "numbers, the variables, + - * / % **, comparisons, and/or/not, `a if c else b` and the functions " + ", ".join(
    sorted(FUNCTIONS)
)


def compile_expression(text: str, variables: Sequence[str]) -> Evaluate:
    """Return the function that an expression is.

    Args:
        text: the expression.
        variables: the names that it may use, in the order in which the function takes their columns.
    Raises:
        BadExpression: it is too long, no expression, or holds what is not allowed.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadExpression(f"it has {len(text)} characters, at most {MAX_CHARACTERS} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        if sum(1 for _ in ast.walk(tree)) > MAX_PARTS:
            raise BadExpression(f"it has more than {MAX_PARTS} parts; divide it, with feature: references")
        made = _made(tree.body, {name: at for at, name in enumerate(variables)})
    except (SyntaxError, RecursionError, MemoryError, UnicodeError) as error:
        hint = "; write `a if c else b` in place of `c ? a : b`" if "?" in text else ""
        raise BadExpression(f"{text!r:.100} is no expression ({getattr(error, 'msg', error)}){hint}") from error

    def evaluate(columns: Sequence[Float64Array]) -> Float64Array:
        with np.errstate(all="ignore"):
            result: Float64Array = np.asarray(made(columns), dtype=np.float64)
        return result

    return evaluate


def _made(node: ast.expr, at: Mapping[str, int]) -> Callable[[Sequence[Float64Array]], Any]:
    if isinstance(node, ast.Constant):
        return _constant(node)
    if isinstance(node, ast.Name):
        if node.id not in at:
            raise BadExpression(f"{node.id!r:.100} is no variable of it; variables are {', '.join(at) or 'none'}")
        place = at[node.id]
        return lambda columns: columns[place]
    if isinstance(node, ast.BinOp):
        return _applied(_operator(_BINARY, node.op), [_made(node.left, at), _made(node.right, at)])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)):
        function = {ast.USub: np.negative, ast.UAdd: np.positive, ast.Not: _not}[type(node.op)]
        return _applied(function, [_made(node.operand, at)])
    if isinstance(node, ast.BoolOp):
        return _applied(_all if isinstance(node.op, ast.And) else _any, [_made(value, at) for value in node.values])
    if isinstance(node, ast.Compare):
        parts = [_made(part, at) for part in (node.left, *node.comparators)]
        pairs = zip(node.ops, parts, parts[1:], strict=False)
        return _applied(_all, [_applied(_truth(_operator(_COMPARED, op)), [one, two]) for op, one, two in pairs])
    if isinstance(node, ast.IfExp):
        return _applied(_where, [_made(part, at) for part in (node.test, node.body, node.orelse)])
    if isinstance(node, ast.Call):
        return _call(node, at)
    raise _refused(type(node).__name__)


def _constant(node: ast.Constant) -> Callable[[Sequence[Float64Array]], Any]:
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
        raise _refused(repr(node.value)[:100])
    try:
        value = np.float64(node.value)
    except OverflowError as error:
        raise BadExpression("it holds a number beyond 1e308") from error
    return lambda _columns: value


def _call(node: ast.Call, at: Mapping[str, int]) -> Callable[[Sequence[Float64Array]], Any]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS or node.keywords:
        raise _refused(f"function {name!r:.100}" if name else "a call of what is no function's name")
    function, fewest, most = FUNCTIONS[name]
    if not fewest <= len(node.args) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise BadExpression(f"{name} takes {wanted} arguments, here it has {len(node.args)}")
    return _applied(function, [_made(part, at) for part in node.args])


def _operator(table: Mapping[Any, Any], operator: ast.AST) -> Any:
    if type(operator) not in table:
        raise _refused("^ (write ** for a power)" if isinstance(operator, ast.BitXor) else type(operator).__name__)
    return table[type(operator)]


def _refused(what: str) -> BadExpression:
    return BadExpression(f"{what} is not allowed; allowed are {_ALLOWED}")


def _applied(function: Any, parts: Sequence[Callable[[Sequence[Float64Array]], Any]]) -> Callable[[Sequence[Float64Array]], Any]:
    return lambda columns: function(*(part(columns) for part in parts))


def _truth(compare: Any) -> Callable[[Any, Any], Any]:
    return lambda one, two: np.where(np.isnan(one) | np.isnan(two), np.nan, compare(one, two))


def _not(x: Any) -> Any:
    return np.where(np.isnan(x), np.nan, x == 0)


def _all(*parts: Any) -> Any:
    return reduce(lambda one, two: np.where(np.isnan(one) | np.isnan(two), np.nan, (one != 0) & (two != 0)), parts[1:], _truthy(parts[0]))


def _any(*parts: Any) -> Any:
    return reduce(lambda one, two: np.where(np.isnan(one) | np.isnan(two), np.nan, (one != 0) | (two != 0)), parts[1:], _truthy(parts[0]))


def _truthy(x: Any) -> Any:
    return np.where(np.isnan(x), np.nan, x != 0)
