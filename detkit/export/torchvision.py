"""A Faster R-CNN as the state dict that torchvision's model of the same layers loads."""

from __future__ import annotations

import io
from operator import attrgetter
from pathlib import Path

import torch
from torchvision.models import get_model

from detkit.detectors.base import Detector
from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.model import ModelConfig, read_model
from detkit.weights.torchvision import MODELS, PREFIX, from_torchvision, to_torchvision, torchvision_model_config

# What the weights were learned for and a state dict does not tell.
_LEARNED_FOR = (
    *("strides", "pooled_level", "anchors.sizes", "anchors.ratios", "head.delta_weights"),
    *(f"head.pooling.{key}" for key in ("method", "size", "sampling", "half_pixel")),
)


def export_torchvision(out: Path, name: str | Path, weights: Path | None = None) -> str:
    """Write a model, named as for `detkit.load`, in torchvision's layout, and return the name of torchvision's model.

    `torchvision.models.get_model(<name>, weights=None, weights_backbone=None, num_classes=C + 1)` loads it; label i is
    its label i + 1. Sizes of pictures, numbers of proposals and thresholds are no part of a state dict; among models of
    the same layers the name, sizes and numbers decide. Raises DetkitError when the model is none of torchvision's: its
    layers, strides, anchors, box deltas, pooling or the mean and deviation of its pictures are others.
    """
    config, detector = read_model(name, weights)
    known = {
        theirs: ModelConfig.model_validate(torchvision_model_config(theirs, detector.num_classes)) for theirs in MODELS
    }

    def unlike(theirs: str) -> tuple[bool, bool, bool]:
        size, rpn = known[theirs].preprocess.size, known[theirs].detector.rpn  # type: ignore[attr-defined]
        ours = getattr(config.detector, "rpn", None)
        return str(name) != PREFIX + theirs, config.preprocess.size != size, ours != rpn

    for theirs in sorted(MODELS, key=unlike):
        with torch.device("meta"):
            like = get_model(theirs, weights=None, weights_backbone=None, num_classes=detector.num_classes + 1)
        try:
            state = to_torchvision(detector.state_dict(), like.state_dict())
        except DetkitError:
            continue
        _require_same_use(config, detector, known[theirs], f"{name}: has the layers of torchvision's {theirs}")
        buffer = io.BytesIO()
        torch.save({key: tensor.contiguous() for key, tensor in state.items()}, buffer)
        write_atomically(out, buffer.getvalue())
        return theirs
    raise DetkitError(
        f"{name}: {config.detector.name} on this backbone is none of torchvision's models ({', '.join(MODELS)}); "  # type: ignore[attr-defined]
        "write a .safetensors checkpoint"
    )


def _require_same_use(config: ModelConfig, detector: Detector, known: ModelConfig, source: str) -> None:
    """Raise DetkitError when torchvision's model would do something else with the same weights."""
    pairs = {f"detector.{key}": [attrgetter(key)(c.detector) for c in (config, known)] for key in _LEARNED_FOR}
    state = detector.state_dict()
    for key, wanted in from_torchvision({}).items():  # what pictures are normalised with
        # Three digits, since it may have been stored in half precision.
        pairs[key] = [[round(x, 3) for x in tensor.flatten().tolist()] for tensor in (state[key], wanted)]
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise DetkitError(f"{source}, but its {key} is {ours} and not {theirs}; write a .safetensors checkpoint")
