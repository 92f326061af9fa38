"""What a run leaves behind and shows while it goes on: the files of its folder, and the lines and bar on stderr."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.utils.tensorboard import SummaryWriter

from detkit.data.sample import Dataset
from detkit.data.show import MOST, batch_tiles, prediction_tile, sheet
from detkit.files import explained, write_atomically
from detkit.train.config import AnyTrainConfig, model_tree
from detkit.train.module import Row, Training
from detkit.train.task import HEADLINES, METRICS, headlines
from detkit.weights.checkpoint import Header, save_checkpoint

STATE = "resume.pt"
STATE_FORMAT = 3
FILES = (
    "config.yaml", "metrics.csv", "curves.png", "first_batches.png", "validation_predictions.png",
    "last.safetensors", "best.safetensors", STATE,
)  # fmt: skip
"""What a run writes into its folder, beside the TensorBoard log."""


class Record(Checkpoint):
    """Keeps the run folder: at the end of each epoch everything in it is whole and of that epoch.

    The state that a stopped run goes on from is written last, so that whatever is older than it is written again.
    job: what `detkit train --resume` needs to know beside the config: the data and the devices. kept: the epoch after
    which the state on disk is, 0 before the first one.
    """

    kept: int | None = None

    def __init__(self, folder: Path, config: AnyTrainConfig, job: dict[str, Any], evaluated: Dataset) -> None:
        self.folder = folder
        self.config = config
        self.classes = tuple(config.classes)
        self._job = job
        self._evaluated = evaluated
        self._first: list[Image.Image] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the TensorBoard log, and make a run that is stopped in its first epoch one that can go on."""
        assert isinstance(pl_module, Training)
        with explained(self.folder):
            self._board = SummaryWriter(self.folder / "tensorboard", purge_step=pl_module.step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state before the first step."""
        assert isinstance(pl_module, Training)
        self.kept = len(pl_module.history)
        if not self.kept:
            self._save_state(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the first pictures that the run learns."""
        if trainer.current_epoch == 0 and len(self._first) < MOST:
            pictures, targets, *_ = batch
            self._first += batch_tiles(pictures, targets, self.classes)
            if len(self._first) >= MOST or batch_idx + 1 == trainer.num_training_batches:
                _write_picture(self.folder / "first_batches.png", sheet(self._first[:MOST]))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every tenth step's losses and learning rate; after an epoch's last step the weights must be finite."""
        assert isinstance(pl_module, Training)
        if pl_module.step % 10 == 0:
            values = {f"loss/{name}": value for name, value in pl_module.terms.items()} | {"lr": pl_module.lr}
            for name, value in values.items():
                self._board.add_scalar(name, value, pl_module.step)
        if trainer.is_last_batch:  # of the others the next loss tells; before anything of this epoch is written
            pl_module.require_finite()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what is found in the first pictures of the evaluation."""
        assert isinstance(pl_module, Training)
        tiles = []
        for index, found in pl_module.task.examples:
            sample = self._evaluated.samples[index]
            truth = sample.target(), self._evaluated.classes
            tiles.append(prediction_tile(sample.read(), *truth, found, self.classes))
        _write_picture(self.folder / "validation_predictions.png", sheet(tiles, pl_module.task.legend))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write metrics, curves and weights of the epoch, then the state."""
        assert isinstance(pl_module, Training)
        history = pl_module.history
        write_atomically(self.folder / "metrics.csv", metrics_csv(history))
        write_atomically(self.folder / "curves.png", _png(plot_history(history)))
        row = history[-1]
        header = Header(
            model_tree(self.config), self.classes, {name: value for name, value in row.items() if value is not None}
        )
        tensors = pl_module.network.state_dict()
        save_checkpoint(self.folder / "last.safetensors", tensors, header)
        if pl_module.best is row:
            save_checkpoint(self.folder / "best.safetensors", tensors, header)
        for name in METRICS:
            if (value := row.get(name)) is not None:
                self._board.add_scalar(f"metric/{name}", value, pl_module.step)
        with explained(self.folder):
            self._board.flush()
        self._save_state(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the TensorBoard log."""
        self._board.close()

    def _save_state(self, module: Training) -> None:
        buffer = io.BytesIO()
        config = self.config.model_dump(mode="json")
        torch.save({"format": STATE_FORMAT, "config": config, "job": self._job, **module.state()}, buffer)
        write_atomically(self.folder / STATE, buffer.getvalue())
        self.kept = len(module.history)


class Display(Checkpoint):
    """Says on stderr how the training goes: a bar for each epoch on a terminal, and a line when it is over.

    A Checkpoint, as Lightning calls those after the module has summed up its epoch.
    """

    def __init__(self, epochs: int, console: Console) -> None:
        self._epochs = epochs
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._begin = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin, self._first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._task = self._bar.add_task(self._title(trainer), total=trainer.num_training_batches, info="")
        self._epoch_begin = time.monotonic()
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on."""
        assert isinstance(pl_module, Training)
        done = trainer.current_epoch - self._first + (batch_idx + 1) / trainer.num_training_batches
        self._bar.update(self._task, advance=1, info=f"{_losses(pl_module.terms)}  {self._left(trainer, done)}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the bar stands still because pictures are evaluated."""
        self._bar.update(self._task, description=f"{self._title(trainer)}, evaluating")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch in one line."""
        assert isinstance(pl_module, Training)
        self._bar.remove_task(self._task)
        row = pl_module.history[-1]
        losses = {name: value for name, value in row.items() if name in pl_module.terms and value is not None}
        parts = [self._title(trainer), _losses(losses), f"lr {row['lr']:.3g}", *headlines(row)]
        parts += ["best"] * (pl_module.best is row)
        seconds = time.monotonic() - self._epoch_begin
        parts += [f"{seconds:.1f} s", self._left(trainer, trainer.current_epoch + 1 - self._first)]
        self._console.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the bar away before the error is told."""
        self._bar.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the bar away."""
        self._bar.stop()

    def _title(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{self._epochs}"

    def _left(self, trainer: Trainer, epochs_done: float) -> str:
        each = (time.monotonic() - self._begin) / epochs_done
        left = (self._epochs - self._first - epochs_done) * each
        return f"{timedelta(seconds=round(left))} left"


def metrics_csv(history: Sequence[Row]) -> str:
    """Return a run's history as a table, one line an epoch; what was not measured is left empty."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def plot_history(history: Sequence[Row]) -> Figure:
    """Draw the loss terms, the learning rate and the scores over the epochs."""
    figure = Figure(figsize=(12, 3.8), dpi=120, layout="constrained")
    losses, rate, scores = figure.subplots(1, 3)
    terms = [name for name in history[-1] if name not in ("epoch", "step", "lr", *METRICS)]
    for axes, title, names in (
        (losses, "Loss terms", terms),
        (rate, "Learning rate", ["lr"]),
        (scores, "Scores", [name for name in HEADLINES if any(name in row for row in history)]),
    ):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else "")
        axes.set_title(title, loc="left")
        axes.set_xlabel("Epoch")
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines and axes is not rate:
            axes.legend(frameon=False)
    if any(row.get(name) for row in history for name in terms):
        losses.set_yscale("log")
    scores.set_ylim(bottom=0)
    return figure


def _losses(terms: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in terms.items())


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".png", picture[..., ::-1])
    write_atomically(path, data.tobytes())


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
