"""A network as Darknet's own files: a .cfg that describes it, the .weights with its numbers, and the .names.

Layers are numbered as in Darknet: the first after [net] is 0. A .cfg that was read is kept to the letter; of the other
networks it is written with the layers in the order of the released files, so that whatever reads those reads it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from detkit import __version__
from detkit.backbones import BACKBONES
from detkit.backbones.darknet import DarknetBackbone, Residual
from detkit.backbones.layers import ACTIVATIONS, Local, Reorg, SamePool
from detkit.backbones.norm import DarknetNorm
from detkit.classify.classifier import Classifier
from detkit.classify.darknet import DarknetScores
from detkit.classify.model import ClassifierConfig, read_any
from detkit.config import Strict
from detkit.data.names import class_names
from detkit.detectors.darknet import Darknet, darknet_preprocess
from detkit.detectors.yolov1 import YOLOv1
from detkit.detectors.yolov2 import STRIDE, YOLOv2, YOLOv2Config, YOLOv2Loss
from detkit.detectors.yolov3 import YOLOv3
from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.model import ModelConfig
from detkit.necks.yolo_fpn import Level, SpatialPyramidPooling
from detkit.ops.nms import Selection
from detkit.weights.darknet import darknet_header, parse_cfg, read_weights, save_darknet_weights

_ACTIVATION_NAMES = {type(make()): name for name, make in ACTIVATIONS.items() if name != "linear"}


def export_darknet(out: Path, name: str | Path, weights: Path | None = None) -> list[str]:
    """Write a model, named as for `detkit.load`, as `out` (.cfg) with the .weights and .names of the same name.

    A .weights file that the model comes from gives its header; else the header counts the pictures that the detector
    has `seen`. Returns what a .cfg does not say of the model, a sentence each. Raises DetkitError where a file exists
    already or the model has no Darknet form.
    """
    for file in (out, out.with_suffix(".weights"), out.with_suffix(".names")):
        if file.exists():
            raise DetkitError(f"--out {out}: {file} exists already; give a name of which no file exists")
    config, network = read_any(name, weights)
    source = weights if weights is not None and weights.suffix == ".weights" else None
    if Path(name).suffix == ".cfg":  # with weights of any name, such as Darknet's .backup
        source = weights or Path(name).with_suffix(".weights")
    header = read_weights(source).header if source else darknet_header(seen=int(getattr(network, "seen", 0)))
    save_darknet(out, network, config.preprocess.size, class_names(config.classes), header)
    return _unsaid(config, out)


def save_darknet(
    out: Path, network: nn.Module, size_hw: tuple[int, int], classes: Sequence[str], header: bytes | None = None
) -> None:
    """Write a network for input of size (height, width) as `out` (.cfg), .weights and .names; arguments as above."""
    for name in classes:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DetkitError(f"classes: {name!r} cannot stand on a line of a .names file; rename the class")
    cfg = darknet_cfg(network, size_hw)
    layers: Any = network.darknet_layers
    save_darknet_weights(out.with_suffix(".weights"), layers(), header or darknet_header())
    write_atomically(out.with_suffix(".names"), "".join(f"{name}\n" for name in classes))
    write_atomically(out, cfg)


def darknet_cfg(network: nn.Module, size_hw: tuple[int, int]) -> str:
    """Return the text of a network's .cfg for input of size (height, width).

    network: what was read from a .cfg, which is returned as it was, or a YOLOv1, YOLOv2, YOLOv3 or Classifier on a
    backbone of Darknet's. Raises DetkitError for any other.
    """
    read = network.backbone if isinstance(network, Classifier) else network
    if isinstance(read, Darknet | DarknetScores):
        return read.cfg
    kind = type(network).__name__
    if type(network) not in _FORMS:  # a subclass, such as YOLO9000, has another head
        raise DetkitError(
            f"{kind} has no Darknet form here, only {', '.join(form.__name__ for form in _FORMS)} and what was read "
            "from a .cfg; export it with --format checkpoint"
        )
    if not isinstance(network.backbone, DarknetBackbone):
        own = (name for name, body in BACKBONES.items() if isinstance(body, type) and issubclass(body, DarknetBackbone))
        raise DetkitError(
            f"{kind} on a {type(network.backbone).__name__} has no Darknet form, only on {', '.join(own)}; "
            "export it with --format checkpoint"
        )
    cfg = _Cfg(size_hw)
    _FORMS[type(network)](cfg, network)
    return f"# {kind} on {type(network.backbone).__name__}, written by detkit {__version__}\n{cfg.text()}"


def _unsaid(config: ModelConfig | ClassifierConfig, cfg: Path) -> list[str]:
    """What is read of a .cfg otherwise than it stands in the model's config."""
    sections = parse_cfg(cfg.read_text(encoding="utf-8"), str(cfg))
    read: dict[str, Strict] = {"preprocess": darknet_preprocess(sections), "selection": Selection()}
    keys = {"preprocess": ["mode", "size", "interpolation"]}
    if isinstance(config, ModelConfig):
        keys["selection"] = list(Selection.model_fields)
    if config.preprocess.mode == "letterbox":
        keys["preprocess"] += ["fill", "minimal"]
    detector = getattr(config, "detector", None)
    if isinstance(detector, YOLOv2Config):
        read["detector.loss"] = YOLOv2Loss()
        keys["detector.loss"] = ["weigh_small", "prior_pictures", "weights.prior"]
    unsaid = [
        f"a .cfg does not say {part}.{key}, which is {own} and will be read as {other}"
        for part, names in keys.items()
        for key in names
        if (own := attrgetter(f"{part}.{key}")(config)) != (other := attrgetter(key)(read[part]))
    ]
    if getattr(detector, "tree", None) is not None:
        unsaid.append("the tree that its [region] names is not written; put that file beside the .cfg")
    return unsaid


# ----------------------------------------------------------------------------------------------------------------------
# Sections


class _Cfg:
    """The sections of a .cfg, which grow layer by layer."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.size_hw = size_hw
        self.sections: list[tuple[str, dict[str, Any]]] = []
        self.add("net", batch=1, subdivisions=1, width=size_hw[1], height=size_hw[0], channels=3)

    @property
    def last(self) -> int:
        """The number of the last layer."""
        return len(self.sections) - 2

    def add(self, kind: str, **options: Any) -> int:
        """Append a section, and return the number of its layer."""
        self.sections.append((kind, options))
        return self.last

    def route(self, *layers: int) -> int:
        """Go on with one layer, or with several side by side; numbers below 0 count from the route, as in Darknet."""
        return self.add("route", layers=[layer - self.last - 1 for layer in layers])

    def append(self, module: nn.Module) -> int:
        """Append what a module is made of, and return the number of its last layer.

        Batch norm and activation belong to the section before them.
        """
        match module:
            case nn.Sequential():
                for part in module:
                    self.append(part)
            case nn.Conv2d(kernel_size=(size, _), stride=(stride, _)):
                self.add(
                    "convolutional", filters=module.out_channels, size=size, stride=stride, pad=1, activation="linear"
                )
            case Local(kernel=size, stride=stride, padding=pad):
                self.add("local", filters=module.shape[0], size=size, stride=stride, pad=pad, activation="linear")
            case nn.Linear():
                self.add("connected", output=module.out_features, activation="linear")
            case DarknetNorm():
                kind, options = self.sections[-1]
                self.sections[-1] = kind, {"batch_normalize": 1, **options}
            case nn.MaxPool2d(kernel_size=size, stride=stride):
                self.add("maxpool", size=size, stride=stride)
            case SamePool(kernel=size):
                self.add("maxpool", size=size, stride=1)
            case Residual():
                before = self.last
                self.append(module.reduce)
                self.append(module.expand)
                self.add("shortcut", **{"from": before - self.last - 1}, activation="linear")
            case SpatialPyramidPooling():
                before = self.last
                pools: list[int] = []
                for size in (5, 9, 13):
                    if pools:
                        self.route(before)
                    pools.append(self.add("maxpool", size=size, stride=1))
                self.route(*reversed(pools), before)
            case Reorg(stride=stride):
                self.add("reorg", stride=stride)
            case nn.Dropout(p=probability):
                if probability:
                    self.add("dropout", probability=probability)
            case nn.Flatten() | nn.Identity():  # a vector is a map of one pixel to Darknet
                pass
            case _:
                self.sections[-1][1]["activation"] = _ACTIVATION_NAMES[type(module)]
        return self.last

    def text(self) -> str:
        """Return the file."""
        return "\n".join(
            f"[{kind}]\n" + "".join(f"{key}={_value(value)}\n" for key, value in options.items())
            for kind, options in self.sections
        )


def _value(value: Any) -> str:
    """Numbers with as many digits as tell them from all other float32."""
    match value:
        case list():
            return ",".join(map(_value, value))
        case float():
            return np.format_float_positional(np.float32(value), trim="-")
        case _:
            return str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Networks


def _body(cfg: _Cfg, backbone: Any) -> dict[int, int]:
    """Append the stages of a backbone; returns the number of the last layer of each by its stride."""
    stride = backbone.strides[-1]
    if any(side % stride for side in cfg.size_hw):
        raise DetkitError(
            f"size {list(cfg.size_hw)}: must be multiples of {stride} for a .cfg, because Darknet's pooling rounds up"
        )
    return {stride: cfg.append(stage) for stride, stage in zip(backbone.stage_strides, backbone.stages, strict=False)}


def _yolov1(cfg: _Cfg, detector: YOLOv1) -> None:
    _body(cfg, detector.backbone)
    cfg.append(detector.neck)
    cfg.append(detector.head)
    cfg.add(
        "detection",
        classes=detector.num_classes,
        coords=4,
        side=detector.side,
        num=detector.boxes,
        sqrt=1,
        rescore=1,
        coord_scale=detector.loss.lambda_coord,
        noobject_scale=detector.loss.lambda_noobj,
    )


def _yolov2(cfg: _Cfg, detector: YOLOv2) -> None:
    maps = _body(cfg, detector.backbone)
    neck, loss = detector.neck, detector.loss
    cfg.append(neck.coarse)
    coarse = cfg.last
    if neck.passthrough is not None:
        cfg.route(maps[STRIDE // 2])
        cfg.append(neck.passthrough.squeeze)
        cfg.append(neck.passthrough.reorg)
        cfg.route(cfg.last, coarse)
    cfg.append(neck.last)
    cfg.append(detector.head)
    cfg.add(
        "region",
        anchors=(detector.anchors / STRIDE).flatten().tolist(),
        classes=detector.num_classes,
        coords=4,
        num=len(detector.anchors),
        softmax=1,
        bias_match=1,
        rescore=int(loss.rescore),
        object_scale=loss.weights.object,
        noobject_scale=loss.weights.no_object,
        class_scale=loss.weights.classes,
        coord_scale=loss.weights.coords,
        absolute=1,
        thresh=loss.ignore_iou,
    )


def _yolov3(cfg: _Cfg, detector: YOLOv3) -> None:
    maps = _body(cfg, detector.backbone)
    anchors = [number for level in detector.anchors for number in level.flatten().tolist()]
    behind = len(anchors) // 2
    coarser: tuple[int, Level, int] | None = None  # stride, level, and the last layer of its chain
    for level, head, stride, own in zip(
        detector.neck.levels,
        reversed(detector.heads),
        reversed(detector.strides),
        reversed(detector.anchors),
        strict=True,
    ):
        assert isinstance(level, Level)
        if coarser is not None:
            above, other, chain = coarser
            assert other.lateral is not None
            cfg.route(chain)
            cfg.append(other.lateral)
            cfg.add("upsample", stride=above // stride)
            cfg.route(cfg.last, maps[stride])
        coarser = stride, level, cfg.append(level.chain)
        cfg.append(level.out)
        cfg.append(head)
        behind -= len(own)
        cfg.add(
            "yolo",
            mask=list(range(behind, behind + len(own))),
            anchors=anchors,
            classes=detector.num_classes,
            num=len(anchors) // 2,
            ignore_thresh=detector.loss.ignore_iou,
            truth_thresh=1,
        )


def _classifier(cfg: _Cfg, classifier: Classifier) -> None:
    if not isinstance(classifier.norm, nn.Identity):
        raise DetkitError("classifier.norm: Darknet has no layer norm; export it with --format checkpoint")
    _body(cfg, classifier.backbone)
    if classifier.pool == "features":
        cfg.add("avgpool")
    cfg.append(classifier.head)
    cfg.append(classifier.activation)
    if classifier.pool == "scores":
        cfg.add("avgpool")
    cfg.add("softmax", groups=1)


_FORMS: dict[type[nn.Module], Callable[[_Cfg, Any], None]] = {
    YOLOv1: _yolov1,
    YOLOv2: _yolov2,
    YOLOv3: _yolov3,
    Classifier: _classifier,
}
