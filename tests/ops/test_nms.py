import subprocess
import sys
import warnings
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from detkit.ops.nms import Selection, select, warn_of_cap
from detkit.structures import Candidates


def candidates(sizes: list[int], classes: int = 3, seed: int = 0, levels: int = 1000) -> Candidates:
    """Random clustered candidates; few `levels` of the score make equal scores."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    centre = torch.rand(max(1, total // 8), 2, generator=generator) * 200
    cluster = torch.randint(len(centre), (total,), generator=generator)
    middle = centre[cluster] + torch.randn(total, 2, generator=generator) * 4
    half = torch.rand(total, 2, generator=generator) * 20 + 5
    scores = torch.randint(1, levels + 1, (total,), generator=generator) / levels
    picture = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = torch.randint(classes, (total,), generator=generator)
    return Candidates.from_flat(picture, torch.cat([middle - half, middle + half], 1), scores, labels, len(sizes))


def literal_greedy(boxes, scores, labels, selection: Selection) -> list[int]:
    """The definition, one box at a time, in fp32."""
    boxes, scores, labels = boxes.numpy(), scores.numpy(), labels.numpy()
    order = sorted((i for i in range(len(scores)) if scores[i] > selection.score), key=lambda i: (-scores[i], i))
    threshold = np.float32(selection.iou)
    taken: list[int] = []
    for i in order:
        for j in taken:
            if labels[i] != labels[j] and not selection.class_agnostic:
                continue
            wh = (np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])).clip(min=0)
            inter = wh[0] * wh[1]
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[j], boxes[i])]
            if inter > threshold * (areas[0] + areas[1] - inter):
                break
        else:
            taken.append(i)
    return taken[: selection.max_detections]


def assert_same(a: Candidates, b: Candidates) -> None:
    assert a.count.tolist() == b.count.tolist()
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    compiled=st.booleans(),
    classes=st.sampled_from([1, 3, 40]),
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([2, 1000]),
    iou=st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]),
    limit=st.sampled_from([1, 7, 300]),
    agnostic=st.booleans(),
)
def test_greedy_is_the_definition(sizes, compiled, classes, seed, levels, iou, limit, agnostic) -> None:
    table = candidates(sizes, classes, seed, levels)
    selection = Selection(score=0.1, iou=iou, max_detections=limit, class_agnostic=agnostic)
    with patch("detkit.ops.nms._compiled", lambda scores: compiled):
        result = select(table, selection)
    for b, size in enumerate(sizes):
        boxes, scores, labels = table.boxes[b, :size], table.scores[b, :size], table.labels[b, :size]
        expected = literal_greedy(boxes, scores, labels, selection)
        n = int(result.count[b])
        assert n == len(expected)
        assert torch.equal(result.boxes[b, :n], boxes[expected])
        assert torch.equal(result.scores[b, :n], scores[expected])
        assert torch.equal(result.labels[b, :n], labels[expected])
        assert not result.scores[b, n:].any()


@pytest.mark.parametrize("agnostic", [False, True])
def test_rounds_give_what_compiled_code_gives(agnostic) -> None:
    table = candidates([300, 0, 77], levels=50)
    selection = Selection(score=0.2, max_detections=60, class_agnostic=agnostic, labels=(0, 2), max_candidates=1)
    assert selection.cap == 600
    capped = selection.model_copy(update={"max_detections": 20})
    for rule in (selection, capped):
        with patch("detkit.ops.nms._compiled", lambda scores: False):
            rounds = select(table, rule)
        assert_same(rounds, select(table, rule))


def test_what_compiled_code_needs_is_loaded_for_many_candidates_alone() -> None:
    script = """
import sys
import torch
from detkit.ops.nms import Selection, select
from detkit.structures import Candidates

def some(n):
    boxes = torch.rand(1, n, 4).cumsum(2)
    return Candidates(boxes, torch.rand(1, n), torch.zeros(1, n).long(), torch.tensor([n]))

few = some(20)
before = select(few, Selection())
assert "numba" not in sys.modules
select(some(100), Selection())
assert "numba" in sys.modules
after = select(few, Selection())
assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in before.__slots__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n", [40, 90])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_tables_of_another_precision_are_compared_in_float32(n, dtypes) -> None:
    rule = Selection(score=0.1)
    for seed in range(20):
        table = candidates([n, n // 2], seed=seed, levels=50)
        lower = Candidates(table.boxes.to(dtypes[0]), table.scores.to(dtypes[1]), table.labels, table.count)
        exact = select(Candidates(lower.boxes.float(), lower.scores.float(), lower.labels, lower.count), rule)
        for compiled in (False, True):
            with patch("detkit.ops.nms._compiled", lambda scores, compiled=compiled: compiled):
                found = select(lower, rule)
            assert (found.boxes.dtype, found.scores.dtype) == dtypes
            assert_same(Candidates(found.boxes.float(), found.scores.float(), found.labels, found.count), exact)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 2000])
def test_greedy_agrees_with_torchvision(n) -> None:
    table = candidates([n], classes=1, seed=n, levels=10**6)
    result = select(table, Selection(score=0, iou=0.5, max_detections=10_000))
    kept = tv.nms(table.boxes[0], table.scores[0], 0.5)
    assert torch.equal(result.boxes[0, : result.count[0]], table.boxes[0][kept])


def test_a_pair_on_the_threshold_survives() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5]]])  # IoU exactly 0.5
    table = Candidates(boxes, torch.tensor([[0.9, 0.8]]), torch.zeros(1, 2, dtype=torch.long), torch.tensor([2]))
    assert select(table, Selection(iou=0.5)).count.item() == 2
    assert select(table, Selection(iou=0.49)).count.item() == 1


def test_not_a_number_never_suppresses_and_never_scores() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [float("nan"), 0, 10, 10], [0, 0, 10, 10], [0, 0, float("inf"), 10]]])
    scores = torch.tensor([[0.5, 0.9, float("nan"), 0.4]])
    table = Candidates(boxes, scores, torch.zeros(1, 4, dtype=torch.long), torch.tensor([4]))
    result = select(table, Selection(score=0.1))
    assert result.count.item() == 3
    assert result.scores[0, :3].tolist() == pytest.approx([0.9, 0.5, 0.4])


def test_results_are_clipped_to_each_picture() -> None:
    boxes = torch.tensor([[[-5.0, -5, 50, 50]], [[-5.0, -5, 50, 50]]])
    table = Candidates(boxes, torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, dtype=torch.long))
    result = select(table, Selection(), torch.tensor([[20, 30], [60, 40]]))
    assert result.boxes[:, 0].tolist() == [[0, 0, 30, 20], [0, 0, 40, 50]]


def test_only_the_wanted_labels_enter() -> None:
    table = candidates([80, 40], classes=4)
    only = select(table, Selection(score=0, labels=(1, 3), class_agnostic=True))
    wanted = [torch.isin(table.labels[b], torch.tensor([1, 3])) & table.valid[b] for b in range(2)]
    alone = Candidates.from_flat(
        torch.repeat_interleave(torch.arange(2), torch.tensor([int(w.sum()) for w in wanted])),
        torch.cat([table.boxes[b][w] for b, w in enumerate(wanted)]),
        torch.cat([table.scores[b][w] for b, w in enumerate(wanted)]),
        torch.cat([table.labels[b][w] for b, w in enumerate(wanted)]),
        2,
    )
    expected = select(alone, Selection(score=0, class_agnostic=True))
    for b, n in enumerate(expected.count.tolist()):
        assert only.count[b] == n
        assert torch.equal(only.boxes[b, :n], expected.boxes[b, :n])


def test_the_cap_keeps_the_best_and_is_announced_and_lifted() -> None:
    n = 50
    low = torch.arange(n).float()[:, None] * 20
    boxes = torch.cat([low, low, low + 10, low + 10], 1)[None]
    table = Candidates(boxes, torch.rand(1, n) / 2 + 0.4, torch.zeros(1, n, dtype=torch.long), torch.tensor([n]))
    capped = Selection(max_candidates=20, max_detections=2)
    assert capped.cap == 20
    with pytest.warns(UserWarning, match="more than 20 candidates of a picture .* only the best 20"):
        warn_of_cap(table, capped)
    best = table.scores[0].sort(descending=True).values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cap(table, Selection(max_candidates=20, max_detections=2, labels=(1,)))
    wide = Selection(max_candidates=20, max_detections=50)
    assert torch.equal(select(table, wide).scores[0], best)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cap(table, wide)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", ["greedy", "soft", "diou"])
def test_a_box_that_is_none_lowers_nothing(method, value) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 80, 80]]])
    boxes[0, 0, 2] = value
    table = Candidates(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3, dtype=torch.long), torch.tensor([3]))
    assert select(table, Selection(method=method)).scores.tolist() == table.scores.tolist()


def test_soft_nms_by_hand() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]]])
    table = Candidates(boxes, torch.tensor([[0.9, 0.8, 0.3]]), torch.zeros(1, 3, dtype=torch.long), torch.tensor([3]))
    result = select(table, Selection(method="soft", sigma=0.5, score=0.2))
    lowered = 0.8 * torch.exp(torch.tensor(-(0.5**2) / 0.5)).item()
    assert result.scores[0].tolist() == pytest.approx([0.9, lowered, 0.3])
    below = select(table, Selection(method="soft", sigma=0.5, score=0.5))
    assert below.count.item() == 1


def test_diou_nms_spares_a_neighbour_with_another_centre() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [4, 0, 14, 10]]])  # IoU 60/140 = .429; DIoU .429 - 16/296 = .375
    table = Candidates(boxes, torch.tensor([[0.9, 0.8]]), torch.zeros(1, 2, dtype=torch.long), torch.tensor([2]))
    assert select(table, Selection(iou=0.4)).count.item() == 1
    assert select(table, Selection(iou=0.4, method="diou")).count.item() == 2
    assert select(table, Selection(iou=0.37, method="diou")).count.item() == 1


@pytest.mark.parametrize("method", ["greedy", "soft", "diou"])
def test_nothing_in_nothing_out(method) -> None:
    empty = Candidates.from_flat(
        torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 3
    )
    result = select(empty, Selection(method=method), torch.full((3, 2), 10))
    assert result.count.tolist() == [0, 0, 0]
    assert [len(d) for d in result.detections([(10, 10)] * 3)] == [0, 0, 0]


@pytest.mark.parametrize("method", ["greedy", "soft", "diou"])
def test_on_a_gpu_nothing_is_read_before_the_result(method) -> None:
    # A fake tensor has no values: whatever would have to wait for one raises.
    with FakeTensorMode():
        table = Candidates(
            torch.empty(2, 500, 4, device="cuda"),
            torch.empty(2, 500, device="cuda"),
            torch.empty(2, 500, dtype=torch.long, device="cuda"),
            torch.empty(2, dtype=torch.long, device="cuda"),
        )
        selection = Selection(method=method, max_detections=20, labels=(1, 2))
        result = select(table, selection, torch.empty(2, 2, device="cuda"))
    assert result.boxes.shape == (2, 20, 4)
    assert result.boxes.device.type == "cuda"


@pytest.mark.parametrize("compiled", [True, False])
def test_boxes_keep_their_gradient(compiled) -> None:
    table = candidates([40])
    boxes = table.boxes.clone().requires_grad_()
    with patch("detkit.ops.nms._compiled", lambda scores: compiled):
        select(Candidates(boxes, table.scores, table.labels, table.count), Selection(score=0.1)).boxes.sum().backward()
    assert boxes.grad.abs().sum() > 0
