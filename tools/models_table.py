"""Measure what `detkit models` tells, and write it to detkit/models.json.

python tools/models_table.py

Parameters and operations are counted on the meta device, without memory. A backbone is counted with a classifier of
1000 classes: the one of its paper, or for detkit's own an average and a linear layer. A detector of proposals is
counted with as many as its config lets through, or with 2000, about what selective search gives (R-CNN, section 2.2).
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from inspect import getdoc
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as experimental
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import detkit
from detkit.backbones import BACKBONES, BackboneConfig
from detkit.backbones.timm import Unfilled
from detkit.backbones.torchvision import PYRAMIDS
from detkit.backbones.whole import build_whole
from detkit.backbones.zoo import FAMILIES, ZOO
from detkit.classify.classifier import Classifier
from detkit.classify.model import build_classifier, is_classifier, read_classifier_config
from detkit.config import shipped_configs
from detkit.detectors import DETECTORS, rcnn
from detkit.model import build_detector, read_config
from detkit.models import TABLE, Entry

CLASSES = 1000
PROPOSALS = 2000


def cost(
    build: Callable[[], nn.Module], size_hw: tuple[int, int], proposals: int | None = None
) -> tuple[nn.Module, int, float]:
    """Return a network without memory, its parameters, and its operations for one picture in billions.

    proposals: how many boxes come with the picture, where the network looks at such.
    """
    with torch.device("meta"), Unfilled():
        network = build().eval()
        inputs = [torch.empty(1, 3, *size_hw)]
        if proposals is not None:
            inputs += [torch.empty(1, proposals, 4), torch.ones(1, proposals, dtype=torch.bool)]
    counter = FlopCounterMode(display=False)
    # Without numbers, every box counts as one that is looked at. By another backend attention is one operation that
    # the counter does not know on every device.
    every = patch.object(experimental, "meta_nonzero_assume_all_nonzero", True)
    attention = sdpa_kernel(SDPBackend.MATH)
    with every, attention, patch.object(rcnn, "warp", crops), torch.device("meta"), torch.no_grad(), counter:
        network(*inputs)
    operations = round(counter.get_total_flops() / 1e9, 3)
    return network, sum(parameter.numel() for parameter in network.parameters()), operations


def crops(images: Tensor, picture: Tensor, boxes: Tensor, size: int, context: int) -> Tensor:
    """Return what `warp` does for tensors without memory."""
    return images.new_empty(len(boxes), images.shape[1], size, size)


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring."""
    return " ".join((text or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def detectors() -> list[Entry]:
    """Every detector and its paper."""
    found = {name: importlib.import_module(path.partition(":")[0]) for name, path in DETECTORS.items()}
    return [Entry("detector", name, first_sentence(module.__doc__)) for name, module in found.items()]


def own_backbone(name: str) -> Entry:
    """Measure a backbone of detkit's own, with an average and a linear layer."""
    with torch.device("meta"), Unfilled():
        strides = BACKBONES[name]().strides

    def build() -> nn.Module:
        return Classifier(BACKBONES[name](strides[-1:]), CLASSES)

    about = first_sentence(getdoc(BACKBONES[name]))
    return Entry("backbone", name, about, *cost(build, (224, 224))[1:], (224, 224), strides)


def zoo_backbone(name: str) -> Entry:
    """Measure a network of timm's or torchvision's, with the classifier of its paper, at the size it was made for."""
    ((title, family),) = [(title, family) for title, family in FAMILIES.items() if name in family.models]
    source = family.models[name]
    size, weights = (224, 224), source if source in PYRAMIDS or "." in source else None
    with torch.device("meta"), Unfilled():
        if source in PYRAMIDS:
            strides = tuple(PYRAMIDS[source]((32,), False).layers)
        else:
            model = timm.create_model(source.removeprefix("timm/"), features_only=True)
            strides = tuple(dict.fromkeys(model.feature_info.reduction()))
            size = tuple(model.pretrained_cfg["input_size"][1:])

    def build() -> nn.Module:
        return build_whole(BackboneConfig(name=name), CLASSES, size)

    about = f"{title}: {family.paper}"
    return Entry("backbone", name, about, *cost(build, size)[1:], size, strides, weights)


def shipped_config(name: str, path: Path) -> Entry:
    """Measure the model of a config that comes with detkit; a classifier that names no classes has ImageNet's 1000."""
    about = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").rstrip(".")
    config: Any
    if is_classifier(name):
        config = read_classifier_config(name)
        if not config.classes:
            config = config.model_copy(update={"classes": [f"class {i}" for i in range(CLASSES)]})
        build: Callable[[], nn.Module] = partial(build_classifier, config)
    else:
        config = read_config(name)
        build = partial(build_detector, config)
    size, proposals = config.preprocess.size, getattr(config, "proposals", None)
    network, *counts = cost(build, size, proposals and (proposals.max_proposals or PROPOSALS))
    beside = path.with_suffix(".safetensors")
    weights = f"comes with detkit ({beside.name})" if beside.exists() else None
    strides = tuple(getattr(getattr(network, "backbone", None), "strides", ())) or None
    return Entry("config", name, about, *counts, size, strides, weights)


def jobs() -> dict[str, Callable[[], Entry]]:
    """What measures each backbone and config, by its name."""
    found: dict[str, Callable[[], Entry]] = {name: partial(own_backbone, name) for name in BACKBONES}
    found |= {name: partial(zoo_backbone, name) for name in ZOO}
    return found | {name: partial(shipped_config, name, path) for name, path in shipped_configs().items()}


def main() -> None:
    """Write the table, a row a line."""
    warnings.filterwarnings("ignore")
    entries = detectors()
    for name, job in jobs().items():
        print(name, flush=True)
        entries.append(job())
    write(entries)


def write(entries: Sequence[Entry]) -> None:
    """Write entries as the table of the package."""
    rows = [json.dumps(asdict(entry), ensure_ascii=False) for entry in entries]
    Path(detkit.__file__).with_name(TABLE).write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
