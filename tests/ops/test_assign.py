from collections import Counter

import pytest
import torch

from detkit.ops.assign import IGNORED, NOTHING, match_objects, sample
from detkit.structures import Target


def target(*boxes: tuple[float, ...], crowd: tuple[int, ...] = (), difficult: tuple[int, ...] = ()) -> Target:
    flags = [torch.tensor([i in which for i in range(len(boxes))], dtype=torch.bool) for which in (crowd, difficult)]
    return Target(torch.tensor(boxes).view(-1, 4), torch.zeros(len(boxes), dtype=torch.long), *flags)


BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 2], [50, 50, 60, 60], [20, 20, 30, 30]])


def test_objects_are_matched_by_hand() -> None:
    truth = target((0, 0, 10, 10), (20, 20, 30, 28))
    assert match_objects(BOXES, truth, 0.5, 0.5).tolist() == [0, 0, NOTHING, NOTHING, 1]
    assert match_objects(BOXES, truth, 0.7, 0.3).tolist() == [0, IGNORED, NOTHING, NOTHING, 1]
    assert match_objects(BOXES, truth, 0.9, 0.3, keep_best=True).tolist() == [0, IGNORED, NOTHING, NOTHING, 1]
    assert match_objects(BOXES, truth, 0.5, 0.5, lowest=0.1).tolist() == [0, 0, NOTHING, IGNORED, 1]


def test_crowds_and_difficult_objects_are_neither_learned_nor_background() -> None:
    # The first object is a crowd that all of boxes 0 to 2 lies in; the third is difficult.
    truth = target((0, 0, 40, 10), (50, 50, 60, 60), (20, 20, 30, 28), crowd=(0,), difficult=(2,))
    assert match_objects(BOXES, truth, 0.5, 0.5).tolist() == [IGNORED, IGNORED, IGNORED, 1, IGNORED]
    # The crowd covers no box, and the difficult object overlaps one by less.
    truth = target((100, 0, 140, 10), (20, 20, 30, 23), crowd=(0,), difficult=(1,))
    assert match_objects(BOXES, truth, 0.5, 0.5).tolist() == [NOTHING] * 5


@pytest.mark.parametrize("lowest", [0, 0.1])
def test_a_picture_without_objects_is_all_background(lowest) -> None:
    assert match_objects(BOXES, target(), 0.5, 0.5, lowest=lowest).tolist() == [NOTHING] * 5
    assert match_objects(BOXES[:0], target((0, 0, 1, 1)), 0.5, 0.5, lowest=lowest).tolist() == []


def test_samples_have_their_share_of_objects_and_are_filled_up() -> None:
    matched = torch.tensor([0] * 10 + [NOTHING] * 30 + [IGNORED] * 20)
    objects, others = sample(matched, 16, 0.25)
    assert (len(objects), len(others)) == (4, 12)
    assert objects.max() < 10
    assert others.min() >= 10
    assert others.max() < 40
    assert [len(rows) for rows in sample(matched[7:], 16, 0.25)] == [3, 13]
    assert [len(rows) for rows in sample(matched, 100, 0.25)] == [10, 30]
    assert [len(rows) for rows in sample(matched[:0], 16, 0.25)] == [0, 0]


def test_samples_are_random_without_repetition_and_follow_the_seed() -> None:
    matched = torch.full((8,), NOTHING)
    torch.manual_seed(3)
    draws = [sample(matched, 4, 0.5)[1].tolist() for _ in range(400)]
    torch.manual_seed(3)
    assert [sample(matched, 4, 0.5)[1].tolist() for _ in range(400)] == draws
    assert all(len(set(draw)) == 4 for draw in draws)
    counts = Counter(i for draw in draws for i in draw)  # each 200 ± 10
    assert min(counts.values()) > 150
    assert len(counts) == 8
