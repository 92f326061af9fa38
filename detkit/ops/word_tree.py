"""Classes in a tree, each a kind of its parent: YOLO9000 (Redmon and Farhadi, 2016, arXiv 1612.08242), section 4.

Probabilities are conditional, one softmax over the children of each node ("Hierarchical classification"); those of a
node multiply up along its path to the root. Shapes: C classes, G sets of siblings, L labels asked for, K rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WordTree(nn.Module):
    """The tree over labels 0 … C-1; parents: each label's parent, -1 at the top. Raises ValueError where it is none.

    The buffers follow the module to its device and are no part of a state dict.
    """

    group: Tensor  # [C] which set of siblings a label belongs to; the top is set 0
    child_set: Tensor  # [C] the set of a label's children, -1 of a leaf
    members: Tensor  # [G, largest set] the labels of each set, C in the place of none
    paths: Tensor  # [C, depth] each label, its parent, … up to the top, C in the place of none

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__()
        count = len(parents)
        groups: dict[int, list[int]] = {-1: []}
        for label, parent in enumerate(parents):
            if not -1 <= parent < count:
                raise ValueError(f"label {label} has the parent {parent}, expected -1 to {count - 1}")
            groups.setdefault(parent, []).append(label)
        paths = []
        for label in range(count):
            path = [label]
            while (parent := parents[path[-1]]) >= 0:
                if len(path) == count:
                    raise ValueError(f"label {label} is below itself")
                path.append(parent)
            paths.append(path)
        numbers = {parent: number for number, parent in enumerate(groups)}
        self.depth = max(map(len, paths))
        for name, table in (
            ("group", [numbers[parent] for parent in parents]),
            ("child_set", [numbers.get(label, -1) for label in range(count)]),
            ("members", _padded(list(groups.values()), count)),
            ("paths", _padded(paths, count)),
        ):
            self.register_buffer(name, torch.tensor(table), persistent=False)

    def log_conditional(self, scores: Tensor) -> Tensor:
        """Scores [..., C] to log Pr(label | its parent) [..., C]: a log-softmax over each set of siblings."""
        group = self.group.expand_as(scores)
        shape = (*scores.shape[:-1], len(self.members))
        top = scores.detach().new_full(shape, -math.inf).scatter_reduce(-1, group, scores.detach(), "amax")
        shifted = scores - top.gather(-1, group)
        total = scores.new_zeros(shape).scatter_add(-1, group, shifted.exp())
        return shifted - total.log().gather(-1, group)

    def log_probability(self, log_conditional: Tensor, labels: Tensor) -> Tensor:
        """Log Pr(label) of labels [L] in every row, [..., C] → [..., L]: the sum along the path to the top."""
        return _with(log_conditional, 0)[..., self.paths[labels]].sum(-1)

    def log_probability_of_each(self, log_conditional: Tensor, labels: Tensor) -> Tensor:
        """Log Pr(label) of one label for each row: [K, C] and labels [K] → [K]."""
        return _with(log_conditional, 0).gather(1, self.paths[labels]).sum(1)

    def walk(self, log_conditional: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Go down by the more probable child at every split, as long as Pr(label) stays above the threshold.

        log_conditional [K, C] → the labels where the walk ends [K], and their log Pr [K]. It takes one step at least.
        """
        padded = _with(log_conditional, -math.inf)

        def best_child(group: Tensor) -> tuple[Tensor, Tensor]:
            members = self.members[group]
            value, index = padded.gather(1, members).max(1)
            return value, members.gather(1, index[:, None])[:, 0]

        total, label = best_child(torch.zeros(len(padded), dtype=torch.int64, device=padded.device))
        for _ in range(self.depth - 1):
            group = self.child_set[label]
            value, child = best_child(group.clamp(min=0))
            goes_on = (group >= 0) & (total + value > (math.log(threshold) if threshold else -math.inf))
            total, label = torch.where(goes_on, total + value, total), torch.where(goes_on, child, label)
        return label, total


def _padded(rows: list[list[int]], filler: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [filler] * (longest - len(row)) for row in rows]


def _with(values: Tensor, last: float) -> Tensor:
    """Append a column, which the tables' fillers point to."""
    return torch.cat([values, values.new_full((*values.shape[:-1], 1), last)], -1)
