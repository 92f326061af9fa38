"""What a config file says beside the model: how the pictures are varied and how the network learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from detkit.classify.classifier import Classifier
from detkit.classify.model import ClassifierConfig
from detkit.config import Strict, find_config, override, read_yaml, validate
from detkit.data.augment import Augment
from detkit.data.augment_labelled import ClassifierAugment
from detkit.errors import DetkitError
from detkit.inference import Precision
from detkit.model import ModelConfig, require_detector

Fraction = Annotated[float, Field(ge=0, le=1)]


class SGD(Strict):
    """Stochastic gradient descent with momentum; lr is the learning rate after the warm-up."""

    name: Literal["sgd"]
    lr: PositiveFloat = 0.01
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 5e-4


class AdamW(Strict):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv 1711.05101)."""

    name: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05


class RMSprop(Strict):
    """RMSprop with momentum as TensorFlow has it, with ε inside the square root (Tieleman and Hinton, 2012)."""

    name: Literal["rmsprop"]
    lr: PositiveFloat = 0.01
    decay: Fraction = 0.9
    momentum: float = Field(0.9, ge=0, lt=1)
    eps: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-5


class Cosine(Strict):
    """Half a cosine from the full learning rate to `final` of it at the last step."""

    name: Literal["cosine"]
    final: Fraction = 0.01


class Step(Strict):
    """The learning rate is multiplied by `factor` after each of the milestones, in epochs."""

    name: Literal["step"]
    milestones: list[PositiveInt]
    factor: Fraction = 0.1


class Exponential(Strict):
    """The learning rate is multiplied by `factor` after every so many epochs, in whole steps of a stair."""

    name: Literal["exponential"]
    every: PositiveFloat = 1
    factor: Fraction = 0.97


class Polynomial(Strict):
    """The learning rate falls as (1 − progress) ** power, to zero at the last step: Darknet's policy `poly`."""

    name: Literal["polynomial"]
    power: PositiveFloat = 4


class Plateau(Strict):
    """The learning rate is multiplied by `factor` after `patience` evaluations without a better score."""

    name: Literal["plateau"]
    patience: PositiveInt = 5
    factor: Fraction = 0.1


class Warmup(Strict):
    """How long the learning rate rises, in epochs or pictures, from `start` of itself as (done / length) ** power."""

    epochs: NonNegativeFloat = 0
    pictures: NonNegativeInt = 0
    power: PositiveFloat = 1
    start: Fraction = 0

    @model_validator(mode="after")
    def _one_length(self) -> Warmup:
        if self.epochs and self.pictures:
            raise ValueError("give the length in epochs or in pictures, not both")
        return self


def _known_name(*names: str) -> BeforeValidator:
    def check(tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("name") not in names:
            raise ValueError(f"expected the key 'name': {' or '.join(names)}, got {tree.get('name')!r}")
        return tree

    return BeforeValidator(check)


class Teacher(Strict):
    """A model to learn from: a checkpoint, a .cfg, or a config's name with its weights.

    It has the student's levels, anchors and classes; the weight `imitation` of the student's loss says how much it
    counts.
    """

    model: str
    weights: str | None = None


class Distillation(Strict):
    """A classifier to learn from beside the labels (DeiT, Touvron et al., 2020, arXiv 2012.12877, section 4).

    model: a checkpoint, or a config's name with its weights, which knows the student's classes; or timm/<model> with a
    file of its weights, whose classes are the student's, in their order. kind: `soft` learns its probabilities at a
    temperature (eq. 2), `hard` its decision (eq. 3). weight: λ, the share of the loss that it has. temperature: τ, of
    `soft`.
    """

    model: str
    weights: str | None = None
    kind: Literal["soft", "hard"] = "hard"
    weight: Fraction = 0.5
    temperature: PositiveFloat = 3


class Learning(Strict):
    """How a network learns, whatever it learns.

    epochs: passes over the pictures. batch_size: pictures in a batch, over all devices. accumulate: batches whose
    gradients are averaged before a step. optimizer, schedule: by `name`, each with its own keys; norms, biases and
    other vectors have no weight decay. backbone_lr_factor: the backbone's learning rate, relative to the rest.
    layer_decay: what it is multiplied by from each stage of the backbone to the one before (ELECTRA, Clark et al.,
    2020, arXiv 2003.10555). clip_norm: longest gradient, or none. precision: bf16 and fp16 compute in it where that is
    safe (AMP). ema: decay of the moving average of the weights that is evaluated and saved, or none. early_stop:
    evaluations without a better score after which training ends, or none. freeze: what does not learn: the first N
    stages of the backbone, `backbone`, or `all_but_head` (backbone and neck). frozen_batch_norm: all batch norms keep
    their statistics, scale and shift. best_by: the score that `best` is best by: the first of equal ones, and an
    evaluation that has none, for lack of objects, counts for nothing. evaluate_every: epochs from one evaluation to the
    next; the last epoch always has one. workers: processes that read pictures, for each device.
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    optimizer: Annotated[SGD | AdamW | RMSprop, Discriminator("name"), _known_name("sgd", "adamw", "rmsprop")] = SGD(
        name="sgd"
    )
    schedule: Annotated[
        Cosine | Step | Exponential | Polynomial | Plateau,
        Discriminator("name"),
        _known_name("cosine", "step", "exponential", "polynomial", "plateau"),
    ] = Cosine(name="cosine")
    warmup: Warmup = Warmup(epochs=1)
    backbone_lr_factor: PositiveFloat = 1
    layer_decay: float = Field(1, gt=0, le=1)
    clip_norm: PositiveFloat | None = 10
    precision: Precision = "fp32"
    ema: float | None = Field(0.999, ge=0, lt=1)
    early_stop: PositiveInt | None = None
    freeze: NonNegativeInt | Literal["backbone", "all_but_head"] = 0
    frozen_batch_norm: bool = False
    best_by: str
    evaluate_every: PositiveInt = 1
    workers: NonNegativeInt = 2
    seed: NonNegativeInt = 0


class Train(Learning):
    """How a detector learns.

    teacher: a model whose outputs are learned beside the objects, or none. alternating: a Faster R-CNN learns in the
    paper's four steps, each of which takes all the epochs, in place of all at once (see detkit.train.alternate).
    """

    best_by: Literal["AP", "AP50"] = "AP"
    teacher: Teacher | None = None
    alternating: bool = False


class TrainClassifier(Learning):
    """How a classifier learns.

    label_smoothing: the share of every label that goes to all classes alike. mixup, cutmix: α of the Beta distribution
    of which shares are drawn, 0 for none; with both, each batch has one of them. distillation: a teacher, or none.
    """

    best_by: Literal["top1", "top5"] = "top1"
    label_smoothing: Fraction = 0
    mixup: NonNegativeFloat = 0
    cutmix: NonNegativeFloat = 0
    distillation: Distillation | None = None


class TrainConfig(ModelConfig):
    """A whole config file: the model, and the sections `augment` and `train` that only training reads.

    classes: without them the model learns the classes of the data.
    """

    classes: str | list[str] = Field(default_factory=list)
    augment: Augment = Augment()
    train: Train = Train()


class ClassifierTrainConfig(ClassifierConfig):
    """A whole config file of a classifier, with the sections `augment` and `train`; classes as in TrainConfig."""

    classes: str | list[str] = Field(default_factory=list)
    classifier: Classifier.Config
    augment: ClassifierAugment = ClassifierAugment()
    train: TrainClassifier = TrainClassifier()


AnyTrainConfig = TrainConfig | ClassifierTrainConfig


def read_train_config(name: str | Path, settings: Sequence[str] = ()) -> TrainConfig:
    """Read a detector's config for training by a shipped one's name or a .yaml file, with `key.subkey=value` overrides.

    Raises DetkitError when it is a classifier's.
    """
    path = _config_file(name)
    return validate(TrainConfig, override(require_detector(read_yaml(path), path.name), settings), path.name)


def read_any_train_config(name: str | Path, settings: Sequence[str] = ()) -> AnyTrainConfig:
    """Read the config of a detector or a classifier, as `read_train_config` does."""
    path = _config_file(name)
    return validate_any(override(read_yaml(path), settings), path.name)


def _config_file(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix in (".safetensors", ".weights", ".pt", ".pth"):
        raise DetkitError(
            f"{name}: training begins with a config: `detkit train CONFIG --data PATH --weights {name}` starts from "
            "these weights"
        )
    if path.suffix == ".cfg":
        raise DetkitError(f"{name}: training begins with a config, as yolov3_tiny_coco; a .cfg is only detected with")
    if path.is_dir():
        raise DetkitError(
            f"{name}: is a folder; `detkit train --resume {name}` goes on with a run, and its config.yaml begins anew"
        )
    return find_config(str(name))


def validate_any(tree: dict[str, Any], source: str) -> AnyTrainConfig:
    """Build the config of what a tree describes: with the key `classifier` of a classifier, else of a detector."""
    if "classifier" in tree:
        return validate(ClassifierTrainConfig, tree, source)
    return validate(TrainConfig, tree, source)


def model_tree(config: AnyTrainConfig) -> dict[str, Any]:
    """Return the part of a config that a checkpoint holds: all that using the model needs."""
    model = ModelConfig if isinstance(config, TrainConfig) else ClassifierConfig
    return config.model_dump(mode="json", include=set(model.model_fields))
