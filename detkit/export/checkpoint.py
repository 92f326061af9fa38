"""A model as one detkit checkpoint, made smaller if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from detkit.classify.model import read_any
from detkit.config import Strict
from detkit.data.names import class_names
from detkit.detectors.fast_rcnn import RoIHead, truncated
from detkit.errors import DetkitError
from detkit.model import ModelConfig
from detkit.weights.checkpoint import Header, has_header, read_header, save_checkpoint


def export_checkpoint(
    out: Path, name: str | Path, weights: Path | None = None, *, half: bool = False, truncate: Sequence[int] = ()
) -> None:
    """Write a model, named as for `detkit.load`, as one file that needs neither config nor weights beside it.

    half: matrices and kernels are stored as float16, which halves the file; vectors, that is biases and batch norm,
    stay float32. What reads the file computes in float32 all the same. truncate: singular values to keep of each fully
    connected layer of a RoI head (Fast R-CNN, arXiv 1504.08083, section 3.1). A checkpoint's scores are kept, unless
    its network was truncated. Raises DetkitError for numbers beyond float16, and where truncation has or saves nothing.
    """
    config, network = read_any(name, weights)
    metrics = read_header(Path(name)).metrics if has_header(Path(name)) else {}
    if truncate:
        config, metrics = _truncate(config, network, truncate, str(name)), {}
    tensors = {key: _half(key, value) if half else value for key, value in network.state_dict().items()}
    save_checkpoint(out, tensors, Header(config.model_dump(mode="json"), class_names(config.classes), metrics))


def _truncate(config: Strict, network: nn.Module, ranks: Sequence[int], name: str) -> ModelConfig:
    """Truncate the layers of a detector's RoI head in place, and return its config."""
    head = getattr(network, "head", None)
    if not isinstance(head, RoIHead):
        raise DetkitError(f"--truncate: is for the fully connected layers of Fast and Faster R-CNN; {name} has none")
    if head.config.truncate:
        raise DetkitError(f"--truncate: {name} is truncated already, to {head.config.truncate}")
    if len(ranks) != len(head.layers) or min(ranks) < 1:
        raise DetkitError(
            f"--truncate: {name} has {len(head.layers)} fully connected layers, each of which needs a number above 0, "
            f"got {list(ranks)}"
        )
    for i, (layer, rank) in enumerate(zip(head.layers, ranks, strict=True)):
        assert isinstance(layer, nn.Linear)
        width, width_out = layer.in_features, layer.out_features
        most = width * width_out // (width + width_out)
        if rank > most:
            raise DetkitError(
                f"--truncate: layer {i + 1} of {name}, {width} wide in and {width_out} out, saves nothing above "
                f"{most}, got {rank}"
            )
        head.layers[i] = truncated(layer, rank)
    tree = config.model_dump(mode="json")
    tree["detector"]["head"]["truncate"] = list(ranks)
    return ModelConfig.model_validate(tree)


def _half(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    small = tensor.half()
    if not torch.isfinite(small).all():
        raise DetkitError(
            f"{name}: holds numbers beyond {torch.finfo(torch.half).max:.0f}, too large for half precision"
        )
    return small
