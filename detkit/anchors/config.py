"""The anchors of a model's configuration: which they are, and new ones put in their place.

A config says them at `detector.levels`, each with its stride (YOLOv3), or at `detector.anchors` (YOLOv2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from detkit.config import find_config, read_yaml, shipped_configs, validate
from detkit.detectors.darknet import Darknet, GridHead, darknet_model_config
from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.model import ModelConfig, build_detector
from detkit.ops.kmeans import Floats
from detkit.preprocess import Preprocess
from detkit.train.config import read_train_config
from detkit.weights.checkpoint import read_header

STRIDE = 32  # of YOLOv2's only map


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """The anchors [A, 2] of one map, width and height in pixels of the network's input, and the map's stride."""

    stride: int
    anchors: Floats


@dataclass(frozen=True, slots=True)
class Setup:
    """What anchors are for: scales, finest first, and how pictures become the network's input.

    name, path: of the config, and its file if it is a .yaml; without a config both are None, and the strides are those
    of YOLOv3 without anchors.
    """

    preprocess: Preprocess
    strides: tuple[int, ...] = (8, 16, 32)
    scales: tuple[Scale, ...] = ()
    name: str | None = None
    path: Path | None = None

    @property
    def count(self) -> int:
        """How many anchors there are, or without a config how many YOLOv3 has."""
        return sum(len(scale.anchors) for scale in self.scales) or 9


def prepare(config: str | None, target: Path | None = None, size: int | None = None) -> Setup:
    """Read the config that anchors are for, by its name or because they are to be written into it.

    config: a shipped config's name, a .yaml file, a checkpoint (.safetensors), a Darknet .cfg, or none. target: the
    .yaml to write to, which is the config unless it is a new file. size: side of the input, letterboxed, where there is
    no config. Raises DetkitError for a detector without anchors, a size other than the config's, and a target that is
    another config, no YAML, or comes with detkit.
    """
    if target is not None:
        config = _config_to_change(config, target)
    if config is None:
        side = 416 if size is None else size
        return Setup(validate(Preprocess, {"size": [side, side], "divisor": 1}, f"--size {side}"))
    setup = read_setup(config)
    height, width = setup.preprocess.size
    if size is not None and (height, width) != (size, size):
        raise DetkitError(
            f"--size {size}: {config} has a size of its own, {height} × {width} (height × width); leave out --size, or "
            "change preprocess.size there"
        )
    if target is not None and setup.path is None:
        raise DetkitError(f"--write {target}: {config} is no .yaml config that could be copied with other anchors")
    return setup


def _config_to_change(config: str | None, target: Path) -> str:
    shipped = shipped_configs()
    if str(target) in shipped or target.resolve() in {path.resolve() for path in shipped.values()}:
        raise DetkitError(
            f"--write {target}: comes with detkit and is not overwritten; for a copy with new anchors name a new "
            f"file: --config {target.stem} --write {target.stem}_anchors.yaml"
        )
    if target.suffix not in (".yaml", ".yml"):
        raise DetkitError(
            f"--write {target}: anchors are written into a .yaml config; into a .cfg paste the lines that are printed, "
            "and fit `filters` before each head to its number of anchors"
        )
    if not target.exists():
        if config is None:
            raise DetkitError(f"--write {target}: no such file; with --config NAME it becomes a copy with new anchors")
        return config
    if config is not None and not (Path(config).exists() and Path(config).samefile(target)):
        raise DetkitError(
            f"--write {target}: exists and is not {config}; leave out --config to change its own anchors, or name a "
            "new file for a copy"
        )
    return str(target)


def read_setup(config: str) -> Setup:
    """Read a config's scales and preprocessing; see `prepare`."""
    path = Path(config)
    model: ModelConfig
    if path.suffix == ".cfg":
        model = validate(ModelConfig, darknet_model_config(path), config)
        scales, file = _darknet_scales(model, config), None
    elif path.suffix == ".safetensors":
        model = validate(ModelConfig, read_header(path).config, config)
        scales, file = _scales(model, config), None
    else:
        model = read_train_config(config)
        scales, file = _scales(model, config), find_config(config)
    return Setup(model.preprocess, tuple(scale.stride for scale in scales), tuple(scales), config, file)


def _scales(config: ModelConfig, name: str) -> list[Scale]:
    tree = config.detector.model_dump()
    try:
        levels = tree["levels"] if "levels" in tree else [{"stride": STRIDE, "anchors": tree["anchors"]}]
        scales = [Scale(level["stride"], np.array(level["anchors"], np.float64)) for level in levels]
    except (KeyError, TypeError, ValueError):
        scales = []
    if not scales or any(scale.anchors.ndim != 2 or scale.anchors.shape[1] != 2 for scale in scales):
        raise DetkitError(
            f"{name}: the detector {tree['name']} has no anchors of given width and height; yolov2 and yolov3 have"
        )
    return scales


def _darknet_scales(config: ModelConfig, name: str) -> list[Scale]:
    detector = build_detector(config)
    assert isinstance(detector, Darknet)
    heads = [head for head in detector.heads if isinstance(head, GridHead)]
    if not heads:
        raise DetkitError(f"{name}: has no [yolo] or [region] layer, so it has no anchors")
    anchors = [head.anchors.double().numpy() for head in heads]
    height, width = config.preprocess.size
    with torch.no_grad():  # without numbers, only for the maps' sizes
        maps = detector.to("meta")(torch.empty(1, 3, height, width, device="meta"))
    scales = [Scale(height // raw.shape[2], anchor) for raw, anchor in zip(maps, anchors, strict=True)]
    return sorted(scales, key=lambda scale: scale.stride)


def write_anchors(source: Path, target: Path, scales: Sequence[Scale]) -> None:
    """Write the .yaml config `source` with other anchors to `target`, which may be the same; all else stays as it is.

    scales: one for each of the config's, finest first. Comments, order, spacing and line ends outside the lists of
    anchors are kept byte for byte. Raises DetkitError where that cannot be done, as with YAML aliases.
    """
    data = source.read_bytes()
    text = data.decode("utf-8")
    newline = "\r\n" if "\r\n" in text else "\n"
    places = list(_places(yaml.compose(text, yaml.SafeLoader)))
    expected = read_yaml(source)
    lists = [[[float(side) for side in anchor] for anchor in scale.anchors] for scale in scales]
    for index, anchors in enumerate(lists):
        detector = expected["detector"]
        (detector["levels"][index] if "levels" in detector else detector)["anchors"] = anchors
    for node, scale in reversed(list(zip(places, scales, strict=True))):
        text = text[: node.start_mark.index] + _in_style_of(node, scale.anchors, newline) + text[_end(node) :]
    try:
        replaced = yaml.safe_load(text) == expected
    except yaml.YAMLError:
        replaced = False
    if not replaced:
        raise DetkitError(
            f"{source}: its anchors cannot be replaced in place, perhaps because they are written with YAML aliases "
            "(*name); write them out, or paste the lines that are printed"
        )
    write_atomically(target.resolve(), text.encode("utf-8"))


def _places(root: Any) -> Iterator[yaml.Node]:
    """The nodes of the lists of anchors, finest scale first."""
    detector = _child(root, "detector")
    levels = _child(detector, "levels")
    for level in levels.value if isinstance(levels, yaml.SequenceNode) else [detector]:
        yield _child(level, "anchors")


def _child(node: Any, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def _end(node: yaml.Node) -> int:
    """Where a list ends in the text; PyYAML has a block list end where the next thing begins."""
    while isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        node = node.value[-1]
    return int(node.end_mark.index)


def _in_style_of(node: yaml.Node, anchors: Floats, newline: str) -> str:
    if not isinstance(node, yaml.SequenceNode) or node.flow_style:
        return yaml_anchors(anchors)
    return f"{newline}{' ' * node.start_mark.column}".join(f"- {_pair(anchor)}" for anchor in anchors)


def yaml_anchors(anchors: Floats) -> str:
    """Write anchors [A, 2] as configs do: [[10, 13], [16, 30]]."""
    return f"[{', '.join(map(_pair, anchors))}]"


def _pair(anchor: Floats) -> str:
    return f"[{anchor[0]:.4g}, {anchor[1]:.4g}]"
