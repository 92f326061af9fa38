"""A Faster R-CNN as the state dict that torchvision's model of the same layers loads."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torchvision.models import get_model

from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.model import read_model
from detkit.weights.torchvision import MODELS, to_torchvision


def export_torchvision(out: Path, name: str | Path, weights: Path | None = None) -> str:
    """Write a model, named as for `detkit.load`, in torchvision's layout, and return the name of torchvision's model.

    `torchvision.models.get_model(<name>, weights=None, weights_backbone=None, num_classes=C + 1)` loads it; label i is
    its label i + 1. Sizes of pictures, numbers of proposals and thresholds are no part of a state dict. Raises
    DetkitError when the model is none of torchvision's.
    """
    config, detector = read_model(name, weights)
    for theirs in MODELS:
        with torch.device("meta"):
            like = get_model(theirs, weights=None, weights_backbone=None, num_classes=detector.num_classes + 1)
        try:
            state = to_torchvision(detector.state_dict(), like.state_dict())
        except DetkitError:
            continue
        buffer = io.BytesIO()
        torch.save({key: tensor.contiguous() for key, tensor in state.items()}, buffer)
        write_atomically(out, buffer.getvalue())
        return theirs
    raise DetkitError(
        f"{name}: {config.detector.name} on this backbone is none of torchvision's models ({', '.join(MODELS)}); "  # type: ignore[attr-defined]
        "write a .safetensors checkpoint"
    )
