"""What Lightning trains: a detector or a classifier, the average of its weights, and what is known of the run so far.

Lightning runs the loop, the devices, mixed precision, accumulation and clipping; everything that a run needs to go on
after a stop is here, in `state()`.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from timm.optim.rmsprop_tf import RMSpropTF
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from detkit.backbones.base import Backbone, WholeNetwork
from detkit.data.loader import EvaluationBatch
from detkit.errors import DetkitError
from detkit.structures import Batch, Target
from detkit.train.config import SGD, Learning, RMSprop
from detkit.train.schedule import (
    ema_decay,
    evaluations_since_best,
    learning_rate_factor,
    run_length,
    update_average,
)
from detkit.train.task import Network, Task
from detkit.weights.checkpoint import load_state

Row = dict[str, float | None]
"""One epoch in numbers: epoch, step, lr, the mean of each loss term over its steps, those of an evaluation or None."""


class Training(LightningModule):
    """A network in training.

    detector: a detector, or a classifier in its place. task: what it learns and how good it is. `network` is what is
    evaluated and saved: the averaged weights where there is an average.
    terms, lr: the loss terms of the last step, averaged over processes, and its learning rate (for all but the
    backbone).
    """

    def __init__(self, detector: Network, train: Learning, task: Task) -> None:
        super().__init__()
        self.detector = detector
        self.average = copy.deepcopy(detector).requires_grad_(False) if train.ema is not None else None
        self.train_config = train
        self.frozen = frozen_modules(detector, train)
        for module in self.frozen:
            module.requires_grad_(False)
        parameter_groups(detector, train)  # raises now what would else be raised when training begins
        self.task = task
        self.step = 0
        self.history: list[Row] = []
        self.terms: dict[str, float] = {}
        self.lr = 0.0
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._scores: dict[str, float | None] = {}
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def network(self) -> Network:
        """The network with the weights that count."""
        return self.average if self.average is not None else self.detector

    @property
    def scores(self) -> list[float]:
        """The score that `best` is best by, of every evaluation that has one: without objects there is none."""
        return [score for row in self.history if (score := row.get(self.train_config.best_by)) is not None]

    @property
    def best(self) -> Row | None:
        """The epoch with the best score, of equal ones the first, or None where no evaluation has had a score."""
        name, best = self.train_config.best_by, max(self.scores, default=None)
        return next((row for row in self.history if best is not None and row.get(name) == best), None)

    def state(self) -> dict[str, Any]:
        """Return tensors, numbers and text from which `restore` goes on after the last whole epoch.

        What the optimizer has learned is by the name of its parameter: its number changes with the groups.
        """
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.detector.named_parameters()}
        learned = cast("Optimizer", self.optimizers(use_pl_optimizer=False)).state
        return {
            "epoch": len(self.history),
            "step": self.step,
            "history": self.history,
            "weights": self.state_dict(),
            "optimizer": {names[parameter]: state for parameter, state in learned.items()},
            "precision": self.trainer.precision_plugin.state_dict(),
        }

    def restore(self, state: dict[str, Any], source: Path) -> None:
        """Take over the state of a stopped run; the optimizer and the loss scale follow when training begins."""
        self.step, self.history = state["step"], state["history"]
        load_state(self, state["weights"], source)
        self._optimizer_state = state["optimizer"]

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer, with the state of a stopped run where there is one."""
        config = self.train_config.optimizer
        groups = parameter_groups(self.detector, self.train_config)
        optimizer: Optimizer
        if isinstance(config, SGD):
            optimizer = optim.SGD(groups, config.lr, config.momentum, nesterov=config.nesterov)
        elif isinstance(config, RMSprop):
            optimizer = RMSpropTF(groups, config.lr, config.decay, config.eps, momentum=config.momentum)
        else:
            optimizer = optim.AdamW(groups, config.lr, config.betas)
        if self._optimizer_state is not None:
            # Only what was learned: the learning rate and its like are those of the config, which may have changed.
            names = {parameter: name for name, parameter in self.detector.named_parameters()}
            order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            state = {i: self._optimizer_state[name] for i, name in enumerate(order) if name in self._optimizer_state}
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
            self._optimizer_state = None
        return optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch and its targets; placements and indices stay on the CPU."""
        pictures, targets, *rest = batch
        return pictures.to(device), [target.to(device) for target in targets], *rest

    def on_train_epoch_start(self) -> None:
        """Begin an epoch whose randomness depends on nothing but the seed, the epoch and the process."""
        seeds = np.random.SeedSequence([self.train_config.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]) >> 1)
        cast("Any", self.trainer.train_dataloader).set_epoch(self.current_epoch)
        if self.current_epoch + 1 == self.train_config.epochs:
            self.trainer.check_val_every_n_epoch = 1  # the last epoch is always evaluated
        self.detector.train()
        for module in self.frozen:
            module.eval()
        self._sums, self._batches, self._scores = {}, 0, {}

    def training_step(self, batch: tuple[Batch, list[Target]], index: int) -> Tensor:
        """Return the sum of the loss terms; one that is not finite ends the training."""
        length = run_length(self.train_config, len(cast("DataLoader[Any]", self.trainer.train_dataloader)))
        in_epoch = self.step - int(cast("float", self.history[-1]["step"]) if self.history else 0)
        # Not self.step: a run that went on with other batches had epochs of another number of steps.
        position = self.current_epoch * length.steps_per_epoch + in_epoch
        factor = learning_rate_factor(self.train_config, position, length, self.scores)
        self.lr = self.train_config.optimizer.lr * factor
        for group in cast("Optimizer", self.optimizers(use_pl_optimizer=False)).param_groups:
            group["lr"] = self.lr * group["lr_factor"]
        losses = self.task.losses(self.detector, *batch)
        everywhere = self.trainer.strategy.reduce(torch.stack(list(losses.values())).detach().float(), reduce_op="mean")
        self.terms = dict(zip(losses, cast("Tensor", everywhere).tolist(), strict=True))
        for name, value in self.terms.items():
            if not math.isfinite(value):
                if not self.trainer.is_global_zero:
                    raise SystemExit(2)  # all processes see it, one says it
                raise DetkitError(
                    f"the loss term {name!r} is {value} in epoch {self.current_epoch + 1}, step {self.step + 1}; "
                    f"{self._remedy()}"
                )
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._batches += 1
        return torch.stack(list(losses.values())).sum()

    def require_finite(self) -> None:
        """Raise DetkitError when a step has left a weight, its average or a statistic of the network not finite."""
        for name, tensor in self.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise DetkitError(
                    f"step {self.step} has left {name} not finite at the end of epoch {self.current_epoch + 1}; "
                    f"{self._remedy()}"
                )

    def _remedy(self) -> str:
        return f"lower train.optimizer.lr (now {self.lr:.3g}), lengthen train.warmup, set train.clip_norm, or use fp32"

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the average follow."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None and self.train_config.ema is not None:
            update_average(self.average, self.detector, ema_decay(self.step, self.train_config.ema))
        self.step += 1

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self.task.begin()

    def validation_step(self, batch: EvaluationBatch, index: int) -> None:
        """Evaluate a batch of pictures."""
        self.task.update(self.network, batch)

    def on_validation_epoch_end(self) -> None:
        """Sum up the evaluation over the pictures of all processes; every process gets its numbers."""
        self._scores = self.task.scores(self.trainer.world_size)

    def on_train_epoch_end(self) -> None:
        """Sum up the epoch, and end the training when its scores no longer rise."""
        losses = {name: total / self._batches for name, total in self._sums.items()}
        self.history.append(
            {"epoch": self.current_epoch + 1, "step": self.step, "lr": self.lr, **losses, **self._scores}
        )
        self.trainer.should_stop = self.given_up

    @property
    def given_up(self) -> bool:
        """Whether `early_stop` evaluations have passed without a better score."""
        patience = self.train_config.early_stop
        return patience is not None and evaluations_since_best(self.scores) >= patience


def frozen_modules(detector: Network, train: Learning) -> list[nn.Module]:
    """Return what does not learn and stays in evaluation mode: `freeze` and the batch norms of `frozen_batch_norm`."""
    frozen: list[nn.Module] = []
    if train.freeze:
        names = ("backbone", "neck") if train.freeze == "all_but_head" else ("backbone",)
        for name in names:
            part = getattr(detector, name, None)
            if part is None:
                raise DetkitError(f"train.freeze: {train.freeze}: {type(detector).__name__} has no {name}")
            frozen.append(part)
        if isinstance(train.freeze, int):
            backbone = frozen.pop()
            stages = backbone.stages_from_picture() if isinstance(backbone, Backbone | WholeNetwork) else []
            if train.freeze > len(stages):
                raise DetkitError(
                    f"train.freeze: {type(backbone).__name__} has {len(stages)} stages to freeze, got {train.freeze}; "
                    "`backbone` freezes all of it"
                )
            frozen += stages[: train.freeze]
    if train.frozen_batch_norm:
        frozen += [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    return frozen


def parameter_groups(detector: Network, train: Learning) -> list[dict[str, Any]]:
    """Split the parameters that learn by learning rate (the backbone and its stages have their own) and weight decay.

    Vectors and scalars, that is norms, biases and scales, have no weight decay.
    """
    depth = _depth_of_backbone(detector) if train.layer_decay < 1 else {}
    backbone = getattr(detector, "backbone", None)
    of_backbone = {id(parameter) for parameter in backbone.parameters()} if backbone is not None else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in detector.parameters():
        if parameter.requires_grad:
            factor = train.backbone_lr_factor if id(parameter) in of_backbone else 1.0
            factor *= train.layer_decay ** depth.get(id(parameter), 0)
            decay = train.optimizer.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def _depth_of_backbone(detector: Network) -> dict[int, int]:
    """Return how many stages from the end of the backbone each of its parameters, by its id, is, from 1 on.

    What belongs to no stage, such as a table of positions, is as deep as the first.
    """
    backbone = getattr(detector, "backbone", None)
    stages = backbone.stages_from_picture() if isinstance(backbone, Backbone | WholeNetwork) else []
    if not stages:
        raise DetkitError(f"train.layer_decay: the backbone of {type(detector).__name__} has no stages; set it to 1")
    of_parameter = {id(p): len(stages) - i for i, stage in enumerate(stages) for p in stage.parameters()}
    parameters = backbone.parameters() if backbone is not None else ()
    return {id(parameter): of_parameter.get(id(parameter), len(stages)) for parameter in parameters}
