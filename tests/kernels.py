"""What numba has compiled in this process, for tests of warm-ups. Imports in both environments."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

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
    trees = {_module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted((REPOSITORY_ROOT / "services").rglob("*.py"))}
    kernels = {f"{module}.{each.name}" for module, tree in trees.items() for each in _functions(tree) if _is_kernel(each)}
    found: set[str] = set()
    for module, tree in trees.items():
        named = {each.name: f"{module}.{each.name}" for each in _functions(tree)}
        for each in ast.walk(tree):
            if isinstance(each, ast.ImportFrom):
                named |= {alias.asname or alias.name: f"{each.module}.{alias.name}" for alias in each.names}
        for function in _functions(tree):
            called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            if not _is_kernel(function):
                found |= {named.get(name.id, "") for name in called if isinstance(name, ast.Name)}
    return found & kernels


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY_ROOT).with_suffix("").parts)


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _is_kernel(function: ast.FunctionDef) -> bool:
    return any(getattr(each, "id", "") in KERNELS for each in function.decorator_list)
