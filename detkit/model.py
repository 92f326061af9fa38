"""A model: a detector with all that is needed to use it on a picture, and how to load one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator, SerializeAsAny, model_validator
from torch import nn

from detkit.config import Strict, find_config, nested, override, read_yaml, shipped_configs, validate
from detkit.data.names import class_names
from detkit.data.picture import read_picture, sample_picture
from detkit.detectors import detector_class
from detkit.detectors.base import Detector
from detkit.errors import DetkitError, nearest
from detkit.inference import (
    DTYPES,
    Precision,
    choose_device,
    compile_forward,
    for_inference,
    record_forward,
    require_precision,
)
from detkit.ops.nms import Selection
from detkit.preprocess import Placement, Preprocess, place_proposals
from detkit.regions import ProposalConfig, Proposals, propose
from detkit.structures import Batch, Detections
from detkit.weights import torchvision
from detkit.weights.checkpoint import has_header, load_state, read_header, read_tensors

DEFAULT = "yolov3_fasternet_coco"
"""The shipped config whose weights come with detkit."""

Resize = Literal["stretch", "letterbox"]
_WEIGHTS = (".safetensors", ".weights", ".pt", ".pth", ".bin", ".ckpt")


def _detector_config(tree: Any) -> Any:
    if isinstance(tree, Strict) or not isinstance(tree, dict):
        return tree
    if "name" not in tree:
        raise ValueError("the key 'name' is missing")
    try:
        detector = detector_class(tree["name"])
    except DetkitError as error:
        raise ValueError(str(error)) from None
    return nested(detector.Config, tree)


def _class_names(value: Any) -> Any:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError("expected the name of a list (coco, voc) or a list of class names, each in quotes if need be")
    if value:
        try:
            class_names(value)
        except DetkitError as error:
            raise ValueError(str(error)) from None
    return value


ClassNames = Annotated[str | list[str], BeforeValidator(_class_names)]


class ModelConfig(Strict):
    """A config file.

    classes: a named list (`coco`, `voc`) or class names in the order of the labels. detector: `name` picks the class in
    detkit.detectors.DETECTORS, the other keys are its Config. preprocess, selection: what is done before and after.
    proposals: where the boxes come from that fast_rcnn and rcnn look at.
    """

    classes: ClassNames
    detector: Annotated[SerializeAsAny[Strict], BeforeValidator(_detector_config)]
    preprocess: Preprocess
    selection: Selection = Selection()
    proposals: ProposalConfig | None = None

    @model_validator(mode="after")
    def _classes_of_the_detector(self) -> Self:
        """A detector that names its classes itself, as a tree does, gives them where the config has none."""
        names = getattr(self.detector, "class_names", None)
        if names is None or self.classes == list(names):
            return self
        if self.classes:
            raise ValueError("classes: the detector names its classes itself; leave the list empty")
        return self.model_copy(update={"classes": list(names)})

    @model_validator(mode="after")
    def _pictures_are_whole(self) -> Self:
        if self.preprocess.mode == "center_crop":
            raise ValueError("preprocess.mode: center_crop cuts objects off, it is for classifiers; take letterbox")
        return self

    @model_validator(mode="after")
    def _pictures_are_where_they_are_clipped(self) -> Self:
        if getattr(self.detector, "clip", None) == "picture" and self.preprocess.mode != "shortest_edge":
            raise ValueError(
                "detector.clip: `picture` needs preprocess.mode shortest_edge, which places pictures at the top left; "
                f"with {self.preprocess.mode} take `input`"
            )
        return self


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is ready for a network or on its way there, and where its pictures lie in it.

    copied: what the GPU records when the batch is there.
    """

    batch: Batch
    placements: list[Placement]
    copied: torch.cuda.Event | None = None

    def arrived(self) -> Batch:
        """Return the batch, for which the current stream waits."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.batch.images.device)
            stream.wait_event(self.copied)
            self.batch.record_stream(stream)  # or the memory could be given away while this stream still reads it
        return self.batch


@dataclass(frozen=True, slots=True)
class Model:
    """A detector that is ready to use: with its preprocessing, class names, and selection.

    Calling it with a picture (a path, `sample:NAME`, or RGB pixels [H, W, 3] uint8) gives its Detections. fill_batches:
    its code is made anew for each size of a batch, so that a smaller last one is better filled up.
    """

    detector: Detector
    preprocess: Preprocess
    selection: Selection
    classes: tuple[str, ...]
    name: str
    device: torch.device
    precision: Precision
    proposals: ProposalConfig | None = None
    fill_batches: bool = False

    def __call__(self, picture: str | Path | NDArray[np.uint8]) -> Detections:
        """Find objects in one picture."""
        if isinstance(picture, str) and picture.startswith("sample:"):
            pixels = sample_picture(picture.removeprefix("sample:"))
        else:
            pixels = read_picture(Path(picture)) if isinstance(picture, str | Path) else picture
        proposals = self.propose(pixels, None if isinstance(picture, np.ndarray) else str(picture))
        return self.predict([pixels], proposals=[proposals] if proposals is not None else None)[0]

    def propose(self, picture: NDArray[np.uint8], source: str | None = None) -> Proposals | None:
        """Return the boxes in which the detector is to look; None where it finds them itself.

        source: the picture's name, by which a file of proposals is searched.
        """
        return propose(picture, self.proposals, source) if self.proposals is not None else None

    def predict(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        selection: Selection | None = None,
        proposals: Sequence[Proposals] | None = None,
    ) -> list[Detections]:
        """Find objects in RGB pictures [H, W, 3] uint8 as one batch; boxes are in the pictures' own pixels.

        proposals: of each picture, by default those that `propose` gives.
        """
        return self.detect(self.prepare(pictures, proposals), selection) if pictures else []

    @torch.inference_mode()
    def prepare(self, pictures: Sequence[NDArray[np.uint8]], proposals: Sequence[Proposals] | None = None) -> Prepared:
        """Resize and pad pictures into a batch on the model's device; arguments as `predict`.

        To a GPU it is copied on a stream of its own, so that in another thread this runs beside `detect`.
        """
        batch, placements = self.preprocess(pictures)
        if self.proposals is not None:
            proposals = proposals or [propose(picture, self.proposals) for picture in pictures]
            table = place_proposals([torch.from_numpy(found.boxes) for found in proposals], placements)
            batch = Batch(batch.images, batch.sizes, table)
        if self.device.type != "cuda":
            return Prepared(batch.to(self.device), placements)
        stream = _copy_stream(self.device)
        with torch.cuda.stream(stream):
            return Prepared(batch.pin_memory().to(self.device), placements, stream.record_event())

    @torch.inference_mode()
    def detect(self, prepared: Prepared, selection: Selection | None = None) -> list[Detections]:
        """Find objects in a batch; boxes are in the pictures' own pixels."""
        with self.autocast():
            found = self.detector.detect(prepared.arrived(), selection or self.selection)
        return [placement.restore(detections) for detections, placement in zip(found, prepared.placements, strict=True)]

    def autocast(self) -> torch.autocast:
        """Return the context in which the network computes in the model's precision."""
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def load(
    name: str | Path | None = None,
    weights: str | Path | None = None,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    resize: Resize | None = None,
    settings: Sequence[str] = (),
    compiled: bool = False,
    cuda_graphs: bool = False,
    untrained: bool = False,
) -> Model:
    """Load a model to detect with.

    name: a detkit checkpoint (.safetensors), a Darknet .cfg, or a shipped config's name or .yaml file; by default the
    model that comes with detkit; or torchvision/fasterrcnn_resnet50_fpn and its like. weights: of a .cfg or a config
    (.weights, .safetensors, .pt, .pth), by default the file of the same name beside it; of a model of torchvision by
    default the released ones, which are downloaded.
    device: `auto` is the GPU where there is one. resize: overrides how a Darknet cfg's pictures are resized.
    settings: `key.subkey=value` overrides of the config. compiled: torch.compile makes the network's code at the first
    batch. cuda_graphs: its kernels are recorded once for each shape of a batch. untrained: a config gets random
    weights, to see how fast it is. Raises DetkitError with one sentence on anything that is off.
    """
    target = choose_device(device)
    require_precision(precision, target)
    if name is None and weights is not None:
        raise DetkitError(f"{weights}: name the config or .cfg that these weights belong to with --model")
    name = name or DEFAULT
    if untrained:
        if weights is not None:
            raise DetkitError(f"{weights}: has nothing to load into, since random weights are asked for")
        config = read_config(str(name), settings)
        detector = build_detector(config)
    else:
        config, detector = read_model(name, weights, settings)
    preprocess = config.preprocess
    if resize is not None:
        preprocess = validate(Preprocess, preprocess.model_dump() | {"mode": resize}, f"--resize {resize}")
    for_inference(detector, target, precision)
    if compiled:
        one_size = preprocess.mode != "shortest_edge" and not (preprocess.mode == "letterbox" and preprocess.minimal)
        compile_forward(detector, one_size)
    if cuda_graphs:
        record_forward(detector, target)
    classes = class_names(config.classes)
    return Model(
        detector,
        preprocess,
        config.selection,
        classes,
        Path(name).stem,
        target,
        precision,
        config.proposals,
        fill_batches=compiled or cuda_graphs,
    )


def read_model(
    name: str | Path, weights: str | Path | None = None, settings: Sequence[str] = ()
) -> tuple[ModelConfig, Detector]:
    """Read a model's config and its detector as it was trained, in evaluation mode; arguments and errors as `load`."""
    name, path = str(name), Path(name)
    if name.startswith(torchvision.PREFIX):
        config, detector = _from_torchvision(name, Path(weights) if weights else None, settings)
    elif path.suffix == ".cfg":
        config, detector = _from_cfg(path, Path(weights) if weights else path.with_suffix(".weights"), settings)
    elif path.suffix == ".safetensors":
        if weights:
            raise DetkitError(f"{path}: a checkpoint holds its weights; --weights {weights} has nothing to load into")
        config = _of_checkpoint(path, settings)
        detector = build_detector(config)
        load_state(detector, read_tensors(path), path)
    elif path.suffix in (".weights", ".pt", ".pth"):
        raise DetkitError(
            f"{path}: weights do not say of which network they are: name a config or a .cfg with --model, and pass "
            "this file with --weights"
        )
    else:
        config = read_config(name, settings)
        beside = find_config(name).with_suffix(".safetensors")
        if weights is None and not beside.exists():
            raise DetkitError(f"{name}: is a config without weights; pass the file that holds them with --weights")
        path = Path(weights or beside)
        if has_header(path):
            _require_same_model(config, _of_checkpoint(path), name, path)
        detector = build_detector(config)
        load_weights(detector, path)
    require_finite(detector, Path(weights or path))
    return config, detector


def read_config(name: str, settings: Sequence[str] = ()) -> ModelConfig:
    """Read the model of a shipped config's name or of a .yaml file, with `key.subkey=value` overrides.

    The sections that only training reads are passed over, and so is the start of the backbone: the weights come from
    a file, and nothing is downloaded.
    """
    path = find_config(name)
    tree = require_detector(read_yaml(path), path.name)
    for section in ("augment", "train"):
        tree.pop(section, None)
    return validate(ModelConfig, override(without_start(tree), settings), path.name)


def require_detector(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a config's tree, or raise DetkitError when it is a classifier's."""
    if "classifier" in tree and "detector" not in tree:
        raise DetkitError(f"{source}: is a classifier, which finds no objects; `detkit classify` uses it")
    return tree


def without_start(tree: dict[str, Any], part: str = "detector") -> dict[str, Any]:
    """Take what only training reads, the start of the backbone, out of a config's tree; part: where the backbone is."""
    backbone = tree[part].get("backbone") if isinstance(tree.get(part), dict) else None
    if isinstance(backbone, dict):
        for start in ("pretrained", "weights"):
            backbone.pop(start, None)
    return tree


def _of_checkpoint(path: Path, settings: Sequence[str] = ()) -> ModelConfig:
    header = read_header(path)
    tree = without_start(require_detector(header.config, str(path)))
    config = validate(ModelConfig, override(tree, settings), str(path))
    if class_names(config.classes) != header.classes:
        raise DetkitError(f"{path}: the header's class names are not those of its config")
    return config


def _require_same_model(config: ModelConfig, other: ModelConfig, name: str, path: Path) -> None:
    """Raise if a checkpoint is of another model than a config, in what its tensors' shapes do not tell."""
    wanted, found = (
        {"classes": class_names(c.classes)} | c.detector.model_dump(exclude={"loss"}) for c in (config, other)
    )
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DetkitError(
                f"{path}: is a checkpoint of another model, whose {key!r} is not that of {name}; "
                "pass the checkpoint alone, with --model"
            )


def build_detector(config: ModelConfig) -> Detector:
    """Build the detector of a config, with random weights, in evaluation mode."""
    size_hw = config.preprocess.size
    build: Any = detector_class(config.detector.name)  # type: ignore[attr-defined]
    try:
        detector: Detector = build(config.detector, len(class_names(config.classes)), size_hw)
    except (RuntimeError, MemoryError, OverflowError) as error:  # sizes beyond the memory
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise DetkitError(f"detector: cannot be built with these sizes: {reason}") from None
    return detector.eval()


def weights_file(name: str | Path) -> Path:
    """Return the file of weights of that name: a path, or a shipped config's name, whose weights come with detkit.

    Raises DetkitError when there is no such file, or it is of another kind.
    """
    path, configs = Path(name), shipped_configs()
    if str(name) in configs:
        path = configs[str(name)].with_suffix(".safetensors")
        if not path.exists():
            raise DetkitError(f"{name}: is a config that comes without weights; pass a file of weights")
    elif path.is_dir():
        raise DetkitError(f"{path}: is a folder; pass a file of weights, of a run {path / 'best.safetensors'}")
    elif not path.exists():
        raise DetkitError(f"{path}: no such file, and no config that comes with weights{nearest(str(name), configs)}")
    elif path.suffix not in _WEIGHTS:
        raise DetkitError(
            f"{path}: expected a file of weights ({', '.join(_WEIGHTS)}), got a {path.suffix or 'file without ending'}"
        )
    return path


def load_weights(detector: nn.Module, path: Path) -> None:
    """Load a Darknet .weights file or a state dict into a detector or classifier; everything must fit."""
    if path.suffix == ".weights":
        from detkit.weights.darknet import load_darknet_weights

        layers = getattr(detector, "darknet_layers", None)
        if layers is None:
            raise DetkitError(f"{path}: {type(detector).__name__} has no Darknet layout; pass a .safetensors file")
        file = load_darknet_weights(layers(), path)
        if isinstance(seen := getattr(detector, "seen", None), torch.Tensor):
            seen.fill_(min(file.seen, torch.iinfo(seen.dtype).max))
    else:
        load_state(detector, read_tensors(path), path)


def require_finite(network: nn.Module, source: Path) -> None:
    """Raise DetkitError when a network holds numbers that are not finite."""
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise DetkitError(f"{source}: holds numbers that are not finite, first in {name}; the file is damaged")


def _from_cfg(path: Path, weights: Path, settings: Sequence[str]) -> tuple[ModelConfig, Detector]:
    from detkit.detectors.darknet import Darknet, darknet_model_config, load_darknet

    tree = override(darknet_model_config(path), settings)
    config = validate(ModelConfig, tree, path.name)
    detector = build_detector(config)
    assert isinstance(detector, Darknet)
    load_darknet(detector, weights)
    return config, detector


def _from_torchvision(name: str, weights: Path | None, settings: Sequence[str]) -> tuple[ModelConfig, Detector]:
    tensors = torchvision.read_torchvision(name, weights)
    tree = torchvision.torchvision_model_config(name, len(tensors["head.score.bias"]) - 1)
    config = validate(ModelConfig, override(tree, settings), name)
    detector = build_detector(config)
    load_state(detector, tensors, weights or name)
    return config, detector
