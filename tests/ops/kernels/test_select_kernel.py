"""The Triton kernels of selection, on the GPU or, without one, by Triton's interpreter, against the path of the CPU."""

from collections import Counter
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from detkit.ops.nms import Selection, _on_gpu, _round_by_round, select
from detkit.structures import Candidates

pytest.importorskip("triton", reason="Triton is not there")
from detkit.ops.kernels.select import greedy_nms

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def table(sizes: list[int], classes: int, seed: int = 0, levels: int = 1000, reach: float = 20) -> Candidates:
    """Random boxes of up to `reach` pixels in 200 × 200; few `levels` of the score make equal scores."""
    random = torch.Generator().manual_seed(seed)
    shape = len(sizes), max(sizes)
    low, size = 200 * torch.rand(*shape, 2, generator=random), reach * torch.rand(*shape, 2, generator=random)
    scores = torch.randint(1, levels + 1, shape, generator=random) / levels
    labels = torch.randint(classes, shape, generator=random)
    return Candidates(torch.cat([low, low + size], -1), scores, labels, torch.tensor(sizes))


def by_kernel(candidates: Candidates, selection: Selection) -> Candidates:
    with patch("detkit.ops.nms._compiled", lambda scores: True), patch.object(torch.ops.detkit, "select", _on_gpu):
        return select(candidates.to(DEVICE), selection)


def assert_kernel_is_exact(candidates: Candidates, selection: Selection) -> Candidates:
    found, expected = by_kernel(candidates, selection).to("cpu"), select(candidates, selection)
    for name in ("count", "scores", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.boxes.nan_to_num(nan=-1), expected.boxes.nan_to_num(nan=-1))
    return found


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 300])
def test_kernel_selects_as_the_cpu(n, agnostic) -> None:
    selection = Selection(score=0.1, iou=0.3, max_detections=200, class_agnostic=agnostic)
    assert_kernel_is_exact(table([n, n // 2], classes=3, seed=n, reach=60), selection)


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=3) | st.lists(st.integers(0, 9), min_size=1, max_size=64),
    classes=st.sampled_from([1, 2, 80, 1203]),
    seed=st.integers(0, 10_000),
    levels=st.sampled_from([1, 3, 1000]),
    reach=st.sampled_from([10.0, 60.0, 300.0]),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
    limit=st.sampled_from([1, 7, 64, 300]),
    agnostic=st.booleans(),
)
def test_kernel_selects_as_the_cpu_whatever_comes(sizes, classes, seed, levels, reach, iou, limit, agnostic) -> None:
    selection = Selection(score=0.1, iou=iou, max_detections=limit, class_agnostic=agnostic)
    assert_kernel_is_exact(table(sizes, classes, seed, levels, reach), selection)


def test_kernel_selects_of_64_pictures_at_once() -> None:
    sizes = [(37 * b) % 60 for b in range(64)]
    assert_kernel_is_exact(table(sizes, classes=4, reach=60), Selection(score=0.1, max_detections=40))


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "limit", "reach"), [(1, 100, 60), (1, 1000, 20), (80, 300, 60)])
def test_kernel_selects_of_10000_boxes(classes, limit, reach) -> None:
    assert_kernel_is_exact(table([10_000], classes, reach=reach), Selection(score=0.0, max_detections=limit))


def test_kernel_follows_a_chain_of_suppression_through_a_block() -> None:
    # Each box suppresses the next, so that every second one survives and what happens to the last hangs on the first.
    low = 4 * torch.arange(200.0)[:, None]
    boxes = torch.cat([low, 0 * low, low + 10, 0 * low + 10], 1)[None]
    scores = torch.linspace(1, 0.5, 200)[None]
    chain = Candidates(boxes, scores, torch.zeros(1, 200, dtype=torch.long), torch.tensor([200]))
    found = assert_kernel_is_exact(chain, Selection(iou=0.3, max_detections=200))
    assert torch.equal(found.boxes[0, :100], boxes[0, ::2])
    assert found.count.item() == 100


def test_kernel_takes_one_of_equal_boxes_the_first() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]]]).expand(1, 130, 4)
    labels = torch.arange(130)[None] % 2
    found = assert_kernel_is_exact(
        Candidates(boxes, torch.full((1, 130), 0.5), labels, torch.tensor([130])), Selection(iou=0.99)
    )
    assert found.labels[0, :2].tolist() == [0, 1]
    assert found.count.item() == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("agnostic", [False, True])
def test_kernel_meets_numbers_that_are_none_and_boxes_without_area(agnostic) -> None:
    random = torch.Generator().manual_seed(1)
    odd = torch.tensor([0.0, 10.0, 20.0, -5.0, torch.inf, -torch.inf, torch.nan])
    boxes = odd[torch.randint(len(odd), (2, 150, 4), generator=random)]
    boxes[:, :50] = boxes[:, :50].nan_to_num(0, 30, -30)
    boxes[:, :10, 2:] = boxes[:, :10, :2]
    scores = torch.rand(2, 150, generator=random)
    scores[:, ::7], scores[:, 3] = torch.nan, torch.inf
    labels = torch.randint(2, (2, 150), generator=random)
    strange = Candidates(boxes, scores, labels, torch.tensor([150, 99]))
    assert_kernel_is_exact(strange, Selection(score=0.1, class_agnostic=agnostic))


def test_kernel_reads_boxes_in_any_layout() -> None:
    candidates = table([100, 70], classes=2, reach=60)
    order = torch.arange(100).expand(2, -1)
    boxes = candidates.boxes.transpose(0, 1).contiguous().transpose(0, 1)
    labels = candidates.labels.t().contiguous().t()
    arguments = boxes.to(DEVICE), labels.to(DEVICE), candidates.count.to(DEVICE)
    index, taken = (x.cpu() for x in greedy_nms(*arguments, 0.3, 60))
    scores = torch.where(order < candidates.count[:, None], 1 - order / 200, -torch.inf)
    rows, _, count = _round_by_round(
        Candidates(candidates.boxes, scores, candidates.labels, candidates.count),
        Selection(score=0.1, iou=0.3, max_detections=60),
        60,
    )
    assert taken.tolist() == count.tolist()
    for b, n in enumerate(count.tolist()):
        assert torch.equal(index[b, :n], rows[b, :n])
        assert not index[b, n:].any()


@pytest.mark.parametrize("wanted", [(), (0, 2)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_kernel_operation_is_registered_as_pytorch_wants_it(agnostic, wanted) -> None:
    rows = table([90, 40], classes=3).to(DEVICE)
    arguments = rows.boxes, rows.scores, rows.labels, rows.count, 0.1, 0.5, 70, 10, agnostic, wanted
    torch.library.opcheck(torch.ops.detkit.select.default, arguments)


def test_kernel_operation_is_compiled_without_a_break() -> None:
    candidates, selection = table([200, 90], classes=3, reach=60).to(DEVICE), Selection(score=0.1)

    def chosen(boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        found = select(Candidates(boxes, scores, labels, count), selection)
        return found.boxes, found.count

    columns = candidates.boxes, candidates.scores, candidates.labels, candidates.count
    compiled = torch.compile(chosen, fullgraph=True, backend="aot_eager")(*columns)
    assert all(torch.equal(a, b) for a, b in zip(compiled, chosen(*columns), strict=True))


def test_kernel_operation_is_not_touched_by_autocast() -> None:
    candidates, selection = table([200, 90], classes=3, reach=60).to(DEVICE), Selection(score=0.1)
    expected = select(candidates, selection)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = select(candidates, selection)
    for name in ("count", "boxes", "scores", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_kernel_is_recorded_in_a_cuda_graph() -> None:
    rows, selection = table([200, 90], classes=3, reach=60).to(DEVICE), Selection(score=0.1)
    beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(beside):
        select(rows, selection)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = select(rows, selection)
    other = table([150, 200], classes=3, seed=1, reach=60).to(DEVICE)
    for name in ("boxes", "scores", "labels", "count"):
        getattr(rows, name).copy_(getattr(other, name))
    graph.replay()
    expected = select(other, selection)
    for name in ("boxes", "scores", "labels", "count"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_with_the_kernel_the_operations_do_not_grow_with_pictures_or_results() -> None:
    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls[str(func)] += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for batch, limit in ((1, 10), (64, 300)):
        with FakeTensorMode(), Count() as count:
            rows = Candidates(
                torch.empty(batch, 500, 4, device="cuda"),
                torch.empty(batch, 500, device="cuda"),
                torch.empty(batch, 500, dtype=torch.long, device="cuda"),
                torch.empty(batch, dtype=torch.long, device="cuda"),
            )
            result = select(rows, Selection(max_detections=limit), torch.empty(batch, 2, device="cuda"))
        assert result.boxes.shape == (batch, limit, 4)
        counts.append(count.calls)
    assert counts[0] == counts[1]
    assert counts[0]["detkit.select.default"] == 1
