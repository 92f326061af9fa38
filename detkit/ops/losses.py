"""What the losses of all detectors share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from detkit.structures import Target


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a batch in one table: picture [M] int64, boxes [M, 4] xyxy pixels, labels [M] int64."""

    picture: Tensor
    boxes: Tensor
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> "Objects":
        return Objects(self.picture[rows], self.boxes[rows], self.labels[rows])


def learnable(targets: Sequence[Target]) -> Objects:
    """Gather the objects that are to be learned, in the order of their pictures: neither crowds nor difficult ones."""
    return _gather(targets, [~(target.crowd | target.difficult) for target in targets])


def labelled(targets: Sequence[Target]) -> Objects:
    """Gather the objects of which only the label is known, in the order of their pictures: those `somewhere`."""
    return _gather(targets, [target.somewhere for target in targets])


def _gather(targets: Sequence[Target], keep: Sequence[Tensor]) -> Objects:
    counts = torch.tensor([len(target) for target in targets], device=targets[0].boxes.device)
    picture = torch.arange(len(targets), device=counts.device).repeat_interleave(counts)
    boxes, labels = (torch.cat([getattr(target, name) for target in targets]) for name in ("boxes", "labels"))
    return Objects(picture, boxes, labels)[torch.cat(list(keep))]


def last_of_each(columns: Tensor) -> Tensor:
    """Indices [K] of the last of each set of equal columns of an integer table [R, M], in rising order."""
    distinct, group = columns.unique(dim=1, return_inverse=True)
    position = torch.arange(columns.shape[1], device=columns.device)
    last = position.new_zeros(distinct.shape[1]).scatter_reduce(0, group, position, "amax")
    return last.sort().values


def pictures_per_process(count: int, device: torch.device) -> Tensor:
    """The mean number of pictures that each process has in this step: what a sum over pictures is divided by.

    Averaging gradients over processes, as distributed training does, then gives the gradient of the mean over all
    pictures, however they are shared out. Outside distributed training it is `count`.
    """
    return pictures_of_all_processes(count, device) / _processes()


def pictures_of_all_processes(count: int, device: torch.device) -> Tensor:
    """The number of pictures that all processes together have in this step."""
    total = torch.tensor(float(count), device=device)
    if _processes() > 1:
        distributed.all_reduce(total)
    return total


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
