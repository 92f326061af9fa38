"""Compiled forms of operations whose readable form stands beside the caller."""

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

_TRITON = find_spec("triton") is not None


def serve(tensor: Tensor) -> bool:
    """Whether the kernels written in Triton are used for a tensor: it is on a GPU, and Triton is there and knows it."""
    return tensor.device.type == "cuda" and _TRITON and _modern(tensor.device)


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """The context to launch kernels in: Triton launches on the current GPU, wherever the tensors are."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _modern(device: torch.device) -> bool:
    # A tensor that only pretends to be on a GPU, as in tracing, needs none.
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (7, 0)
