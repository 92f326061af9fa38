"""Functions compiled by Numba that hold no lock of the interpreter, their machine code kept on disk."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function at its first call; options are those of `numba.njit`."""
    options = {"nogil": True, "error_model": "numpy"} | options
    try:
        machine_code: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep the machine code: compile in every process
        machine_code = njit(**options)(function)
    return machine_code
