"""Any network that a Darknet .cfg describes, run as it is read (Redmon, Darknet, 2013-2016, and Bochkovskiy's fork).

Shapes: B pictures; a layer's shape is (channels, height, width), of a vector (length, 1, 1).
Layers are numbered as in Darknet: the first after [net] is 0, and -1 stands here for the picture.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.layers import ACTIVATIONS, Local, Reorg
from detkit.backbones.norm import DarknetNorm
from detkit.config import Strict
from detkit.detectors.base import Detector
from detkit.errors import DetkitError, nearest
from detkit.ops.nms import Selection
from detkit.ops.word_tree import WordTree
from detkit.ops.yolo import tree_candidates, yolo_candidates, yolov1_candidates
from detkit.preprocess import Preprocess
from detkit.structures import Batch, Candidates, Target
from detkit.weights.darknet import Section, load_darknet_weights, parse_cfg, read_cfg, read_text
from detkit.weights.word_tree import Tree, parent_labels, read_tree

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """A module, the shape of what it returns, and the numbers of the layers it reads (the one before if not given)."""

    module: nn.Module
    shape: Shape
    sources: tuple[int, ...] = ()


# ----------------------------------------------------------------------------------------------------------------------
# Modules that PyTorch has no equal of


class Route(nn.Module):
    """Concatenation of maps, or of one group of each one's channels."""

    def __init__(self, groups: int, group: int) -> None:
        super().__init__()
        self.groups, self.group = groups, group

    def forward(self, *maps: Tensor) -> Tensor:
        """[B, Cᵢ, H, W] each → [B, ΣCᵢ / groups, H, W]."""
        if self.groups > 1:
            maps = tuple(x.chunk(self.groups, 1)[self.group] for x in maps)
        return torch.cat(maps, 1) if len(maps) > 1 else maps[0]


class Shortcut(nn.Module):
    """Sum with other maps, then an activation.

    Of a wider or larger map the first channels and every n-th pixel count; a narrower one adds to the first channels
    (shortcut_cpu in blas.c).
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """[B, C, H, W] and others → [B, C, H, W]."""
        for other in others:
            step = other.shape[-1] // x.shape[-1]
            if step > 1:
                other = other[..., ::step, ::step]
            missing = x.shape[1] - other.shape[1]
            if missing:  # F.pad with a negative number cuts
                other = F.pad(other, (0, 0, 0, 0, 0, missing))
            x = x + other
        out: Tensor = self.activation(x)
        return out


class Connected(nn.Linear):
    """A fully connected layer that keeps vectors in the form of maps."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, N, 1, 1]."""
        return super().forward(x.flatten(1))[:, :, None, None]


class GroupSoftmax(nn.Module):
    """Softmax over each of several equal parts of a vector."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        return x.reshape(len(x), self.groups, -1).softmax(2).view(x.shape)


class GridHead(nn.Module):
    """[yolo] or [region]: passes the raw map on; `Darknet.decode` reads it with what is written here.

    anchors [A, 2]: width and height in pixels of the network's input. tree: of the classes of a [region], if they have
    one.
    """

    anchors: Tensor
    tree: WordTree | None

    def __init__(self, anchors: Tensor, num_classes: int, scale_xy: float, softmax: bool) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors, persistent=False)
        self.num_classes, self.scale_xy, self.softmax = num_classes, scale_xy, softmax
        self.tree = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the map as it is."""
        return x


class DetectionHead(nn.Module):
    """[detection]: passes the vector of YOLOv1 on; `Darknet.decode` reads it with what is written here."""

    def __init__(self, side: int, boxes: int, num_classes: int, squared: bool) -> None:
        super().__init__()
        self.side, self.boxes, self.num_classes, self.squared = side, boxes, num_classes, squared

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, 1, 1] → [B, N]."""
        return x.flatten(1)


# ----------------------------------------------------------------------------------------------------------------------
# One builder per kind of section: (section, shapes of the layers before it) → Layer


def _input(section: Section, shapes: Mapping[int, Shape]) -> Shape:
    return shapes[section.layer - 1]


def _layer_number(section: Section, key: str, number: int) -> int:
    absolute = number + section.layer if number < 0 else number
    if not 0 <= absolute < section.layer:
        raise section.error(f"{key} names layer {number}, but only layers 0 to {section.layer - 1} come before", key)
    return absolute


def _activation(section: Section, default: str = "logistic") -> nn.Module:
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.error(
            f"unknown activation {name!r}{nearest(name, ACTIVATIONS)} (known: {', '.join(ACTIVATIONS)})", "activation"
        )
    return ACTIVATIONS[name]()


def _unit(core: nn.Module, norm: nn.Module | None, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=core, norm=norm or nn.Identity(), activation=activation))


def _convolutional(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    channels, height, width = _input(section, shapes)
    filters, kernel = section.integer("filters", 1, low=1), section.integer("size", 1, low=1)
    stride, groups = section.integer("stride", 1, low=1), section.integer("groups", 1, low=1)
    padding = section.integer("padding", 0)
    if section.integer("pad", 0):
        padding = kernel // 2
    for name, number in (("filters", filters), ("input channels", channels)):
        if number % groups:
            raise section.error(f"groups={groups} does not divide the {number} {name}", "groups")
    normalised = section.integer("batch_normalize", 0) > 0
    conv = nn.Conv2d(channels, filters, kernel, stride, padding, groups=groups, bias=not normalised)
    norm = DarknetNorm(filters) if normalised else None
    shape = filters, (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    return Layer(_unit(conv, norm, _activation(section)), shape)


def _local(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    channels, height, width = _input(section, shapes)
    filters, kernel = section.integer("filters", 1, low=1), section.integer("size", 1, low=1)
    stride, padding = section.integer("stride", 1, low=1), section.integer("pad", 0)
    if padding and kernel != 2 * padding + 1:
        raise section.error(f"pad={padding} fits size={2 * padding + 1} only, got size={kernel}", "pad")
    shape = filters, (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    return Layer(_unit(Local(shape, channels, kernel, stride, padding), None, _activation(section)), shape)


def _connected(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    inputs, outputs = math.prod(_input(section, shapes)), section.integer("output", 1, low=1)
    normalised = section.integer("batch_normalize", 0) > 0
    norm = DarknetNorm(outputs) if normalised else None
    unit = _unit(Connected(inputs, outputs, bias=not normalised), norm, _activation(section))
    return Layer(unit, (outputs, 1, 1))


def _maxpool(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    channels, height, width = _input(section, shapes)
    stride = section.integer("stride", 1, low=1)
    kernel = section.integer("size", stride, low=1)
    padding = section.integer("padding", kernel - 1)  # in total; the odd pixel goes to the right and below
    near, far = padding // 2, padding - padding // 2
    shape = channels, (height + padding - kernel) // stride + 1, (width + padding - kernel) // stride + 1
    if near == far and near <= kernel // 2:
        return Layer(nn.MaxPool2d(kernel, stride, near), shape)
    if near == 0 and stride == kernel == 2:
        return Layer(nn.MaxPool2d(2, 2, ceil_mode=True), shape)
    pad = nn.ConstantPad2d((near, far, near, far), -math.inf)
    return Layer(nn.Sequential(pad, nn.MaxPool2d(kernel, stride)), shape)


def _avgpool(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    return Layer(nn.AdaptiveAvgPool2d(1), (_input(section, shapes)[0], 1, 1))


def _upsample(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    channels, height, width = _input(section, shapes)
    stride = section.integer("stride", 2, low=1)
    return Layer(nn.Upsample(scale_factor=stride, mode="nearest"), (channels, height * stride, width * stride))


def _reorg(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    channels, height, width = shape = _input(section, shapes)
    stride = section.integer("stride", 1, low=1)
    if channels % stride**2 or height % stride or width % stride:
        raise section.error(f"stride={stride} does not divide its input {_times(shape)}", "stride")
    return Layer(Reorg(stride), (channels * stride**2, height // stride, width // stride))


def _route(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    sources = tuple(_layer_number(section, "layers", number) for number in section.integers("layers"))
    groups, group = section.integer("groups", 1, low=1), section.integer("group_id", 0)
    found = [shapes[source] for source in sources]
    if len({shape[1:] for shape in found}) > 1:
        raise section.error(f"layers differ in height or width: {', '.join(map(_times, found))}", "layers")
    if group >= groups or any(shape[0] % groups for shape in found):
        raise section.error(f"group_id={group} of groups={groups} does not exist in {_times(found[0])}", "group_id")
    return Layer(Route(groups, group), (sum(shape[0] for shape in found) // groups, *found[0][1:]), sources)


def _shortcut(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    shape = _input(section, shapes)
    sources = tuple(_layer_number(section, "from", number) for number in section.integers("from"))
    for other in (shapes[source] for source in sources):
        step = max(1, other[1] // shape[1])
        if other[1:] != (shape[1] * step, shape[2] * step):
            raise section.error(f"cannot add a map of {_times(other)} to one of {_times(shape)}", "from")
    return Layer(Shortcut(_activation(section, "linear")), shape, (section.layer - 1, *sources))


def _dropout(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    probability = section.number_of("probability", 0.5)
    if not 0 <= probability < 1:
        raise section.error(f"probability must be from 0 to below 1, got {probability}", "probability")
    return Layer(nn.Dropout(probability), _input(section, shapes))


def _softmax(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    shape, groups = _input(section, shapes), section.integer("groups", 1, low=1)
    if math.prod(shape) % groups:
        raise section.error(f"groups={groups} does not divide its input {_times(shape)}", "groups")
    return Layer(GroupSoftmax(groups), shape)


def _cost(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    return Layer(nn.Identity(), _input(section, shapes))


def _yolo(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    anchors = _anchors(section)
    mask = section.integers("mask") if "mask" in section.options else list(range(len(anchors)))
    for index in mask:
        if not 0 <= index < len(anchors):
            raise section.error(f"mask names anchor {index}, but there are anchors 0 to {len(anchors) - 1}", "mask")
    return _grid_head(section, shapes, anchors[mask], section.number_of("scale_x_y", 1), softmax=False)


def _region(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    _, height, width = _input(section, shapes)
    cell = torch.tensor([shapes[-1][2] / width, shapes[-1][1] / height])  # anchors are in cells, not pixels
    section.text("tree", "")  # a file, which `darknet_model_config` reads into `DarknetConfig.tree`
    return _grid_head(section, shapes, _anchors(section) * cell, 1, softmax=section.integer("softmax", 0) > 0)


def _anchors(section: Section) -> Tensor:
    count, numbers = section.integer("num", 1, low=1), section.numbers("anchors")
    if len(numbers) != 2 * count or min(numbers) <= 0:
        raise section.error(
            f"anchors must be num={count} pairs of positive numbers, got {len(numbers)} numbers", "anchors"
        )
    return torch.tensor(numbers).view(-1, 2)


def _grid_head(section: Section, shapes: Mapping[int, Shape], anchors: Tensor, scale_xy: float, softmax: bool) -> Layer:
    shape, classes = _input(section, shapes), section.integer("classes", 20, low=1)
    wanted = len(anchors) * (5 + classes)
    if shape[0] != wanted:
        raise section.error(
            f"{len(anchors)} anchors and {classes} classes want {wanted} channels ((5 + classes) · anchors), "
            f"got {shape[0]}: change filters of the layer before it",
        )
    return Layer(GridHead(anchors, classes, scale_xy, softmax), shape)


def _detection(section: Section, shapes: Mapping[int, Shape]) -> Layer:
    shape, classes = _input(section, shapes), section.integer("classes", 1, low=1)
    side, boxes = section.integer("side", 7, low=1), section.integer("num", 1, low=1)
    wanted = side * side * (classes + 5 * boxes)
    if math.prod(shape) != wanted:
        raise section.error(
            f"side={side}, {boxes} boxes and {classes} classes want {wanted} numbers (side² · (classes + 5 · num)), "
            f"got {math.prod(shape)}: change output of the layer before it"
        )
    return Layer(DetectionHead(side, boxes, classes, section.integer("sqrt", 0) > 0), (wanted, 1, 1))


def _times(shape: Shape) -> str:
    return " × ".join(map(str, shape))


LAYERS: dict[str, Callable[[Section, Mapping[int, Shape]], Layer]] = {
    "avgpool": _avgpool,
    "connected": _connected,
    "convolutional": _convolutional,
    "cost": _cost,
    "detection": _detection,
    "dropout": _dropout,
    "local": _local,
    "maxpool": _maxpool,
    "region": _region,
    "reorg": _reorg,
    "route": _route,
    "shortcut": _shortcut,
    "softmax": _softmax,
    "upsample": _upsample,
    "yolo": _yolo,
}

ALIASES = {"avg": "avgpool", "conn": "connected", "conv": "convolutional", "max": "maxpool", "soft": "softmax"}

# Options that change nothing once a network is trained, by kind of section ("" for any).
WITHOUT_EFFECT = {
    "": "burnin_update keep_delta_gpu learning_rate learning_rate_multiplier onlyforward smooth stopbackward "
    "train_only_bn",
    "convolutional": "angle assisted_excitation grad_centr stream wait_stream",
    "cost": "ratio scale type",
    "detection": "class_scale coord_scale forced jitter max noobject_scale object_scale random rescore resize",
    "dropout": "dropblock dropblock_size_abs dropblock_size_rel",
    "region": "absolute bias_match class_scale classfix coord_scale focal_loss jitter log map mask_scale max "
    "noobject_scale object_scale random rescore resize sqrt thresh",
    # map: to which label of a tree a label of the training data belongs.
    "route": "stream wait_stream",
    "softmax": "noloss",
    # beta_nms and nms_kind: how candidates are selected is no part of the network.
    "yolo": "beta_nms cls_normalizer counters_per_class delta_normalizer focal_loss ignore_thresh iou_loss "
    "iou_normalizer iou_thresh iou_thresh_kind jitter label_smooth_eps max max_delta nms_kind obj_normalizer "
    "objectness_smooth random resize show_details truth_thresh",
}
# Options that are understood at one value only, the one that changes nothing.
WITHOUT_EFFECT_AT: dict[str, dict[str, str]] = {
    "": {"clip": "0", "dontload": "0", "dontloadscales": "0", "truth": "0"},
    "convolutional": {
        "dilation": "1",
        **dict.fromkeys(("antialiasing", "bin_output", "binary", "cbn", "coordconv", "dot", "flipped", "reverse"), "0"),
        **dict.fromkeys(("rotate", "stretch", "stretch_sway", "sway", "xnor"), "0"),
    },
    "detection": {"coords": "4", "reorg": "0", "softmax": "0"},
    "maxpool": {"antialiasing": "0", "maxpool_depth": "0", "maxpool_zero_nonmax": "0", "out_channels": "1"},
    "region": {"background": "0", "coords": "4"},
    "reorg": {"extra": "0", "flatten": "0", "reverse": "0"},
    "shortcut": {"alpha": "1", "beta": "1", "weights_normalization": "none", "weights_type": "none"},
    "softmax": {"spatial": "0", "temperature": "1"},
    "upsample": {"reverse": "0", "scale": "1"},
    "yolo": {"new_coords": "0"},
}


def _reject_unread(section: Section, kind: str) -> None:
    """Raise for the first option that was neither read by its builder nor is known to change nothing."""
    harmless = {*WITHOUT_EFFECT[""].split(), *WITHOUT_EFFECT.get(kind, "").split()}
    neutral = WITHOUT_EFFECT_AT[""] | WITHOUT_EFFECT_AT.get(kind, {})
    for key, (value, _) in section.options.items():
        if key in section.read or key in harmless:
            continue
        if key not in neutral:
            raise section.error(f"unknown option {key!r}{nearest(key, section.read | neutral.keys())}", key)
        if value != neutral[key] and not (neutral[key].isdigit() and section.number_of(key, 0) == float(neutral[key])):
            raise section.error(f"{key}={value} is not supported, only {key}={neutral[key]}", key)


def _build(section: Section, shapes: Mapping[int, Shape], heads: Mapping[int, Section]) -> Layer:
    """Build the module of a section and check what it reads and leaves."""
    kind = ALIASES.get(section.kind, section.kind)
    if kind not in LAYERS:
        raise section.error(f"unknown layer{nearest(kind, LAYERS)} (known: {', '.join(LAYERS)})")
    layer = LAYERS[kind](section, shapes)
    _reject_unread(section, kind)
    layer = replace(layer, sources=layer.sources or (section.layer - 1,))
    for source in layer.sources:
        if source in heads:
            raise section.error(
                f"reads layer {source} [{heads[source].kind}], whose output is no input of another layer"
            )
    if min(layer.shape) < 1:
        raise section.error(f"leaves nothing of its input {_times(shapes[layer.sources[0]])}")
    return layer


# ----------------------------------------------------------------------------------------------------------------------


class DarknetConfig(Strict):
    """The text of a .cfg, verbatim, and what errors call it.

    tree: each label's parent, -1 at the top, which the file says that `tree=` of a [region] names. tree_threshold: a
    box is named by the deepest label whose probability, given an object, is above it (Darknet's -hier).
    """

    name: Literal["darknet"] = "darknet"
    cfg: str
    file: str = "cfg"
    tree: list[int] | None = None
    tree_threshold: float = Field(0.5, ge=0, lt=1)


class Darknet(Detector):
    """A network built from a .cfg, section by section.

    Its heads are its [yolo] layers, or its [region], or its [detection]; a network without any is a classifier, whose
    `forward` returns what its last layer gives and which `decode` refuses.
    """

    Config = DarknetConfig

    def __init__(self, config: DarknetConfig, num_classes: int, size_hw: tuple[int, int]) -> None:
        super().__init__(num_classes)
        _, *sections = parse_cfg(config.cfg, config.file)
        if not sections:
            raise DetkitError(f"{config.file}: has no layer after [net]")
        shapes: dict[int, Shape] = {-1: (3, *size_hw)}
        heads: dict[int, Section] = {}
        self.cfg, self.file, self.sections = config.cfg, config.file, sections
        self.tree_threshold = config.tree_threshold
        self.layers = nn.ModuleList()
        self.sources: list[tuple[int, ...]] = []
        for section in sections:
            layer = _build(section, shapes, heads)
            shapes[section.layer] = layer.shape
            self.layers.append(layer.module)
            self.sources.append(layer.sources)
            if isinstance(layer.module, GridHead | DetectionHead):
                if "tree" in section.options:
                    layer.module.tree = _word_tree(section, config.tree, layer.module.num_classes)
                _check_head(layer.module, section, heads, num_classes)
                heads[section.layer] = section
        last = len(sections) - 1
        self.outputs = list(heads) or [last]
        self.strides = size_hw[0] / shapes[self.outputs[0]][1], size_hw[1] / shapes[self.outputs[0]][2]
        self.size_hw = size_hw
        last_use = {i: i for i in range(-1, last + 1)} | {s: i for i, used in enumerate(self.sources) for s in used}
        self.done_after = [
            [s for s, i in last_use.items() if i == layer and s not in self.outputs] for layer in range(last + 1)
        ]

    @property
    def heads(self) -> list[GridHead | DetectionHead]:
        """The layers that speak of boxes, in the order of the .cfg."""
        return [layer for layer in self.layers if isinstance(layer, GridHead | DetectionHead)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] → the raw output of each head in the order of the .cfg: maps [B, A·(5 + C), h, w] or [B, N]."""
        maps = {-1: images}
        for i, layer in enumerate(self.layers):
            maps[i] = layer(*(maps[source] for source in self.sources[i]))
            for done in self.done_after[i]:
                del maps[done]
        return [maps[i] for i in self.outputs]

    def decode(self, raw: list[Tensor], threshold: float) -> Candidates:
        """Raw outputs → boxes whose score is above the threshold, head by head."""
        return self._candidates(raw, threshold)

    def candidates(self, raw: list[Tensor], selection: Selection) -> Candidates:
        """Over a tree, a row for each box and each label that is asked for, as in YOLO9000; else as `decode`."""
        return self._candidates(raw, selection.score, selection.labels)

    def _candidates(self, raw: list[Tensor], threshold: float, labels: Sequence[int] = ()) -> Candidates:
        heads: list[Any] = self.heads
        if not heads:
            raise DetkitError(f"{self.file}: has no [yolo], [region] or [detection] layer, so it finds no boxes")
        if isinstance(heads[0], DetectionHead):
            head = heads[0]
            return yolov1_candidates(raw[0], head.side, head.boxes, self.size_hw, threshold, squared=head.squared)
        size_hw = round(raw[0].shape[2] * self.strides[0]), round(raw[0].shape[3] * self.strides[1])
        if heads[0].tree is not None:
            return tree_candidates(
                raw[0], heads[0].anchors, size_hw, threshold, heads[0].tree, self.tree_threshold, labels
            )
        return yolo_candidates(
            raw,
            [head.anchors for head in heads],
            size_hw,
            threshold,
            [head.scale_xy for head in heads],
            softmax=heads[0].softmax,
        )

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Raise: a .cfg is run, not trained."""
        raise DetkitError(
            f"{self.file}: a network read from a .cfg is not trained here; train one of the shipped configs"
        )

    def darknet_layers(self) -> Iterator[nn.Module]:
        """The layers with weights, in the order of the .weights file."""
        return (layer for _, layer in self._weighted())

    def darknet_names(self) -> list[str]:
        """What errors call these layers."""
        return [f"section {section.number} [{section.kind}]" for section, _ in self._weighted()]

    def _weighted(self) -> list[tuple[Section, nn.Module]]:
        layers = zip(self.sections, self.layers, strict=True)
        return [(section, layer) for section, layer in layers if list(layer.parameters())]


def _check_head(
    head: GridHead | DetectionHead, section: Section, heads: Mapping[int, Section], num_classes: int
) -> None:
    if head.num_classes != num_classes:
        raise section.error(f"has {head.num_classes} classes, but the model {num_classes}", "classes")
    for other in heads.values():
        if other.kind != section.kind or section.kind != "yolo":
            raise section.error(f"cannot stand beside section {other.number} [{other.kind}]: only [yolo] may repeat")


def _word_tree(section: Section, parents: list[int] | None, num_classes: int) -> WordTree:
    if parents is None:
        raise section.error("the tree is not there: load the .cfg by its path, with the file beside it", "tree")
    if len(parents) != num_classes:
        raise section.error(f"the tree has {len(parents)} labels, but classes is {num_classes}", "tree")
    try:
        return WordTree(parents)
    except ValueError as error:
        raise section.error(f"is no tree: {error}", "tree") from None


# ----------------------------------------------------------------------------------------------------------------------


def darknet_model_config(path: Path) -> dict[str, Any]:
    """Return the configuration tree of a model: what a .cfg and the .names beside it say."""
    sections = read_cfg(path)
    heads = [section for section in sections if section.kind in ("yolo", "region", "detection")]
    if not heads:
        raise DetkitError(f"{path}: has no [yolo], [region] or [detection] layer, so it finds no boxes")
    classes = heads[0].integer("classes", 1 if heads[0].kind == "detection" else 20, low=1)
    tree = _named_tree(path, heads[0]) if heads[0].kind == "region" and "tree" in heads[0].options else None
    detector = {"name": "darknet", "cfg": path.read_bytes().decode(), "file": path.name}  # to the byte
    return {
        "classes": list(tree) if tree is not None else darknet_names(path, classes),
        "detector": detector | ({"tree": parent_labels(tree)} if tree is not None else {}),
        "preprocess": darknet_preprocess(sections).model_dump(),
    }


def _named_tree(cfg: Path, region: Section) -> Tree:
    """Read the tree that a [region] names, with the names of <stem>.names beside the .cfg, or those beside the tree.

    It is looked for from the .cfg's folder, from the one above, as Darknet's cfg/ lies beside data/, and by its name
    alone.
    """
    name = Path(region.text("tree", ""))
    for path in (cfg.parent / name, cfg.parent / ".." / name, cfg.parent / name.name):
        if path.exists():
            names = cfg.with_suffix(".names")
            return read_tree(path, names if names.exists() else None)
    raise region.error(f"tree={name} is not there; put {name.name} and its .names beside the .cfg", "tree")


def darknet_preprocess(sections: list[Section]) -> Preprocess:
    """Return Darknet's own way from a picture to the input: letterboxed, or for [detection] stretched."""
    net = sections[0]
    height, width = net.integer("height", 0, low=1), net.integer("width", 0, low=1)
    if net.integer("channels", 3) != 3:
        raise net.error("channels must be 3, for RGB pictures", "channels")
    stretch = any(section.kind == "detection" for section in sections)
    return Preprocess(
        mode="stretch" if stretch else "letterbox", size=(height, width), interpolation="darknet", divisor=1
    )


def darknet_names(cfg: Path, num_classes: int) -> list[str]:
    """Return class names: those of <stem>.names beside the .cfg, else of the folder's only .names, else numbers."""
    found = [cfg.with_suffix(".names")]
    if not found[0].exists():
        found = list(cfg.parent.glob("*.names"))
    if len(found) != 1:
        return [str(i) for i in range(num_classes)]
    names = [line.strip() for line in read_text(found[0], "a list of class names").rstrip().splitlines()]
    if len(names) != num_classes:
        raise DetkitError(f"{found[0]}: holds {len(names)} names, but {cfg} has {num_classes} classes")
    return names


def load_darknet(detector: Darknet, path: Path) -> None:
    """Fill a network from a .weights file."""
    load_darknet_weights(detector.darknet_layers(), path, detector.darknet_names())
