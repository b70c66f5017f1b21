"""Triton, or None where it is not installed; Any to type checkers, to whom ``kernel[grid](...)`` is no call."""

from typing import TYPE_CHECKING, Any

triton: Any
try:
    import triton
except ImportError:
    triton = None
if TYPE_CHECKING or triton:
    import triton.language as tl
else:
    tl = None
