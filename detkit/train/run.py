r"""A training run: from a config and a data set, or from the folder of a run that was stopped, to a trained network.

The run folder:
  config.yaml                  the whole config, classes included; `detkit train` accepts it again
  metrics.csv, curves.png      an epoch a line: loss terms, learning rate, the numbers of the evaluation
  tensorboard/                 the same and every tenth step, for TensorBoard
  first_batches.png            what the network sees first, with its boxes
  validation_predictions.png   what it finds in the first pictures of the last evaluation
  last.safetensors, best.safetensors   detkit checkpoints: for `--model`, or to start from with `--weights`
  resume.pt                    what goes on after a stop: all weights, optimizer, history; tensors and numbers, no code

Several devices and machines. The pictures of a batch are shared out, each process computes its gradients, and they are
averaged: losses are those of one process with the same batch, but for what each process draws at random (sampled
proposals, dropout, stochastic depth, mixup) and for batch norm, whose statistics are of the pictures of one process
(unless `train.frozen_batch_norm` is set). Batches of fewer than about eight pictures a process make them noisy: freeze
them then. `--devices N` starts its own processes. On several machines each starts one, with the
same command, config and data, and the run folder on a disk that all of them see if the run is to be resumed:

    torchrun --nnodes 2 --nproc-per-node 4 --node-rank 0|1 --master-addr HOST --master-port 29500 --no-python \
        detkit train CONFIG --data PATH --devices 4 --nodes 2
"""

from __future__ import annotations

import errno
import logging
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from detkit.backbones.base import Backbone, WholeNetwork
from detkit.classify.model import build_classifier
from detkit.config import override, read_yaml
from detkit.data.crops import crop_objects
from detkit.data.dataset import Wanted, load_dataset
from detkit.data.loader import evaluation_loader, training_loader
from detkit.data.names import class_names, match_classes, shorten
from detkit.data.proposals import proposals_of
from detkit.data.relabel import relabel
from detkit.data.sample import Dataset, count
from detkit.detectors.base import Detector
from detkit.errors import DetkitError
from detkit.evaluate.coco import CocoEvaluator
from detkit.evaluate.records import GroundTruth
from detkit.files import explained, remove_parts, write_atomically
from detkit.model import build_detector, load_weights, weights_file
from detkit.predict.runs import next_run, require_free
from detkit.train.callbacks import FILES, STATE, STATE_FORMAT, Display, Record
from detkit.train.config import (
    AnyTrainConfig,
    ClassifierTrainConfig,
    TrainConfig,
    model_tree,
    read_any_train_config,
    validate_any,
)
from detkit.train.module import Row, Training
from detkit.train.task import Classification, Detection, Network, Task
from detkit.train.teacher import load_classifier_teacher, load_teacher
from detkit.weights.checkpoint import load_state, read_plain, read_tensors
from detkit.weights.darknet import first_layers, load_darknet_weights

_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_STATE = {
    "config": dict, "job": dict, "epoch": int, "step": int, "history": list, "weights": dict, "optimizer": dict,
    "precision": dict,
}  # fmt: skip
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Job:
    """Where a run has its pictures and what it runs on, in processes: `devices` on each of `nodes` machines.

    split, val_split: the parts to learn and to evaluate, by default the data's training and its validation split.
    """

    data: str
    split: str | None = None
    val_split: str | None = None
    device: str = "auto"
    devices: int = 1
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended: epochs done, the numbers of the last one and, if any was evaluated, of the best one."""

    folder: Path
    epochs: int
    stopped_early: bool
    last: Row
    best: Row | None

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self) | {"folder": str(self.folder)}


def train(
    config: str | Path,
    job: Job,
    *,
    settings: Sequence[str] = (),
    out: Path | None = None,
    weights: Path | None = None,
    console: Console | None = None,
) -> Trained | None:
    """Train what a config describes: a shipped one's name or a .yaml file, with `key.subkey=value` overrides.

    out: a new or empty folder, by default `runs/train/<n>`. weights: what to start from, a file or a config that comes
    with its own; tensors that have another shape, as those of other classes have, keep their random start, and so do
    the layers behind the last one of a Darknet file that holds only the first. console: where to tell how it goes. Of
    several processes only the first one writes and returns something. Raises DetkitError when the config, the data or
    the weights are off, a loss is no longer finite, or the folder cannot be written.
    """
    options = read_any_train_config(config, settings)
    if isinstance(options, TrainConfig) and options.train.alternating:
        from detkit.train.alternate import train_alternately  # calls this function for each of its steps

        return train_alternately(config, job, settings=settings, out=out, weights=weights, console=console)
    trainer = _trainer(options, job)
    if out is not None and trainer.is_global_zero:
        require_free(out)
    say = _say(console if trainer.is_global_zero else None)
    learned, evaluated, classes = _load_data(job, options, say)
    options = options.model_copy(update={"classes": list(classes)})
    torch.manual_seed(options.train.seed)
    detector = _build(options)
    _start_backbone(detector, options, say)
    if weights is not None:
        _start_from(detector, weights_file(weights), say)
    return _fit(trainer, detector, options, job, learned, evaluated, out, None, console)


def resume(
    folder: Path, *, settings: Sequence[str] = (), changes: dict[str, Any] | None = None, console: Console | None = None
) -> Trained | None:
    """Go on with a run from its last whole epoch, as if it had never been stopped.

    settings: overrides of `train.*` and `augment.*`, such as more epochs. changes: fields of its Job that differ now.
    Raises DetkitError when the run is finished, is none, or cannot go on with these settings.
    """
    state = _read_state(folder)
    options = validate_any(override(read_yaml(folder / "config.yaml"), settings), str(folder / "config.yaml"))
    _require_same(validate_any(state["config"], str(folder / STATE)), options, folder)
    if state["epoch"] >= options.train.epochs:
        raise DetkitError(
            f"{folder}: is finished, all {count(state['epoch'], 'epoch')} are done; to go on, --set train.epochs=MORE"
        )
    job = Job(**state["job"] | (changes or {}))
    trainer = _trainer(options, job)
    say = _say(console if trainer.is_global_zero else None)
    learned, evaluated, _ = _load_data(job, options, say)
    detector = _build(options)
    say(f"{folder}: going on after epoch {state['epoch']}")
    return _fit(trainer, detector, options, job, learned, evaluated, folder, state, console)


def _fit(
    trainer: Trainer,
    detector: Network,
    config: AnyTrainConfig,
    job: Job,
    learned: Dataset,
    evaluated: Dataset,
    folder: Path | None,
    state: dict[str, Any] | None,
    console: Console | None,
) -> Trained | None:
    """Begin a run in a new folder, or go on with that of a state; nothing is written before all else is in order."""
    module = Training(detector, config.train, _task(config, detector, evaluated))
    module = module.to(memory_format=torch.channels_last)
    if state is not None:
        assert folder is not None
        module.restore(state, folder / STATE)
        if module.given_up:
            raise DetkitError(
                f"{folder}: has ended early, after {config.train.early_stop} evaluations without a better score; "
                "raise train.early_stop, or set it to null, to go on"
            )
        progress: Any = trainer.fit_loop.epoch_progress.current
        progress.processed = progress.completed = state["epoch"]
        if state["precision"]:  # only a run in fp16 has one
            trainer.precision_plugin.load_state_dict(state["precision"])
    share: Any = {"batch_size": config.train.batch_size // trainer.world_size, "workers": config.train.workers}
    share |= {"rank": trainer.global_rank, "world_size": trainer.world_size}
    to_learn, to_evaluate = (_proposals(dataset, config, console) for dataset in (learned, evaluated))
    loader = training_loader(
        learned, config.preprocess, config.augment, seed=config.train.seed, proposals=to_learn, **share
    )
    evaluation = evaluation_loader(evaluated, config.preprocess, proposals=to_evaluate, **share)
    record = None
    if trainer.is_global_zero:
        if state is None or folder is None:
            folder = _new_folder(folder)
            _say(console)(f"run folder: {folder}")
        for name in FILES:
            remove_parts(folder / name)
        write_atomically(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        found = job.data if job.data.startswith("sample:") else str(Path(job.data).resolve())
        record = Record(folder, config, asdict(replace(job, data=found)), evaluated)
        trainer.callbacks += [record, *([Display(config.train.epochs, console)] if console else [])]  # type: ignore[attr-defined]
    with _explained_stop(trainer, record), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, loader, evaluation)
    if record is None:
        return None
    return Trained(record.folder, len(module.history), module.given_up, module.history[-1], module.best)


def _build(config: AnyTrainConfig) -> Network:
    return build_detector(config) if isinstance(config, TrainConfig) else build_classifier(config)


def _task(config: AnyTrainConfig, network: Network, evaluated: Dataset) -> Task:
    """Return what a network learns and how it is evaluated."""
    classes = class_names(config.classes)
    if isinstance(config, ClassifierTrainConfig):
        return Classification(classes, config.train, load_classifier_teacher(config))
    assert isinstance(network, Detector)
    truth = GroundTruth.from_coco(evaluated.ground_truth())
    to_model = match_classes(classes, evaluated.classes).to_model
    to_data = [to_model.index(label) if label in to_model else None for label in range(network.num_classes)]
    known = tuple(label for label, index in enumerate(to_data) if index is not None) if None in to_data else ()
    return Detection(
        config.selection.model_copy(update={"score": 0.001, "max_detections": 100, "labels": known}),
        lambda: CocoEvaluator(truth, to_data),
        [sample.id for sample in evaluated.samples],
        load_teacher(config, network),
        config.selection.score,
    )


@contextmanager
def _explained_stop(trainer: Trainer, record: Record | None) -> Iterator[None]:
    """Say of what ends a training before its time how to go on, and end the other processes."""
    try:
        yield
    except SystemExit as exit_:
        if record is None:  # another process says why
            raise
        raise KeyboardInterrupt(record.folder) from exit_  # what Lightning makes an exit of
    except (DetkitError, OSError, RuntimeError) as error:
        if trainer.world_size > 1 and "by peer" in str(error):
            raise DetkitError("another process of the training has ended, and said why above") from None
        what = _what_happened(error, record)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        if what is None:
            raise
        if record is not None and record.kept is not None:
            kept = f"epoch {record.kept} is kept" if record.kept else "the start of the run is kept"
            change = "".join(f" --set {key}=…" for key in re.findall(r"(?:lower|raise) (train\.[a-z_.]+)", what))
            then = "" if change else "once that is mended, "
            what += f"; {kept}: {then}`detkit train --resume {record.folder}{change}` goes on from there"
        raise DetkitError(what) from None


def _what_happened(error: Exception, record: Record | None) -> str | None:
    """Return in a sentence what ended a training and what helps, or None of what should not happen."""
    if isinstance(error, DetkitError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU has no memory left; lower train.batch_size and raise train.accumulate by as much"
    if "DataLoader worker (pid" in str(error):
        return "a process that reads pictures was killed, most likely for lack of memory; lower train.workers"
    if isinstance(error, OSError) and error.errno in _NO_ROOM and record is not None:
        return f"{record.folder}: cannot be written: {error.strerror}"
    return None


def _trainer(config: AnyTrainConfig, job: Job) -> Trainer:
    gpus = torch.cuda.device_count()
    on_gpu = job.device == "cuda" or (job.device == "auto" and gpus > 0)
    if job.device not in ("auto", "cpu", "cuda"):
        raise DetkitError(f"--device {job.device}: expected auto, cpu or cuda; --devices says how many")
    if on_gpu and job.devices > gpus:
        raise DetkitError(f"--devices {job.devices}: this machine has {count(gpus, 'CUDA device')}; use --device cpu")
    if config.train.precision == "fp16" and not on_gpu:
        raise DetkitError("train.precision: fp16 needs a GPU; on the CPU use bf16 or fp32")
    processes = job.devices * job.nodes
    if config.train.batch_size % processes:
        raise DetkitError(
            f"train.batch_size: {config.train.batch_size} pictures cannot be shared evenly by {processes} processes; "
            "make it a multiple of them"
        )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of itself and of other products
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        return Trainer(
            accelerator="gpu" if on_gpu else "cpu",
            devices=job.devices,
            num_nodes=job.nodes,
            strategy="ddp" if processes > 1 else "auto",
            precision=_PRECISIONS[config.train.precision],
            max_epochs=config.train.epochs,
            accumulate_grad_batches=config.train.accumulate,
            gradient_clip_val=config.train.clip_norm,
            check_val_every_n_epoch=config.train.evaluate_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def _load_data(
    job: Job, config: AnyTrainConfig, say: Callable[[str], None]
) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Read the pictures to learn, with the model's labels, and to evaluate, with their own, and choose the classes.

    For a classifier an object is a picture, and those to evaluate have the model's labels, too.
    """
    learned = load_dataset(job.data, job.split or Wanted.LEARNED)
    evaluated = load_dataset(job.data, job.val_split)
    if isinstance(config, ClassifierTrainConfig):
        learned, evaluated = (crop_objects(dataset, config.crops) for dataset in (learned, evaluated))
    for dataset in (learned, evaluated):
        part = f"{dataset.source}, {dataset.split}" if dataset.split else str(dataset.source)
        say(f"{part}: {count(len(dataset), 'picture')}, {count(sum(len(s.labels) for s in dataset.samples), 'object')}")
        for note in dataset.notes:
            say(f"{part}: {note}")
    if learned.split == evaluated.split:
        say("evaluated on the pictures that are learned: the scores say nothing about others; name a --val-split")
    classes = class_names(config.classes or learned.classes)
    named = match_classes(classes, learned.classes).to_model
    learned = relabel(learned, classes, say)
    taught = {label for s in learned.samples for label in s.labels[~s.crowd | s.somewhere].tolist()}
    if untaught := [classes[label] for label in named if label is not None and label not in taught]:
        say(f"classes with nothing to learn from, {len(untaught)} of {len(classes)}: {shorten(untaught)}")
    to_model = match_classes(classes, evaluated.classes).to_model
    if not set(to_model) - {None}:
        raise DetkitError(f"{evaluated.source}: none of the classes to learn is in the split {evaluated.split!r}")
    if isinstance(config, ClassifierTrainConfig):
        evaluated = relabel(evaluated, classes, say)
        for dataset in (learned, evaluated):
            if not dataset.samples:
                raise DetkitError(f"{dataset.source}: there is nothing to classify in the split {dataset.split!r}")
    elif not any(to_model[i] is not None for s in evaluated.samples for i in s.labels[~s.crowd]):
        say(
            f"{part}: no object of the classes to learn, so there will be no score: no epoch is the best, and neither "
            "train.early_stop nor a plateau has anything to go by; name another --val-split"
        )
    return learned, evaluated, classes


def _proposals(dataset: Dataset, config: AnyTrainConfig, console: Console | None) -> list[NDArray[np.float32]] | None:
    """Make the proposals of every picture, or take them from their cache, if the detector looks at such."""
    if isinstance(config, ClassifierTrainConfig) or config.proposals is None:
        return None
    bar = Progress(console=console, transient=True, disable=console is None or not console.is_terminal)
    with bar:
        task = bar.add_task("proposals", total=len(dataset))
        found = proposals_of(dataset, config.proposals, advance=lambda cached: bar.advance(task))
    return [proposals.boxes for proposals in found]


def _start_from(detector: Network, path: Path, say: Callable[[str], None]) -> None:
    """Load weights; what has another shape there, or is behind the end of a Darknet file, keeps its random start."""
    if path.suffix == ".weights":
        layers = list(getattr(detector, "darknet_layers", list)())
        first = first_layers(layers, path)
        if len(first) < len(layers):
            load_darknet_weights(first, path)
            say(f"{path}: the first {len(first)} of {len(layers)} layers taken over; the others are new")
        else:
            load_weights(detector, path)
        return
    own, tensors = detector.state_dict(), read_tensors(path)
    fresh = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    load_state(detector, tensors | {name: own[name] for name in fresh}, path)
    if fresh:
        say(
            f"{path}: {len(own) - len(fresh)} of {len(own)} tensors taken over; new, of other shape: {', '.join(fresh)}"
        )


def _start_backbone(detector: Network, config: AnyTrainConfig, say: Callable[[str], None]) -> None:
    """Load the backbone of another model, as `backbone.weights` asks; what it has beyond the own one is left.

    The file is a model of detkit's, or of timm's or torchvision's whose tensors have no prefix.
    """
    model = config.detector if isinstance(config, TrainConfig) else config.classifier
    source = getattr(getattr(model, "backbone", None), "weights", None)
    if source is None:
        return
    path, prefix = weights_file(source), "backbone."
    tensors = read_tensors(path)
    held = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    backbone = cast("Backbone | WholeNetwork", detector.get_submodule("backbone"))
    own = backbone.taken_from(held or tensors)
    # A transformer that only classified has had no pyramid.
    fresh = {k: v for k, v in backbone.state_dict().items() if k.startswith("pyramid.") and k not in own}
    load_state(backbone, own | fresh, f"backbone.weights: {path}")
    say(f"{path}: its backbone taken over, {count(len(own), 'tensor')}" + ("; the pyramid is new" if fresh else ""))


def _new_folder(out: Path | None) -> Path:
    if out is None:
        return next_run("train")
    require_free(out)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        if folder.is_file() and (folder.parent / STATE).is_file():
            raise DetkitError(f"{folder}: is a file of a run; name its folder: --resume {folder.parent}")
        if steps := sorted(folder.glob(f"[1-4]_*/{STATE}")):
            raise DetkitError(
                f"{folder}: holds the steps of an alternating training, which does not go on as a whole: "
                f"`--resume {steps[-1].parent}` ends the last step begun; for those after it train anew, with another "
                "--out"
            )
        raise DetkitError(f"{folder}: is no folder of a training run that can go on: it has no {STATE}")
    state = read_plain(path, "what `detkit train` writes")
    version = state.get("format") if isinstance(state, dict) else None
    if version != STATE_FORMAT:
        older = ", of an older detkit" if isinstance(version, int) and version < STATE_FORMAT else ""
        raise DetkitError(f"{path}: expected the state of a run, of format {STATE_FORMAT}, got format {version}{older}")
    off = [name for name, kind in _STATE.items() if not isinstance(state.get(name), kind)]
    if off or len(state["history"]) != state["epoch"] or set(state["job"]) != {field.name for field in fields(Job)}:
        raise DetkitError(f"{path}: is no whole state of a run: {', '.join(off) or 'its history or job'} is off")
    return cast("dict[str, Any]", state)


def _require_same(before: AnyTrainConfig, now: AnyTrainConfig, folder: Path) -> None:
    """Refuse settings that the weights or the optimizer's state of a stopped run do not fit."""
    fixed: dict[str, Callable[[AnyTrainConfig], Any]] = {
        "the model": model_tree,
        "train.optimizer.name": lambda config: config.train.optimizer.name,
        "train.freeze": lambda config: (config.train.freeze, config.train.frozen_batch_norm),
        "train.ema (on or off)": lambda config: config.train.ema is None,
    }
    for name, value in fixed.items():
        if value(before) != value(now):
            raise DetkitError(
                f"{folder}: a run goes on with {name} as it was, in config.yaml, too; for another start a new run with "
                f"--weights {folder / 'last.safetensors'}"
            )


def _say(console: Console | None) -> Callable[[str], None]:
    def say(line: str) -> None:
        if console is not None:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return say
