import pytest
import torch

from detkit.structures import Batch, Candidates, Detections, Target


def flat() -> Candidates:
    picture = torch.tensor([0, 0, 2])
    return Candidates.from_flat(picture, torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.8, 0.7]), picture + 5, 3)


def test_flat_rows_are_padded_by_picture() -> None:
    table = flat()
    assert table.count.tolist() == [2, 0, 1]
    assert table.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert table.boxes[2].tolist() == [[8, 9, 10, 11], [0, 0, 0, 0]]
    assert table.labels.tolist() == [[5, 5], [0, 0], [7, 0]]


def test_detections_are_split_by_picture() -> None:
    found = flat().detections([(10, 20), (30, 40), (50, 60)])
    assert [len(d) for d in found] == [2, 0, 1]
    assert found[2].size == (50, 60)
    assert found[0].scores.tolist() == pytest.approx([0.9, 0.8])


def test_indexing_detections() -> None:
    found = flat().detections([(1, 1)] * 3)[0]
    assert found[0].scores.tolist() == pytest.approx([0.9])
    assert found[-1].scores.tolist() == pytest.approx([0.8])
    assert len(found[found.scores > 0.85]) == 1
    assert found[[1, 0]].scores.tolist() == pytest.approx([0.8, 0.9])
    assert [d.scores.item() for d in found] == pytest.approx([0.9, 0.8])
    with pytest.raises(IndexError):
        found[2]


def test_moving_keeps_everything() -> None:
    batch = Batch(torch.rand(3, 3, 4, 4), torch.full((3, 2), 4), flat())
    moved = batch.to("cpu")
    assert len(moved) == 3
    assert torch.equal(moved.proposals.scores, batch.proposals.scores)
    target = Target(torch.rand(2, 4), torch.zeros(2), torch.zeros(2, dtype=bool), torch.ones(2, dtype=bool)).to("cpu")
    assert len(target) == 2
    assert target.difficult.all()


def test_types_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), (1, 1)).size = (2, 2)
