from __future__ import annotations

import math

import numpy as np
import pytest

from services.common.ranker.declared.expressions import FUNCTIONS, BadExpression, compile_expression
from tests.random_features import NUMBERS

X = np.asarray([-2.0, 0.0, 3.0, math.nan])


def values(text: str, x: np.ndarray = X) -> list[float]:
    return np.broadcast_to(compile_expression(text, ["x"])([x]), x.shape).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x + 1 - 2 * x / 2", [1, 1, 1, math.nan]),
        ("-x ** 2", [-4, 0, -9, math.nan]),
        ("x > 0", [0, 0, 1, math.nan]),
        ("-1 < x <= 3", [0, 1, 1, math.nan]),
        ("x and 1", [1, 0, 1, math.nan]),
        ("not x or x > 5", [0, 1, 0, math.nan]),
        ("1 if x else 2", [1, 2, 1, math.nan]),
        ("coalesce(x, 7)", [-2, 0, 3, 7]),
        ("is_absent(x)", [0, 0, 0, 1]),
        ("min(x, 1, 2) + max(x, 1)", [-1, 1, 4, math.nan]),
        ("sigmoid(x * 1000)", [0, 0.5, 1, math.nan]),
        ("x % 3", [1, 0, 0, math.nan]),
        ("where(x < 0, 5, x)", [5, 0, 3, math.nan]),
        ("2 ** 0.5", [math.sqrt(2)] * 4),
    ],
)
def test_an_expression_is_arithmetic_in_which_absence_spreads(text: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(values(text), expected)


@pytest.mark.parametrize(
    "text",
    [
        "x.real", "x[0]", "[x]", "{1: x}", "lambda: x", "f'{x}'", "'a'", "b'a'", "True", "None", "...", "x := 1", "y",
        "__import__('os')", "exec('1')", "abs", "abs(x)(x)", "log(x, 2)", "max(x)", "abs(x=1)", "abs(*[x])", "x ^ 2", "x // 2", "x << 1",
        "x & 1", "~x", "x is 1", "x in (1, 2)", "[x for x in (1,)]",
        "1j", "x; x", "x = 1", "", "import os", "(" * 300, "x\x00", "\ud800", "10 ** " * 3, "1e400 * '1'",
    ],
)  # fmt: skip
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(BadExpression):
        compile_expression(text, ["x"])


def test_length_and_parts_are_bounded() -> None:
    with pytest.raises(BadExpression, match="it has 10001 characters, at most 1000 are allowed"):
        compile_expression("x" * 10_001, ["x"])
    with pytest.raises(BadExpression, match="more than 200 parts"):
        compile_expression("+".join(["x"] * 499), ["x"])
    with pytest.raises(BadExpression, match=r"beyond 1e308|is no expression"):
        compile_expression("9" * 400, ["x"])


@pytest.mark.parametrize("name", [name for name, (_, fewest, most) in FUNCTIONS.items() if fewest == most == 1])
def test_a_function_gives_a_number_the_same_bits_in_whatever_company(name: str) -> None:
    # numpy computes some functions of several numbers at once; the last bits must not depend on how many, nor on which place.
    rng = np.random.default_rng(0)
    odd = np.asarray(NUMBERS, dtype=np.float64)
    many = np.concatenate((odd, rng.normal(size=200), rng.lognormal(0, 30, size=200), -rng.lognormal(0, 3, size=100)))
    evaluate = compile_expression(f"{name}(x)", ["x"])
    together = evaluate([many])
    for at in range(len(many)):
        assert evaluate([many[at : at + 1].copy()]).tobytes() == together[at : at + 1].tobytes(), many[at]
    for size in (2, 3, 5, 8, 9, 17):
        assert evaluate([many[7 : 7 + size].copy()]).tobytes() == together[7 : 7 + size].tobytes()
