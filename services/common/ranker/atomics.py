"""How numba kernels are compiled here, and ordering between processes for them: acquire loads, release stores, fences, prefetch.

Numba has no memory model of its own; these intrinsics reach LLVM's, so that the same kernel is right on x86-64 and on arm64.
They work on one-dimensional C-contiguous int64 arrays ("words") and are called from compiled code only.
Knows nothing of tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir  # type: ignore[import-untyped]  # ships no type information
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

KernelT = TypeVar("KernelT", bound=Callable[..., Any])

_WORD_ALIGN_BYTES = 8


def kernel(function: KernelT) -> KernelT:
    """Compile `function` on its first call: without the GIL, and cached on disk so that only the first process pays (seconds)."""
    compiled: KernelT = numba.njit(cache=True, nogil=True)(function)
    return compiled


def fast_kernel(function: KernelT) -> KernelT:
    """Compile `function` on its first call, as `kernel` does, but with sums that may be taken several at once.

    That is what makes them fast. In which order, the compiled code says, so equal calls give equal bits. Divisions by zero give what numpy
    gives, not an exception: looking for them would keep loops from being vectorised.
    """
    compiled: KernelT = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(function)
    return compiled


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of args[0][args[1]]."""
    array = make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


def _load_acquire(typingctx: Any, words: Any, index: Any) -> Any:  # noqa: ARG001 - numba's protocol
    """Return words[index]; no later access of this thread is seen to happen before it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, args), "acquire", _WORD_ALIGN_BYTES)

    return types.int64(words, types.int64), generate


def _load_relaxed(typingctx: Any, words: Any, index: Any) -> Any:  # noqa: ARG001 - numba's protocol
    """Return words[index] in one access, never cached in a register over a loop."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, args), "monotonic", _WORD_ALIGN_BYTES)

    return types.int64(words, types.int64), generate


def _store_release(typingctx: Any, words: Any, index: Any, value: Any) -> Any:  # noqa: ARG001 - numba's protocol
    """Set words[index] = value; every earlier access of this thread is seen to happen before it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _pointer(context, builder, signature, args), "release", _WORD_ALIGN_BYTES)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), generate


def _fence_acquire(typingctx: Any) -> Any:  # noqa: ARG001 - numba's protocol
    """Keep every earlier load before every later access."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - numba's protocol
        builder.fence("acquire")
        return context.get_dummy_value()

    return types.void(), generate


def _fence_release(typingctx: Any) -> Any:  # noqa: ARG001 - numba's protocol
    """Keep every earlier access before every later store."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001 - numba's protocol
        builder.fence("release")
        return context.get_dummy_value()

    return types.void(), generate


def _prefetch(typingctx: Any, words: Any, index: Any) -> Any:  # noqa: ARG001 - numba's protocol
    """Start loading the cache line of words[index]; it may be any index, nothing faults."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, int32, int32, int32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], function_type)
        address = builder.bitcast(_pointer(context, builder, signature, args), byte_pointer)
        # For reading (0), keep in all cache levels (3), data (1).
        builder.call(function, [address, ir.Constant(int32, 0), ir.Constant(int32, 3), ir.Constant(int32, 1)])
        return context.get_dummy_value()

    return types.void(words, types.int64), generate


load_acquire: Any = intrinsic(_load_acquire)
load_relaxed: Any = intrinsic(_load_relaxed)
store_release: Any = intrinsic(_store_release)
fence_acquire: Any = intrinsic(_fence_acquire)
fence_release: Any = intrinsic(_fence_release)
prefetch: Any = intrinsic(_prefetch)
