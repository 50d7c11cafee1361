"""What numba has compiled in this process, for tests of warm-ups. Imports in both environments."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

from numba.core.dispatcher import Dispatcher

from services.mesh.runner.environments import REPOSITORY_ROOT

KERNELS = {"kernel", "fast_kernel"}


def compiled() -> dict[str, int]:
    """For how many types of arguments each kernel is compiled, or loaded, itself: module.name -> number, of 1 and more."""
    return {
        f"{function.py_func.__module__}.{function.py_func.__name__}": len(function.signatures)
        for name, module in list(sys.modules.items())
        if name.startswith("services.")
        for function in list(vars(module).values())
        if isinstance(function, Dispatcher) and function.signatures
    }


def called_from_python() -> set[str]:
    """Kernels of the tree that something else than a kernel calls, as module.name."""
    kernels: dict[str, str] = {}
    calls: list[tuple[bool, str]] = []
    for path in sorted((REPOSITORY_ROOT / "services").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(REPOSITORY_ROOT).with_suffix("").parts)
        for function in _functions(tree):
            is_kernel = any(getattr(each, "id", "") in KERNELS for each in function.decorator_list)
            if is_kernel:
                assert function.name not in kernels, f"two kernels are named {function.name}"
                kernels[function.name] = f"{module}.{function.name}"
            called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            calls += [(is_kernel, name.id) for name in called if isinstance(name, ast.Name)]
    return {kernels[name] for is_kernel, name in calls if name in kernels and not is_kernel}


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node
