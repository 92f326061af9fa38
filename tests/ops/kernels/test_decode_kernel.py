"""The Triton kernels of decoding, on the GPU or, without one, by Triton's interpreter, against the plain path."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.detectors.fast_rcnn import RoIOutputs, region_candidates
from detkit.ops.yolo import yolo_candidates
from detkit.structures import Candidates

pytest.importorskip("triton", reason="Triton is not there")
from detkit.ops.kernels import decode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter


def assert_same(found: Candidates, expected: Candidates) -> None:
    """The same rows in the same order; boxes to 1e-5 of the pictures' size, because a corner may lie near 0."""
    found = found.to("cpu")
    assert found.count.tolist() == expected.count.tolist()
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-3)


def yolo(grids, anchors, classes, batch=2, seed=0, dtype=torch.float32, spread=2.0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = [(batch, anchors * (5 + classes), h, w) for h, w in grids]
    return [(spread * torch.randn(shape, generator=random)).to(dtype) for shape in shapes]


def assert_yolo_is_exact(maps, anchors, threshold, *, softmax=False, scale_xy=None) -> Candidates:
    random = torch.Generator().manual_seed(1)
    sizes = [5 + 100 * torch.rand(anchors, 2, generator=random) for _ in maps]
    size_hw = 8 * maps[0].shape[2], 8 * maps[0].shape[3]
    expected = yolo_candidates(maps, sizes, size_hw, threshold, scale_xy, softmax=softmax)
    there = [raw.to(DEVICE) for raw in maps], [size.to(DEVICE) for size in sizes]
    assert_same(decode.yolo_candidates(*there, size_hw, threshold, scale_xy, softmax), expected)
    return expected


@settings(max_examples=10)
@given(
    grids=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3),
    anchors=st.integers(1, 5),
    classes=st.sampled_from([1, 2, 63, 64, 65]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([0.0, 0.001, 0.25, 0.9]),
    softmax=st.booleans(),
    channels_last=st.booleans(),
)
def test_kernel_decodes_as_plain_yolo(grids, anchors, classes, batch, seed, threshold, softmax, channels_last) -> None:
    maps = yolo(grids, anchors, classes, batch, seed)
    if channels_last:
        maps = [raw.contiguous(memory_format=torch.channels_last) for raw in maps]
    assert_yolo_is_exact(maps, anchors, threshold, softmax=softmax)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernel_decodes_half_precision_and_stretched_centres(dtype) -> None:
    maps = yolo([(6, 9), (3, 5)], 3, 20, dtype=dtype)
    assert assert_yolo_is_exact(maps, 3, 0.1, scale_xy=[1.05, 1.2]).count.min() > 100


@pytest.mark.parametrize(("batch", "classes"), [(1, 1203), (64, 20)])
def test_kernel_decodes_many_classes_and_many_pictures(batch, classes) -> None:
    assert assert_yolo_is_exact(yolo([(2, 3)], 1, classes, batch, spread=1), 1, 0.7).count.sum() > 0


def test_kernel_decodes_maps_that_are_parts_of_others() -> None:
    whole = yolo([(8, 12)], 2, 3)[0]
    assert_yolo_is_exact([whole[:, :, 2:6, 3:9]], 2, 0.1)
    assert_yolo_is_exact([whole.transpose(2, 3)], 2, 0.1)


@pytest.mark.parametrize("softmax", [False, True])
def test_kernel_decodes_what_is_no_number_and_what_is_nothing(softmax) -> None:
    maps = yolo([(5, 5)], 2, 7)
    raw = maps[0]
    raw.view(-1)[::13], raw.view(-1)[5::17], raw.view(-1)[7::19] = torch.nan, torch.inf, -torch.inf
    raw[:, 2:4] = 0.5  # boxes that are equal can be compared
    raw[:, 14:16] = 0.5
    raw[:, :2], raw[:, 12:14] = 0.1, 0.2
    assert assert_yolo_is_exact(maps, 2, 0.1, softmax=softmax).count.min() > 0
    nothing = assert_yolo_is_exact([torch.full((3, 24, 5, 5), -20.0)], 2, 0.5, softmax=softmax)
    assert nothing.boxes.shape == (3, 0, 4)


@pytest.mark.parametrize(("regions", "classes"), [(1, 1), (17, 3), (40, 80), (3, 1203)])
def test_kernel_decodes_regions_as_fast_rcnn(regions, classes) -> None:
    random = torch.Generator().manual_seed(regions)
    low = 100 * torch.rand(3, regions, 2, generator=random)
    boxes = torch.cat([low, low + 1 + 60 * torch.rand(3, regions, 2, generator=random)], -1)
    valid = torch.arange(regions) < torch.tensor([[regions], [regions // 2], [0]])
    logits = 3 * torch.randn(3, regions, classes + 1, generator=random)
    deltas = 12 * torch.randn(3, regions, classes, 4, generator=random)  # also far out of the picture
    if regions > 10:
        deltas[0, 0, :, 2], deltas[0, 1, :, 0], deltas[0, 2, :, 3] = torch.nan, torch.nan, 1e9
        logits[1, 0, 0] = torch.nan
    limits = torch.tensor([[120.0, 90], [64, 64], [50, 50]])
    outputs, weights = RoIOutputs(boxes, valid, logits, deltas, limits), (10.0, 10.0, 5.0, 5.0)
    for threshold in (0.05, 0.0) if classes < 100 else (0.01,):
        expected = region_candidates(outputs, threshold, weights)
        there = [x.to(DEVICE) for x in (logits, deltas, boxes, valid, limits)]
        assert_same(decode.region_candidates(*there, threshold, weights, 0.01), expected)
        assert expected.count[2] == 0
    assert expected.count[0] > 0


def test_kernel_serves_the_detectors() -> None:
    """Where Triton serves a tensor, decoding goes there and nowhere else; a map that learns stays on the plain path."""
    maps, sizes = yolo([(3, 3)], 2, 4), [torch.ones(2, 2)]
    outputs = RoIOutputs(*(torch.zeros(1) for _ in range(5)))
    with patch("detkit.ops.kernels.serve", return_value=True):
        with patch.object(decode, "yolo_candidates", return_value="the kernel's") as kernel:
            assert yolo_candidates(maps, sizes, (24, 24), 0.1) == "the kernel's"
            assert yolo_candidates([maps[0].requires_grad_()], sizes, (24, 24), 0.1) != "the kernel's"
        kernel.assert_called_once()
        with patch.object(decode, "region_candidates", return_value="the kernel's"):
            assert region_candidates(outputs, 0.1, (1, 1, 1, 1)) == "the kernel's"
