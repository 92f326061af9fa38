"""The learning rate as a function of the step, the moving average of the weights, and when to give up.

Everything here follows from the step's number and the scores so far, so that a run that goes on after a stop needs no
state of its own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.train.config import Cosine, Exponential, Learning, Plateau, Polynomial, Step


class Length(NamedTuple):
    """How long a run is: in optimizer steps for each epoch, and in steps of warm-up."""

    steps_per_epoch: int
    warmup_steps: int


def run_length(train: Learning, batches_per_epoch: int) -> Length:
    """Count the optimizer steps of an epoch (the last one may have fewer batches) and of the warm-up."""
    steps = math.ceil(batches_per_epoch / train.accumulate)
    pictures_per_step = train.batch_size * train.accumulate
    warmup = train.warmup.epochs * steps or train.warmup.pictures / pictures_per_step
    return Length(steps, math.ceil(warmup))


def learning_rate_factor(train: Learning, step: int, length: Length, scores: Sequence[float] = ()) -> float:
    """What the learning rate is multiplied by in a step (the first is 0); scores: those of the evaluations so far.

    Warm-up is multiplied with the schedule. The cosine begins where the warm-up ends and reaches `final` in the last
    step; polynomials, milestones, stairs and plateaus count from the first step.
    """
    warm = min(1.0, (step + 1) / length.warmup_steps) ** train.warmup.power if length.warmup_steps else 1.0
    warm = train.warmup.start + (1 - train.warmup.start) * warm
    schedule = train.schedule
    if isinstance(schedule, Cosine):
        last = train.epochs * length.steps_per_epoch - 1
        progress = max(0, step - length.warmup_steps) / max(1, last - length.warmup_steps)
        return warm * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
    if isinstance(schedule, Polynomial):
        done = step / (train.epochs * length.steps_per_epoch)
        return float(warm * (1 - min(1.0, done)) ** schedule.power)
    if isinstance(schedule, Step):
        epoch = step // length.steps_per_epoch
        return warm * schedule.factor ** bisect_right(sorted(schedule.milestones), epoch)
    if isinstance(schedule, Exponential):
        return float(warm * schedule.factor ** math.floor(step / (schedule.every * length.steps_per_epoch)))
    return warm * schedule.factor ** _plateaus(scores, schedule)


def evaluations_since_best(scores: Sequence[float]) -> int:
    """How many evaluations have passed since the first one with the best score."""
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def _plateaus(scores: Sequence[float], schedule: Plateau) -> int:
    best, waited, plateaus = -math.inf, 0, 0
    for score in scores:
        best, waited = (score, 0) if score > best else (best, waited + 1)
        if waited == schedule.patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus


def ema_decay(step: int, decay: float) -> float:
    """The decay after a step (the first is 0): (1 + step) / (10 + step), until it reaches the final decay.

    So that the random weights of the start are soon forgotten. As TensorFlow's ExponentialMovingAverage does it.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an averaged network, in place, towards a network: average · decay + network · (1 − decay).

    Statistics of batch norm are averaged too; what is no floating-point number is copied.
    """
    kept: list[Tensor] = []
    new: list[Tensor] = []
    for old, current in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            kept.append(old)
            new.append(current)
        else:
            old.copy_(current)
    torch._foreach_lerp_(kept, new, 1 - decay)
