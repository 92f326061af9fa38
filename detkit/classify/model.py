"""A classifier with all that is needed to use it on a picture, and how to load one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator
from torch import Tensor, nn

from detkit.backbones import build_backbone
from detkit.backbones.base import Backbone, WholeNetwork
from detkit.backbones.timm import Unfilled
from detkit.backbones.whole import build_whole
from detkit.classify.classifier import Classifier, require_finite_scores
from detkit.classify.darknet import (
    DarknetScores,
    darknet_classifier_config,
    is_darknet_classifier,
    names_or_numbers,
)
from detkit.config import Strict, find_config, nested, override, read_yaml, shipped_configs, validate
from detkit.data.crops import Crops
from detkit.data.names import class_names
from detkit.detectors.darknet import DarknetConfig, load_darknet
from detkit.errors import DetkitError
from detkit.inference import DTYPES, Precision, choose_device, for_inference, require_precision
from detkit.model import ClassNames, ModelConfig, load_weights, read_model, require_finite, without_start
from detkit.preprocess import Preprocess
from detkit.weights.checkpoint import has_header, load_state, read_header, read_tensors
from detkit.weights.darknet import darknet_tensors, read_weights


def _network_config(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return nested(DarknetConfig if "cfg" in tree else Classifier.Config, tree)


class ClassifierConfig(Strict):
    """A config file of a classifier: it has the key `classifier` where a detector's has `detector`.

    classes: a named list (`coco`, `voc`) or class names in the order of the labels. classifier: of a checkpoint of
    Darknet's it holds the .cfg. crops: how pictures are made of the objects of a data set with boxes.
    """

    classes: ClassNames
    classifier: Annotated[Classifier.Config | DarknetConfig, BeforeValidator(_network_config)]
    preprocess: Preprocess
    crops: Crops = Crops()


@dataclass(frozen=True, slots=True)
class ClassifierModel:
    """A classifier that is ready to use, with its preprocessing and class names."""

    network: Classifier
    config: ClassifierConfig
    classes: tuple[str, ...]
    name: str
    device: torch.device
    precision: Precision

    @torch.inference_mode()
    def predict(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return the scores before the softmax [B, C] of RGB pictures [H, W, 3] uint8, on the CPU.

        Raises DetkitError where they are not finite.
        """
        if not pictures:
            return torch.zeros(0, len(self.classes))
        batch, _ = self.config.preprocess(pictures)
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            scores: Tensor = self.network(batch.to(self.device).images)
        return require_finite_scores(scores.float().cpu())


def load_classifier(
    name: str | Path,
    weights: str | Path | None = None,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    settings: Sequence[str] = (),
) -> ClassifierModel:
    """Load a classifier: a checkpoint (.safetensors), a Darknet .cfg, or a config's name or .yaml file.

    weights: of a config: .safetensors, .pt, .pth, or a Darknet .weights, by default the file of the same name beside
    it, as of a .cfg. Classes that nothing names are called by the .names beside a .cfg or the weights, or else by their
    numbers, with a warning. Raises DetkitError with one sentence on anything that is off.
    """
    target = choose_device(device)
    require_precision(precision, target)
    config, network = read_classifier(name, weights, settings)
    for_inference(network, target, precision)
    return ClassifierModel(network, config, class_names(config.classes), Path(name).stem, target, precision)


def read_classifier(
    name: str | Path, weights: str | Path | None = None, settings: Sequence[str] = ()
) -> tuple[ClassifierConfig, Classifier]:
    """Read a classifier's config and its network as it was trained, in evaluation mode; errors as `load_classifier`."""
    path = Path(name)
    if path.suffix in (".weights", ".pt", ".pth"):
        raise DetkitError(
            f"{path}: does not say of which classifier it is: name a checkpoint (.safetensors), a .cfg or a config "
            "with --model, and pass weights with --weights"
        )
    if path.suffix == ".cfg":
        tree = override(darknet_classifier_config(path), settings)
        config = validate(ClassifierConfig, tree, path.name)
        source = Path(weights or path.with_suffix(".weights"))
    elif path.suffix == ".safetensors":
        if weights:
            raise DetkitError(f"{path}: a checkpoint holds its weights; --weights {weights} has nothing to load into")
        tree = _require_classifier(read_header(path).config, str(path))
        config = validate(ClassifierConfig, override(without_start(tree, "classifier"), settings), str(path))
        source = path
    else:
        config = read_classifier_config(str(name), settings)
        beside = find_config(str(name)).with_suffix(".safetensors")
        if weights is None and not beside.exists():
            raise DetkitError(f"{name}: is a config without weights; pass the file that holds them with --weights")
        source = Path(weights or beside)
    if not config.classes:
        config = config.model_copy(update={"classes": _classes_of_weights(config, source)})
    network = build_classifier(config)
    if has_header(source):
        load_state(network, read_tensors(source), source)
    elif isinstance(network.backbone, DarknetScores):
        load_darknet(network.backbone.network, source)
    else:
        load_weights(network, source)
    require_finite(network, source)
    return config, network


def read_any(
    name: str | Path, weights: str | Path | None = None
) -> tuple[ModelConfig, nn.Module] | tuple[ClassifierConfig, nn.Module]:
    """Read a detector's or a classifier's config and its network, as `read_model` and `read_classifier` do."""
    return read_classifier(name, weights) if is_classifier(name) else read_model(name, weights)


def read_classifier_config(name: str, settings: Sequence[str] = ()) -> ClassifierConfig:
    """Read the model of a config of a classifier; what only training reads is passed over, as by `read_config`."""
    path = find_config(name)
    tree = _require_classifier(read_yaml(path), path.name)
    for section in ("augment", "train"):
        tree.pop(section, None)
    tree.setdefault("classes", [])
    return validate(ClassifierConfig, override(without_start(tree, "classifier"), settings), path.name)


def build_classifier(config: ClassifierConfig) -> Classifier:
    """Build the network of a config, with random weights, in evaluation mode."""
    options = config.classifier
    size, num_classes = config.preprocess.size, len(class_names(config.classes))
    backbone: Backbone | WholeNetwork
    if isinstance(options, DarknetConfig):
        return Classifier(DarknetScores(options, num_classes, size), num_classes, pool="own").eval()
    if options.pool == "own":
        backbone = build_whole(options.backbone, num_classes, size, options.dropout)
    else:
        backbone = build_backbone(options.backbone, (options.stride,), size)
    return Classifier(
        backbone,
        num_classes,
        pool=options.pool,
        norm=options.norm,
        dropout=options.dropout,
        activation=options.activation,
    ).eval()


def _classes_of_weights(config: ClassifierConfig, weights: Path) -> list[str]:
    """Return the class names of a checkpoint, or those beside another file of weights, for as many as it has."""
    if has_header(weights):
        return list(read_header(weights).classes)
    # Each class adds as many numbers to a network as the one before it.
    with torch.device("meta"), Unfilled():
        one, two = (build_classifier(config.model_copy(update={"classes": names})) for names in (["0"], ["0", "1"]))
    if weights.suffix == ".weights":
        first, second = (
            sum(tensor.numel() for layer in network.darknet_layers() for tensor in darknet_tensors(layer))
            for network in (one, two)
        )
        found = len(read_weights(weights).numbers)
    else:
        first, second, found = (
            sum(tensor.numel() for tensor in tensors.values())
            for tensors in (one.state_dict(), two.state_dict(), read_tensors(weights))
        )
    return names_or_numbers(weights, max(1, 1 + (found - first) // (second - first)))


def is_classifier(name: str | Path | None) -> bool:
    """Whether a checkpoint, a .cfg, or a config by its name or file, is of a classifier."""
    if name is None:
        return False
    path = Path(name)
    if path.suffix == ".cfg":
        return is_darknet_classifier(path)
    if path.suffix == ".safetensors":
        return has_header(path) and "classifier" in read_header(path).config
    if path.suffix in (".yaml", ".yml"):
        return "classifier" in read_yaml(path)
    shipped = shipped_configs().get(str(name))
    return shipped is not None and "classifier" in read_yaml(shipped)


def require_task(task: Literal["detect", "classify"] | None, name: str | Path | None) -> None:
    """Raise DetkitError when a task was asked for that a model, by default detkit's own detector, is not for."""
    if task is None or (task == "classify") == is_classifier(name):
        return
    if task == "detect":
        raise DetkitError(f"--task detect: {name} is a classifier, which finds no objects")
    raise DetkitError(
        f"--task classify: {name or 'the model that comes with detkit'} is a detector; name a classifier, as "
        "`detkit models --filter classify_` lists them"
    )


def _require_classifier(tree: dict[str, Any], source: str) -> dict[str, Any]:
    if "classifier" not in tree and "detector" in tree:
        raise DetkitError(f"{source}: is a detector; `detkit detect` finds objects with it")
    return tree
