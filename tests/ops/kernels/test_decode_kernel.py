"""The Triton kernels of decoding, on the GPU or, without one, by Triton's interpreter, against the plain path."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest.mock import Mock, patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.detectors.fast_rcnn import RoIOutputs, region_candidates
from detkit.detectors.faster_rcnn import Anchors, FasterRCNN, FasterRCNNConfig, Grid, ProposalLayer, Said
from detkit.ops import kernels
from detkit.ops.boxes import decode_deltas
from detkit.ops.nms import Selection
from detkit.ops.yolo import yolo_candidates
from detkit.structures import Candidates

pytest.importorskip("triton", reason="Triton is not there")
from detkit.ops.kernels import decode, select

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = 10.0, 10.0, 5.0, 5.0
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, in the interpreter
    pytest.mark.usefixtures("fresh_compiler"),
]

random_numbers = st.fixed_dictionaries({
    "seed": st.integers(0, 10_000),
    "step": st.sampled_from([0.0, 0.5, 8.0]),  # between the values that there are: some are equal, or all
    "odd": st.booleans(),  # some are no numbers, or infinite
})  # fmt: skip


def numbers(*shape: int, seed: int, step: float = 0.0, odd: bool = False, spread: float = 2.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(shape, generator=random)
    if step:
        x = (x / step).round() * step
    if odd:
        for value in (torch.nan, torch.inf, -torch.inf):
            x[torch.rand(shape, generator=random) < 0.01] = value
    return x


def assert_same(found: Candidates, expected: Candidates, far: float = 0.0) -> None:
    found = found.to("cpu")
    assert found.count.tolist() == expected.count.tolist()
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=0, equal_nan=True)
    assert_same_boxes(found.boxes, expected.boxes, far)


def assert_same_boxes(found: Tensor, expected: Tensor, far: float = 0.0) -> None:
    """Centres and sizes to 1e-5, and to what float32 holds of them beside far larger corners, or what was as `far`."""
    finite = expected.isfinite().all(-1)
    torch.testing.assert_close(found[~finite], expected[~finite], rtol=1e-5, atol=1e-3, equal_nan=True)
    corners = (boxes[finite].double().view(-1, 2, 2) for boxes in (found, expected))
    (low, high), (low_expected, high_expected) = (x.unbind(1) for x in corners)
    held = 1e-6 * torch.maximum(low_expected.abs(), high_expected.abs()).clamp(min=far)
    centre, size = (low_expected + high_expected) / 2, high_expected - low_expected
    assert (((low + high) / 2 - centre).abs() <= 1e-5 * centre.abs() + held).all()
    assert ((high - low - size).abs() <= 1e-5 * size + held).all()


def reach(boxes: Iterable[Tensor]) -> float:
    """How far boxes lie that are not yet clipped: what is cut off at the edge was as exact as the whole."""
    return max((float(whole.nan_to_num(0, 0, 0).abs().max()) for whole in boxes if whole.numel()), default=0.0)


def apart_from(scores: Tensor, threshold: float) -> float:
    """A threshold at which the last digit of a score does not decide."""
    while ((scores - threshold).abs() < 1e-5 * threshold).any():
        threshold *= 1.0001
    return threshold


def assert_yolo_is_exact(maps, anchors, threshold, *, softmax=False, scale_xy=None) -> Candidates:
    random = torch.Generator().manual_seed(1)
    sizes = [5 + 100 * torch.rand(anchors, 2, generator=random) for _ in maps]
    size_hw = 8 * maps[0].shape[2], 8 * maps[0].shape[3]
    every = yolo_candidates(maps, sizes, size_hw, 0.0, scale_xy, softmax=softmax)
    threshold = apart_from(every.scores, threshold)
    expected = yolo_candidates(maps, sizes, size_hw, threshold, scale_xy, softmax=softmax)
    there = [raw.to(DEVICE) for raw in maps], [size.to(DEVICE) for size in sizes]
    assert_same(decode.yolo_candidates(*there, size_hw, threshold, scale_xy, softmax), expected)
    return expected


def assert_regions_are_exact(boxes, valid, logits, deltas, limits, threshold) -> Candidates:
    scores = logits.softmax(-1)
    threshold = apart_from(scores, threshold)
    expected = region_candidates(RoIOutputs(boxes, valid, logits, deltas, limits), threshold, WEIGHTS)
    there = [x.to(DEVICE) for x in (logits, deltas, boxes, valid, limits)]
    whole = decode_deltas(deltas, boxes[:, :, None], WEIGHTS)
    assert_same(decode.region_candidates(*there, threshold, WEIGHTS, 0.01), expected, reach([whole]))
    return expected


@pytest.mark.parametrize(
    ("batch", "grids", "anchors", "classes"),
    [
        (0, [(2, 2)], 2, 3),
        (2, [(1, 1)], 1, 1),
        (1, [(7, 9), (1, 6)], 1, 2),  # 63 boxes
        (3, [(8, 8), (6, 1)], 1, 63),
        (1, [(5, 13), (3, 2)], 1, 65),
        (2, [(4, 6), (2, 3), (1, 1)], 3, 20),
        (64, [(2, 3)], 1, 5),
        (1, [(2, 2)], 1, 1203),
    ],
)
@settings(max_examples=3)
@given(
    values=random_numbers,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    threshold=st.sampled_from([0.1, 0.25, 0.7]),
    softmax=st.booleans(),
    channels_last=st.booleans(),
)
def test_kernel_decodes_as_plain_yolo(
    batch, grids, anchors, classes, values, dtype, threshold, softmax, channels_last
) -> None:
    maps = [numbers(batch, anchors * (5 + classes), *grid, **values).to(dtype) for grid in grids]
    for raw in maps:
        raw.unflatten(1, (anchors, -1))[:, :, 4] -= 6 if raw.shape[2] == 50 else 1  # of many cells few have an object
    if channels_last:
        maps = [raw.contiguous(memory_format=torch.channels_last) for raw in maps]
    assert_yolo_is_exact(maps, anchors, threshold, softmax=softmax)


@pytest.mark.slow
def test_kernel_decodes_10000_boxes() -> None:
    assert_yolo_is_exact([numbers(1, 5 * 7, 50, 40, seed=0, odd=True)], 5, 0.25, softmax=True)
    low, side = (20 * numbers(1, 10_000, 2, seed=seed).abs() for seed in (1, 2))
    logits, deltas = numbers(1, 10_000, 2, seed=3), numbers(1, 10_000, 1, 4, seed=4)
    valid, limits = torch.ones(1, 10_000, dtype=torch.bool), torch.full((1, 2), 60.0)
    assert_regions_are_exact(torch.cat([low, low + side], -1), valid, logits, deltas, limits, 0.5)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_kernel_decodes_half_precision_and_stretched_centres(dtypes) -> None:
    maps = [numbers(2, 3 * 25, *grid, seed=1).to(dtype) for grid, dtype in zip([(6, 9), (3, 5)], dtypes, strict=True)]
    assert assert_yolo_is_exact(maps, 3, 0.2, scale_xy=[1, 1.05]).count.min() > 100


def test_kernel_decodes_maps_that_are_parts_of_others() -> None:
    whole = numbers(2, 16, 8, 12, seed=0)
    assert_yolo_is_exact([whole[:, :, 2:6, 3:9]], 2, 0.1)
    assert_yolo_is_exact([whole.transpose(2, 3)], 2, 0.1)
    for side in (whole[:, :, :1], whole[:, :, :, :1], numbers(1, 14, 1, 6, seed=0)):  # one cell high, or wide
        assert assert_yolo_is_exact([side], 2, 0.1).count.min() > 0
        assert assert_yolo_is_exact([side.transpose(2, 3)], 2, 0.1).count.min() > 0


@pytest.mark.parametrize("softmax", [False, True])
def test_kernel_decodes_nothing(softmax) -> None:
    nothing = assert_yolo_is_exact([torch.full((3, 24, 5, 5), -20.0)], 2, 0.5, softmax=softmax)
    assert nothing.boxes.shape == (3, 0, 4)


@pytest.mark.parametrize(
    ("batch", "regions", "classes"),
    [(2, 0, 3), (1, 1, 1), (2, 63, 3), (1, 64, 80), (3, 65, 2), (64, 3, 2), (1, 3, 1203)],
)
@settings(max_examples=3)
@given(values=random_numbers, threshold=st.sampled_from([0.001, 0.05, 0.5]))
def test_kernel_decodes_regions_as_fast_rcnn(batch, regions, classes, values, threshold) -> None:
    low, side = numbers(batch, regions, 2, **values).abs(), numbers(batch, regions, 2, **values).abs()
    boxes = torch.cat([20 * low, 20 * low + 20 * side], -1)
    boxes[:, ::5, 2] = boxes[:, ::5, 0]  # no area
    valid = torch.arange(regions) < regions - torch.arange(batch)[:, None]
    logits = numbers(batch, regions, classes + 1, **values)
    deltas = numbers(batch, regions, classes, 4, **values)
    limits = 50 + 40 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(values["seed"]))
    assert_regions_are_exact(boxes, valid, logits, deltas, limits, threshold)


def test_kernel_decodes_regions_of_a_picture_without_any() -> None:
    boxes = torch.tensor([[10.0, 10, 50, 50], [20, 5, 40, 45]]).expand(2, 2, 4)
    valid = torch.tensor([[True, True], [False, False]])
    logits, deltas = numbers(2, 2, 4, seed=2), numbers(2, 2, 3, 4, seed=3)
    found = assert_regions_are_exact(boxes, valid, logits, deltas, torch.full((2, 2), 64.0), 0.01)
    assert found.count[0] > 0
    assert found.count[1] == 0


@pytest.mark.parametrize(
    ("batch", "grids", "shapes", "before"),
    [
        (2, [(1, 1)], 1, 1),
        (1, [(7, 9), (1, 6), (5, 1)], 1, 63),
        (3, [(4, 4), (2, 2), (1, 1)], 4, 64),
        (64, [(2, 3)], 3, 17),
        (1, [(40, 30), (20, 15)], 3, 1000),
    ],
)
@settings(max_examples=4)
@given(
    values=random_numbers,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    channels_last=st.booleans(),
)
def test_kernel_decodes_proposals_as_faster_rcnn(batch, grids, shapes, before, values, dtype, channels_last) -> None:
    size = 16 * grids[0][0], 16 * grids[0][1]
    anchors = {"sizes": [[16 * 2**i] for i in range(len(grids))], "ratios": [0.5, 1, 2, 3][:shapes]}
    strides = [2 ** (4 + i) for i in range(len(grids))]
    config = FasterRCNNConfig(backbone={"name": "darknet_tiny"}, strides=[16], anchors={"sizes": [[16]]})
    with torch.device("meta"):
        model = FasterRCNN(config, 2, size)
    levels = [
        Grid(shape, *hw, (stride, stride))
        for shape, hw, stride in zip(Anchors.model_validate(anchors).shapes(), grids, strides, strict=True)
    ]
    said = [Said(numbers(batch, shapes, *hw, **values), numbers(batch, 4 * shapes, *hw, **values) / 4) for hw in grids]
    if channels_last:
        said = [Said(x.logits, x.deltas.contiguous(memory_format=torch.channels_last)) for x in said]
    said = [Said(x.logits.to(dtype), x.deltas.to(dtype)) for x in said]
    limits = 20 + 40 * torch.rand(batch, 2, generator=torch.Generator().manual_seed(values["seed"]))
    limits[1::2, 0] = 1e-4  # where every proposal is too thin
    tables: list[Candidates] = []

    def keep(table: Candidates, rule: Selection) -> Candidates:
        tables.append(table)
        return Candidates(table.boxes[:, :0], table.scores[:, :0], table.labels[:, :0], 0 * table.count)

    with patch("detkit.detectors.faster_rcnn.select", keep):
        for served, device in ((False, "cpu"), (True, DEVICE)):
            with patch("detkit.ops.kernels.serve", return_value=served):
                model.propose(
                    [Said(*(x.to(device) for x in one)) for one in said],
                    [grid._replace(shapes=grid.shapes.to(device)) for grid in levels],
                    limits.to(device),
                    ProposalLayer(before=before, after=10),
                )
    expected, found = tables
    assert expected.scores.shape == (batch, sum(min(before, shapes * h * w) for h, w in grids))
    whole = [decode_deltas(x.deltas_by_cell(), grid.anchors()) for x, grid in zip(said, levels, strict=True)]
    assert_same(found, expected, reach(whole))


def test_kernel_of_proposals_is_an_operation_that_compiles_whole() -> None:
    said = [Said(numbers(2, 3, 4, 5, seed=1), numbers(2, 12, 4, 5, seed=2)) for _ in range(2)]
    grids = [(torch.full((3, 2), 30.0, device=DEVICE), 4, 5, (16, 16))] * 2
    limits = torch.full((2, 2), 60.0, device=DEVICE)

    def proposals(*maps: Tensor) -> tuple[Tensor, ...]:
        levels = [Said(*maps[:2]), Said(*maps[2:])]
        best = [x.logits_by_cell().topk(9, 1) for x in levels]
        table = decode.proposal_candidates([x.deltas for x in levels], best, grids, limits, 0.01)
        return table.boxes, table.scores, table.labels, table.count

    maps = [x.to(DEVICE) for one in said for x in one]
    compiled = torch.compile(proposals, fullgraph=True, backend="aot_eager")(*maps)
    assert all(torch.equal(a, b) for a, b in zip(compiled, proposals(*maps), strict=True))

    (logits, rows), (shapes, _, width, stride) = said[0].logits_by_cell().to(DEVICE).topk(9, 1), grids[0]
    arguments = [maps[1]], [logits], [rows], [shapes], [width, *stride], limits, 0.01
    torch.library.opcheck(torch.ops.detkit.proposals.default, arguments)


def test_kernel_writes_no_further_than_it_has_counted() -> None:
    """Were the launches to disagree, a row's candidates would still not fall on those of the next."""
    table = decode._table

    def counted_too_few(count: Tensor) -> tuple[Tensor, Candidates]:
        return table(count.clamp_(max=1))

    raw, sizes = numbers(1, 2 * 9, 3, 3, seed=0).to(DEVICE), torch.ones(2, 2, device=DEVICE)
    arguments = (x.to(DEVICE) for x in (numbers(1, 5, 4, seed=1), torch.zeros(1, 5, 3, 4), torch.ones(1, 5, 4)))
    logits, deltas, regions = arguments
    regions[..., 2:] = 20
    valid, limits = torch.ones(1, 5, dtype=torch.bool, device=DEVICE), torch.full((1, 2), 50.0, device=DEVICE)
    for decoded in (
        lambda: decode.yolo_candidates([raw], [sizes], (24, 24), 0.01, None, False),
        lambda: decode.region_candidates(logits, deltas, regions, valid, limits, 0.05, WEIGHTS, 0.01),
    ):
        with patch.object(decode, "_table", wraps=table) as made:
            every = decoded()
        (count,) = made.call_args.args
        first = (count.cumsum(1) - count)[count > 0]
        with patch.object(decode, "_table", counted_too_few):
            few = decoded()
        assert len(first) < every.count.item()
        for name in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(few, name)[0], getattr(every, name)[0, first])


def test_kernels_are_launched_on_the_device_of_their_tensors() -> None:
    with patch("torch.cuda.device") as device:
        kernels.on_device_of(Mock(device=torch.device("cuda:1")))
    device.assert_called_once_with(torch.device("cuda:1"))

    entered: list[torch.device] = []

    @contextmanager
    def enter(x: Tensor) -> Iterator[None]:
        entered.append(x.device)
        yield

    raw, sizes = torch.zeros(1, 7, 2, 2, device=DEVICE), torch.ones(1, 2, device=DEVICE)
    boxes, valid = torch.zeros(1, 2, 4, device=DEVICE), torch.ones(1, 2, dtype=torch.bool, device=DEVICE)
    logits, limits = torch.zeros(1, 2, 3, device=DEVICE), torch.ones(1, 2, device=DEVICE)
    with patch.object(decode, "on_device_of", enter), patch.object(select, "on_device_of", enter):
        decode.yolo_candidates([raw], [sizes], (8, 8), 0.1, None, False)
        decode.region_candidates(logits, torch.zeros(1, 2, 2, 4, device=DEVICE), boxes, valid, limits, 0.1, WEIGHTS, 1)
        best, grid = (logits[:, 0, :1], valid[:, :1].long()), (sizes, 2, 2, (4, 4))
        decode.proposal_candidates([raw[:, :4]], [best], [grid], limits, 1)
        select.greedy_nms(boxes, None, valid.sum(1), 0.5, 2)
    assert entered == [raw.device] * 4


def test_kernel_serves_the_detectors() -> None:
    """Where Triton serves a tensor, decoding goes there and nowhere else; a map that learns stays on the plain path."""
    maps, sizes = [numbers(2, 18, 3, 3, seed=0)], [torch.ones(2, 2)]
    outputs = RoIOutputs(*(torch.zeros(1) for _ in range(5)))
    with patch("detkit.ops.kernels.serve", return_value=True):
        with patch.object(decode, "yolo_candidates", return_value="the kernel's") as kernel:
            assert yolo_candidates(maps, sizes, (24, 24), 0.1) == "the kernel's"
            assert yolo_candidates([maps[0].requires_grad_()], sizes, (24, 24), 0.1) != "the kernel's"
        kernel.assert_called_once()
        with patch.object(decode, "region_candidates", return_value="the kernel's"):
            assert region_candidates(outputs, 0.1, (1, 1, 1, 1)) == "the kernel's"
