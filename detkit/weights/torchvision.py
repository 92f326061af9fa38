"""State dicts of torchvision's Faster R-CNNs, in and out.

torchvision counts the background as class 0 and has a box for it too; detkit has it last, without a box. Of COCO's 90
category ids ten stand for nothing ("N/A"), but their rows are there; here they are called by their id, since names must
differ. Backbones come with batch norm, or with its statistics frozen, which lack the number of batches seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from detkit.errors import DetkitError, nearest
from detkit.weights.checkpoint import read_tensors

PREFIX = "torchvision/"
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_FPN: dict[str, Any] = {
    "fpn": {"channels": 256},
    "pooled_level": True,
    "anchors": {"sizes": [[32], [64], [128], [256], [512]]},
    "rpn": {"inference": {"before": 1000, "after": 1000}, "training": {"before": 2000, "after": 2000}},
    "head": {"pooling": {"method": "align", "half_pixel": False}},
    "loss": {
        "rpn": {"cross_boundary": True, "beta": 1 / 9},
        "roi": {"samples": 512, "background_iou": [0, 0.5], "beta": 1 / 9},
    },
}
_RESNET50: dict[str, Any] = {**_FPN, "backbone": {"name": "timm/resnet50"}, "strides": [4, 8, 16, 32]}
_MOBILENET: dict[str, Any] = {
    **_FPN,
    "backbone": {"name": "mobilenet_v3_large"},
    "strides": [32, 32],
    "anchors": {"sizes": [[32, 64, 128, 256, 512]] * 3},
}
# What torchvision calls each model: our detector's configuration, and the shorter and longest side of a picture.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "fasterrcnn_resnet50_fpn": (_RESNET50, (800, 1333)),
    "fasterrcnn_resnet50_fpn_v2": (
        {
            **_RESNET50,
            "fpn": {"channels": 256, "norm": True},
            "rpn": {**_FPN["rpn"], "depth": 2},
            "head": {**_FPN["head"], "convolutions": 4, "widths": [1024]},
        },
        (800, 1333),
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": ({**_MOBILENET, "rpn": {**_FPN["rpn"], "score": 0.05}}, (800, 1333)),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (
        {**_MOBILENET, "rpn": {**_FPN["rpn"], "score": 0.05, "inference": {"before": 150, "after": 150}}},
        (320, 640),
    ),
}
# The released file whose batch norms divide by the bare standard deviation (torchvision: overwrite_eps), by its hash.
_WITHOUT_EPS = "258fb6c6"
_EPS = 1e-5

# torchvision's names, and ours for them. Numbers in (?:…)? are missing in files from before torchvision 0.13.
_NAMES = (
    (r"backbone\.body\.(conv1|bn1|layer\d)\.", r"backbone.model.\1."),
    (r"backbone\.body\.(\d+)\.", r"backbone.features.\1."),
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.(?:(\d)\.)?(?=[a-z])", r"neck.lateral.\1.\2."),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.(?:(\d)\.)?(?=[a-z])", r"neck.output.\1.\2."),
    (r"rpn\.head\.conv\.(?:(\d)\.0\.)?(?=[a-z])", r"rpn.convolutions.\1.0."),
    (r"rpn\.head\.cls_logits\.", r"rpn.objectness."),
    (r"rpn\.head\.bbox_pred\.", r"rpn.delta."),
    (r"roi_heads\.box_head\.fc6\.", r"head.layers.0."),
    (r"roi_heads\.box_head\.fc7\.", r"head.layers.1."),
    (r"roi_heads\.box_head\.5\.", r"head.layers.0."),
    (r"roi_heads\.box_head\.(\d)\.", r"head.convolutions.\1."),
    (r"roi_heads\.box_predictor\.cls_score\.", r"head.score."),
    (r"roi_heads\.box_predictor\.bbox_pred\.", r"head.delta."),
)


def torchvision_model_config(name: str, num_classes: int | None = None) -> dict[str, Any]:
    """Return the configuration tree of a model, `torchvision/<name>`.

    num_classes: without the background; by default COCO's 90. Other than those are called by their numbers.
    """
    short = _known(name)
    detector, size = MODELS[short]
    classes = coco_classes(short)
    if num_classes not in (None, len(classes)):
        classes = [str(label) for label in range(num_classes or 0)]
    return {
        "classes": classes,
        "detector": {"name": "faster_rcnn", "clip": "picture", **detector},
        "preprocess": {
            "mode": "shortest_edge",
            "size": list(size),
            "interpolation": "float_linear",
            "fill": _MEAN,  # torchvision pads after it has normalised, with zeros
        },
        "selection": {"score": 0.05, "iou": 0.5, "max_detections": 100},
    }


def coco_classes(name: str) -> list[str]:
    """Return the names of the 90 category ids of COCO as torchvision lists them."""
    categories = get_model_weights(name).COCO_V1.meta["categories"]
    return [f"N/A {i}" if category == "N/A" else category for i, category in enumerate(categories) if i]


def read_torchvision(name: str, path: Path | None) -> dict[str, Tensor]:
    """Read the state dict of a model, `torchvision/<name>`, under detkit's names.

    path: a PyTorch file, of which nothing is ever executed, or a .safetensors file; without one the released weights
    are downloaded, once. Raises DetkitError when the file cannot be read or had.
    """
    short = _known(name)
    if path is None:
        path = _download(short)
    tensors = read_tensors(path)
    if "roi_heads.box_predictor.cls_score.bias" not in tensors:
        raise DetkitError(
            f"{path}: is no state dict of torchvision's {short}: it lacks roi_heads.box_predictor.cls_score.bias"
        )
    return from_torchvision(tensors, eps=0 if _hash(path).startswith(_WITHOUT_EPS) else _EPS)


def from_torchvision(tensors: Mapping[str, Tensor], eps: float = _EPS) -> dict[str, Tensor]:
    """Rename and rearrange torchvision's state dict of a Faster R-CNN; names that are not its are left as they are.

    eps: what its batch norms add to the variance. Ours add 1e-5; scales make up for the difference.
    """
    found = {f"normalize.{name}": torch.tensor(value).view(3, 1, 1) for name, value in (("mean", _MEAN), ("std", _STD))}
    for theirs, tensor in tensors.items():
        name = _rename(theirs)
        if name.startswith("head.score."):
            tensor = tensor.roll(-1, 0)
        elif name.startswith("head.delta."):
            tensor = tensor[4:]
        found[name] = tensor
        if name.endswith("running_var"):
            stem = name.removesuffix("running_var")
            found.setdefault(f"{stem}num_batches_tracked", torch.tensor(0))
            if eps != _EPS:
                scale = ((tensor.double() + _EPS) / (tensor.double() + eps)).sqrt()
                weight = tensors[f"{theirs.removesuffix('running_var')}weight"]
                found[f"{stem}weight"] = (weight * scale).to(weight.dtype)
    return found


def to_torchvision(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a detector's state dict under torchvision's names; like: the state dict of torchvision's model.

    The background's box, which detkit does not have, is zero. Raises DetkitError when the two are not the same network.
    """
    found = {}
    for theirs, wanted in like.items():
        name = _rename(theirs)
        if name not in tensors:
            raise DetkitError(f"the detector is not torchvision's: it has no {name} for {theirs}")
        tensor = tensors[name]
        if name.startswith("head.score."):
            tensor = tensor.roll(1, 0)
        elif name.startswith("head.delta."):
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        if tensor.shape != wanted.shape:
            raise DetkitError(
                f"the detector is not torchvision's: {theirs} has shape {list(wanted.shape)}, the detector's is "
                f"{list(tensor.shape)}"
            )
        found[theirs] = tensor
    kept = {_rename(theirs) for theirs in like} | {"normalize.mean", "normalize.std"}
    surplus = [name for name in tensors if name not in kept and not name.endswith("num_batches_tracked")]
    if surplus:
        raise DetkitError(f"the detector is not torchvision's, which has no {surplus[0]}")
    return found


def _rename(theirs: str) -> str:
    for pattern, ours in _NAMES:
        match = re.match(pattern, theirs)
        if match:
            # A group that is missing is the number 0, which older files leave out.
            filled = [group or "0" for group in match.groups()]
            start = re.sub(r"\\(\d)", lambda number: filled[int(number[1]) - 1], ours)  # noqa: B023
            return start + theirs[match.end() :]
    return theirs


def _known(name: str) -> str:
    short = name.removeprefix(PREFIX)
    if short not in MODELS:
        names = [PREFIX + known for known in MODELS]
        raise DetkitError(f"unknown model {name!r}{nearest(name, names)} (known: {', '.join(names)})")
    return short


def _download(name: str) -> Path:
    url: str = get_model_weights(name).COCO_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        except (OSError, URLError, RuntimeError) as error:
            raise DetkitError(
                f"{PREFIX}{name}: the released weights could not be downloaded from {url} ({error}); connect to the "
                "network, or pass the file with --weights"
            ) from None
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
