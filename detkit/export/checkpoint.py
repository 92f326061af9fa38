"""A model as one detkit checkpoint, of half the size if wanted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from detkit.data.names import class_names
from detkit.errors import DetkitError
from detkit.model import read_model
from detkit.weights.checkpoint import Header, has_header, read_header, save_checkpoint


def export_checkpoint(out: Path, name: str | Path, weights: Path | None = None, *, half: bool = False) -> None:
    """Write a model, named as for `detkit.load`, as one file that needs neither config nor weights beside it.

    half: matrices and kernels are stored as float16, which halves the file; vectors, that is biases and batch norm,
    stay float32. What reads the file computes in float32 all the same. A checkpoint's scores are kept. Raises
    DetkitError for numbers beyond float16.
    """
    config, detector = read_model(name, weights)
    tensors = {key: _half(key, value) if half else value for key, value in detector.state_dict().items()}
    metrics = read_header(Path(name)).metrics if has_header(Path(name)) else {}
    save_checkpoint(out, tensors, Header(config.model_dump(mode="json"), class_names(config.classes), metrics))


def _half(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    small = tensor.half()
    if not torch.isfinite(small).all():
        raise DetkitError(
            f"{name}: holds numbers beyond {torch.finfo(torch.half).max:.0f}, too large for half precision"
        )
    return small
