"""The search of windows, both ways of it, and what is learned from them."""

import math

import pytest
import torch
from torch import Tensor, nn

from detkit import backbones
from detkit.backbones import BackboneConfig
from detkit.backbones.base import Backbone
from detkit.detectors.sliding_window import SlidingWindow, SlidingWindowConfig
from detkit.errors import DetkitError
from detkit.ops.boxes import pairwise_iou
from detkit.ops.nms import Selection
from detkit.structures import Batch, Target

SIZE = 48, 64


class Patches(Backbone):
    """A body without padding: every cell sees its own 8 × 8 pixels alone."""

    def __init__(self, strides: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.strides, self.channels = (8,), (6,)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.Tanh(), nn.Conv2d(6, 6, 1), nn.Tanh())

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.layers(images)]


@pytest.fixture(autouse=True)
def patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "patches", Patches)


def build(name: str = "patches", num_classes: int = 2, **options) -> SlidingWindow:
    torch.manual_seed(0)
    tree = {"stride": 8, "crop": 16, "windows": {"scales": (16, 30, 100), "aspect_ratios": (1, 2), "stride": 8}}
    config = SlidingWindowConfig(backbone=BackboneConfig(name=name), **(tree | options))
    return SlidingWindow(config, num_classes, SIZE).eval()


def target(*rows: tuple[float, ...]) -> Target:
    """Rows of x1, y1, x2, y2, label."""
    table = torch.tensor(rows, dtype=torch.float).view(-1, 5)
    return Target(table[:, :4], table[:, 4].long(), *torch.zeros(2, len(rows), dtype=torch.bool))


def pictures() -> Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_windows_by_hand() -> None:
    model = build(windows={"scales": (16, 32), "aspect_ratios": (1,), "stride": 8})
    small, large = model.levels(*SIZE)
    # A window as large as the crop moves by the stride, one twice as large by twice as much.
    assert small.counts == (1 + (64 - 16) // 8, 1 + (48 - 16) // 8)
    assert large.counts == (1 + (64 - 32) // 16, 1 + (48 - 32) // 16)
    assert model(pictures()).boxes[35:].tolist() == [
        [x, y, x + 32, y + 32] for y in (0, 16) for x in (0, 16, 32)
    ]  # fmt: skip


def test_windows_reach_every_edge_and_lie_about_the_middle() -> None:
    model = build(windows={"scales": (20,), "aspect_ratios": (1,), "stride": 12})
    boxes = model(pictures()).boxes  # 15 pixels apart: four fill 65 of 64 pixels, three 50 of 48
    assert boxes[:4].tolist() == [[x, -1, x + 20, 19] for x in (-0.5, 14.5, 29.5, 44.5)]
    assert len(boxes) == 4 * 3


def test_a_picture_smaller_than_the_window_lies_in_its_middle() -> None:
    model = build(windows={"scales": (200,), "aspect_ratios": (1,), "stride": 8})
    raw = model(pictures()[..., :10, :12])
    assert raw.boxes.tolist() == [[-94, -95, 106, 105]]
    (found,) = model.detect(Batch(pictures()[:1, :, :10, :12], torch.tensor([[10, 12]])), Selection(score=0.0))
    assert found.boxes.tolist() == [[0, 0, 12, 10]] * len(found)
    assert len(found)


def test_the_aspect_ratio_is_width_by_height_at_the_same_area() -> None:
    (level,) = build(windows={"scales": (32,), "aspect_ratios": (4,), "stride": 8}).levels(*SIZE)
    assert level.sides == (64, 16)


def test_a_crop_is_the_window_pixel_by_pixel() -> None:
    model, images = build(), pictures()
    boxes = torch.tensor([[4.0, 6, 20, 22], [10, 10, 42, 42]])
    same, half = model._cut(images, torch.tensor([1, 0]), boxes, (16, 16), -1)
    torch.testing.assert_close(same, images[1, :, 6:22, 4:20])
    # Of a window twice as large four pixels each are averaged.
    torch.testing.assert_close(half, nn.functional.avg_pool2d(images[0, :, 10:42, 10:42], 2))


@pytest.mark.parametrize("pool", ["features", "scores"])
@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_dense_is_crops_for_a_body_without_padding(stride: int, pool: str) -> None:
    windows = {"scales": (13, 30, 100), "aspect_ratios": (1, 1.7), "stride": stride}
    crops, dense = (build(search=way, windows=windows, pool=pool) for way in ("crops", "dense"))
    with torch.no_grad():
        one, other = crops(pictures()), dense(pictures())
    assert one.logits.std() > 0.01
    torch.testing.assert_close(one.boxes, other.boxes)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=0)


def test_with_padding_dense_is_crops_where_the_window_is_the_picture_and_differs_elsewhere() -> None:
    options = {"crop": 32, "windows": {"scales": (24, 100), "aspect_ratios": (1,), "stride": 8}}
    crops, dense = (build("darknet_tiny", search=way, **options) for way in ("crops", "dense"))
    with torch.no_grad():
        one, other = crops(pictures()).logits, dense(pictures()).logits
    torch.testing.assert_close(one[:, -1], other[:, -1], atol=1e-5, rtol=0)
    assert (one[:, :-1] - other[:, :-1]).abs().max() > 1e-3


def test_the_size_of_batches_changes_nothing() -> None:
    whole, parts = build(), build(batch=5)
    torch.testing.assert_close(whole(pictures()).logits, parts(pictures()).logits)


def test_grey_windows_have_no_colour() -> None:
    images = pictures()
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(build(grey=True)(images).logits, build()(grey).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mobilenet_v3_large", "stride": 16}, r"computes mean over the picture\); take search: crops"),
        ({"name": "timm/vit_tiny_patch16_224", "stride": 16}, "scaled_dot_product"),
        ({"name": "timm/vit_tiny_patch16_224", "stride": 16, "pool": "token"}, "pool features or scores, got token"),
        ({"windows": {"stride": 5}}, "divisor or multiple of 8"),
        ({"crop": 20}, "multiple of 8"),
        ({"loss": {"pool": 3}}, "fewer than the 24"),
        ({"loss": {"foreground_iou": 0.3}}, "must not be above"),
    ],
)
def test_what_cannot_be_is_one_sentence(options, message) -> None:
    with pytest.raises((DetkitError, ValueError), match=message):
        build(**{"search": "dense", "crop": 32, **options})


class Bright(nn.Module):
    """Calls a window an object by how bright it is."""

    def forward(self, crops: Tensor) -> Tensor:
        score = 10 * crops.mean((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score), torch.full_like(score, 5)], 1)


def test_mining_picks_what_the_network_takes_for_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(loss={"negatives": 2, "pool": None, "positives": 1})
    images = torch.zeros(1, 3, *SIZE)
    images[..., 16:32, 24:40] = 1  # bright, and no object
    images[..., 32:48, 48:64] = 1  # as bright, and one: it is not learned as background
    bright = Bright()
    bright.normalize = nn.Module()  # type: ignore[assignment]
    bright.normalize.mean = torch.zeros(3, 1, 1)  # type: ignore[union-attr]
    model.classifier = bright  # type: ignore[assignment]
    looked: list[Tensor] = []
    classify = model._classify
    monkeypatch.setattr(model, "_classify", lambda x, p, boxes: looked.append(boxes) or classify(x, p, boxes))
    _, labels = model._learn_crops(SIZE, images, [target((48, 32, 64, 48, 1))])
    searched, learned = looked[:-1], looked[-1]
    assert sum(map(len, searched)) == sum(math.prod(level.counts) for level in model.levels(*SIZE))
    assert labels.tolist() == [1, 2, 2]
    assert learned[1].tolist() == [24, 16, 40, 32]
    for label in (1, 0):  # a row that is no background is passed over, however hard it is
        wrong, background = torch.tensor([[0.1, 9, 3, 7]]), torch.tensor([[True, False, True, bool(label)]])
        assert model._hardest(wrong, background).tolist() == [[3, 2] if label else [2, 0]]


def test_mining_leaves_statistics_and_modes_alone() -> None:
    model = build("darknet_tiny").train()
    model.classifier.backbone.stages[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    model._background_loss(pictures(), torch.tensor([[[0.0, 0, 20, 20]] * 3] * 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]


@pytest.mark.parametrize("search", ["crops", "dense"])
def test_pictures_without_objects_and_crowds_teach_what_they_can(search: str) -> None:
    model = build(search=search).train()
    batch = Batch(pictures(), torch.tensor([SIZE] * 2))
    none = model.losses(batch, [target(), target()])["cls"]
    none.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.classifier.head.bias.grad[-1] < 0  # towards the background
    crowd = target((-50, -50, 150, 150, 0))
    crowd = Target(crowd.boxes, crowd.labels, torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool))
    assert model.losses(batch, [crowd, crowd])["cls"] == 0


def test_jittered_windows_stay_on_their_object() -> None:
    from detkit.detectors.sliding_window import _jittered

    boxes = torch.tensor([[10.0, 20, 50, 40]]).expand(500, 4)
    moved = _jittered(boxes, 0.1)
    centre, sides = (moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]
    shift = (centre - torch.tensor([30.0, 30])) / torch.tensor([40.0, 20])
    growth = (sides / torch.tensor([40.0, 20])).log()
    for change in (shift, growth):
        assert 0.09 < change.abs().max() <= 0.1 + 1e-5
        assert math.isclose(change.mean(), 0, abs_tol=0.02)


def test_any_classifier_looks_through_windows() -> None:
    for name, options in (
        ("timm/vit_tiny_patch16_224", {"pool": "token", "stride": 16, "crop": 32}),
        ("timm/test_resnet", {"stride": 32, "crop": 32, "norm": True}),
    ):
        raw = build(name, **options)(pictures())
        assert raw.logits.shape == (2, len(raw.boxes), 3)
        assert raw.logits.std(1).max() > 1e-4  # it depends on the window


def test_two_pictures_are_learned_by_heart_crop_by_crop() -> None:
    """Every object is found by a window that it fills, and nothing else is."""
    windows = {"scales": (16, 32), "aspect_ratios": (1,), "stride": 4}
    model = build(windows=windows, loss={"negatives": 16, "pool": 64}).train()
    truth = [target((9, 7, 25, 24, 0), (30, 10, 62, 42, 1)), target((6, 14, 37, 46, 0), (44, 20, 60, 36, 1))]
    images = pictures() * 0.3
    for image, objects in zip(images, truth, strict=True):
        for (x1, y1, x2, y2), label in zip(objects.boxes.int().tolist(), objects.labels.tolist(), strict=True):
            image[2 * label, y1:y2, x1:x2] += 0.7  # red or blue
    batch = Batch(images, torch.tensor([SIZE] * 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-2, 200)
    for _ in range(200):
        optimizer.zero_grad()
        model.losses(batch, truth)["cls"].backward()
        optimizer.step()
        schedule.step()
    for found, objects in zip(model.eval().detect(batch, Selection(score=0.5, iou=0.2)), truth, strict=True):
        over = pairwise_iou(objects.boxes, found.boxes)
        same = objects.labels[:, None] == found.labels
        assert (over * same).max(1).values.min() > 0.5
        assert (over * same).max(0).values.min() > 0.2
