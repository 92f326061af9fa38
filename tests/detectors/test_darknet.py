"""The reader and the explicit detectors against outputs of the original Darknet program; each layer by its formula."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.darknet import Darknet19, Extraction
from detkit.classify.classifier import Classifier
from detkit.detectors.base import Detector
from detkit.detectors.darknet import (
    Darknet,
    DarknetConfig,
    Reorg,
    darknet_model_config,
    darknet_names,
    darknet_preprocess,
    load_darknet,
)
from detkit.errors import DetkitError
from detkit.export.checkpoint import export_checkpoint
from detkit.export.darknet import export_darknet, save_darknet
from detkit.model import ModelConfig, build_detector, load, load_weights, read_config, read_model
from detkit.ops.boxes import xyxy_to_cxcywh
from detkit.ops.nms import Selection, select
from detkit.preprocess import Placement
from detkit.structures import Batch, Candidates
from detkit.weights.darknet import load_darknet_weights, parse_cfg, read_cfg

slow = pytest.mark.slow


class Vector:
    """One picture's outputs of the original program."""

    def __init__(self, shared: Path, name: str) -> None:
        folder = shared / "darknet_reference"
        self.arrays = np.load(folder / "ref" / f"{name}.npz")
        self.info = json.loads((folder / "ref" / f"{name}.json").read_text())
        self.cfg = folder / "cfg" / f"{name.rsplit('_', 2)[0]}.cfg"
        self.picture = np.array(Image.open(folder / "img" / self.info["image"]).convert("RGB"))
        mode = "letterbox" if self.info["letterbox"] else "stretch"
        self.preprocess = darknet_preprocess(read_cfg(self.cfg)).model_copy(update={"mode": mode})

    def input(self) -> tuple[Tensor, Placement]:
        """The network's input, checked against the reference's."""
        batch, (placement,) = self.preprocess([self.picture])
        images = batch.images
        if "input" in self.arrays:
            assert np.abs(images[0].numpy() - self.arrays["input"]).max() < 1e-6
        else:
            sums = images.double().sum().item(), images.double().square().sum().item()
            assert sums == pytest.approx(self.arrays["input_sum"], rel=1e-6)
        return images, placement

    def deviation(self, layer: int, kind: str, output: Tensor) -> float:
        """The largest deviation of a head's output [C, h, w], in units of the head's largest value."""
        values = output.contiguous().numpy().ravel()
        key = f"layer{layer}_{kind}"
        scale = self.info["raw_absmax"][f"{layer}:{kind}"]
        if key in self.arrays:
            return float(np.abs(values - self.arrays[key].ravel()).max() / scale)
        wanted = self.arrays[f"{key}_sum"]
        assert [values.astype(np.float64).sum(), np.abs(values.astype(np.float64)).sum()] == pytest.approx(
            wanted, abs=1e-5 * wanted[1]
        )
        return float(np.abs(values[self.arrays[f"{key}_idx"]] - self.arrays[f"{key}_val"]).max() / scale)

    def check_boxes(self, detector: Detector, raw: list[Tensor], placement: Placement) -> None:
        """All boxes above the threshold, and those that NMS leaves, unclipped and relative to the picture."""
        candidates = detector.decode(raw, self.info["thresh"])
        everything = Selection(
            score=self.info["thresh"], iou=self.info["nms"], max_detections=10**5, max_candidates=10**6
        )
        check_rows(self._rows(candidates, placement), self.arrays["dets"][:, [0, 1, 3, 4, 5, 6]])
        check_rows(self._rows(select(candidates, everything), placement), self.arrays["nms"])

    def _rows(self, candidates: Candidates, placement: Placement) -> np.ndarray:
        height, width = placement.picture
        boxes = xyxy_to_cxcywh(placement.to_picture(candidates.boxes[0])) / torch.tensor([width, height, width, height])
        rows = torch.cat([candidates.labels[0, :, None], candidates.scores[0, :, None], boxes], 1)
        return rows[: candidates.count[0]].numpy()


def check_rows(rows: np.ndarray, wanted: np.ndarray) -> None:
    """Rows (class, score, x, y, w, h) are the wanted ones in any order, to 1e-4 of the largest number or of 1."""
    assert len(rows) == len(wanted)
    far = np.array([1e3, 1, 1, 1, 1, 1])  # a row of another class is never the nearest
    distance, nearest = cKDTree(rows * far).query(wanted * far)
    assert len(set(nearest)) == len(wanted)
    assert (distance < 1e-4 * np.maximum(1, np.abs(wanted[:, 1:]).max(1))).all()


def activated(raw: Tensor, anchors: int, kind: str) -> Tensor:
    """What Darknet's layer gives for a raw map [A·(5 + C), h, w]."""
    grid = raw.view(anchors, -1, *raw.shape[1:])
    classes = grid[:, 5:].sigmoid() if kind == "yolo" else grid[:, 5:].softmax(1)
    return torch.cat([grid[:, :2].sigmoid(), grid[:, 2:4], grid[:, 4:5].sigmoid(), classes], 1).flatten(0, 1)


FAST = [f"yolov3_tiny_{rest}_lb" for rest in ("128x96_dog", "128x96_synth", "416x416_dog", "416x416_person")]
YOLOV3 = [name.replace("yolov3_tiny", "yolov3") for name in FAST]
YOLOV2 = [name.replace("yolov3", "yolov2").replace("tiny", "tiny_voc") for name in FAST]
YOLOV2 += [name.replace("_tiny", "") for name in YOLOV2]
YOLOV1 = ["yolov1_tiny_448x448_dog_rs", "yolov1_tiny_448x448_synth_rs"]
CLASSIFIERS = ["darknet19_128x96_dog_lb", "darknet19_128x96_synth_lb", "darknet19_256x256_dog_lb"]
CLASSIFIERS += ["extraction_128x96_dog_lb", "extraction_128x96_synth_lb", "extraction_224x224_dog_lb"]


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=slow) for name in [*YOLOV3, *YOLOV2, *YOLOV1, *CLASSIFIERS])]
)
@torch.inference_mode()
def test_any_cfg_gives_what_darknet_gives(shared, weights, name):
    vector = Vector(shared, name)
    num_classes = {"darknet19": 1000, "extraction": 1000, "yolov3": 80}.get(name.split("_")[0], 20)
    text = vector.cfg.read_text()
    network = Darknet(DarknetConfig(cfg=text, file=vector.cfg.name), num_classes, vector.preprocess.size).eval()
    load_darknet(network, weights(vector.info["net"]))
    images, placement = vector.input()
    raw = network(images)
    for layer, output in zip(network.outputs, raw, strict=True):
        kind = network.sections[layer].kind
        if kind in ("yolo", "region"):
            result = activated(output[0], len(network.layers[layer].anchors), kind)
        else:
            result = output[0]
        assert vector.deviation(layer, kind, result) < 1e-4
    if network.heads:
        vector.check_boxes(network, raw, placement)


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=slow) for name in YOLOV3)])
@torch.inference_mode()
def test_yolov3_gives_what_darknet_gives(shared, weights, name):
    vector = Vector(shared, name)
    config = {"yolov3_tiny": "yolov3_tiny_coco", "yolov3": "yolov3_darknet53_coco"}[vector.info["net"]]
    size = "preprocess.size=[{}, {}]".format(*vector.preprocess.size)
    detector = build_detector(read_config(config, [size]))
    load_weights(detector, weights(vector.info["net"]))
    images, placement = vector.input()
    raw = detector(images)
    heads = [s.layer for s in read_cfg(vector.cfg) if s.kind == "yolo"]
    for layer, output in zip(reversed(heads), raw, strict=True):
        assert vector.deviation(layer, "yolo", activated(output[0], 3, "yolo")) < 1e-4
    # Darknet lists coarse heads first: the rows are the same, and NMS does not see the order of different scores.
    vector.check_boxes(detector, raw, placement)


@slow
@pytest.mark.parametrize("name", YOLOV1)
@torch.inference_mode()
def test_yolov1_gives_what_darknet_gives(shared, weights, name):
    vector = Vector(shared, name)
    config = read_config("yolov1_tiny_voc")
    assert config.preprocess == vector.preprocess.model_copy(update={"divisor": config.preprocess.divisor})
    detector = build_detector(config)
    load_weights(detector, weights(vector.info["net"]))
    images, placement = vector.input()
    raw = detector(images)
    (head,) = (s.layer for s in read_cfg(vector.cfg) if s.kind == "detection")
    assert vector.deviation(head, "detection", raw[0]) < 1e-4
    vector.check_boxes(detector, raw, placement)


@slow
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name.startswith("extraction")])
@torch.inference_mode()
def test_extraction_gives_what_darknet_gives(shared, weights, name):
    vector = Vector(shared, name)
    classifier = Classifier(Extraction(), 1000, pool="scores", activation="leaky").eval()
    load_darknet_weights(classifier.darknet_layers(), weights(vector.info["net"]))
    images, _ = vector.input()
    (layer,) = (s.layer for s in read_cfg(vector.cfg) if s.kind == "softmax")
    assert vector.deviation(layer, "softmax", classifier(images)[0].softmax(0)) < 1e-4


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) for name in YOLOV2])
@torch.inference_mode()
def test_yolov2_gives_what_darknet_gives(shared, weights, name):
    vector = Vector(shared, name)
    config = {"yolov2_tiny_voc": "yolov2_tiny_voc", "yolov2_voc": "yolov2_darknet19_voc"}[vector.info["net"]]
    size = "preprocess.size=[{}, {}]".format(*vector.preprocess.size)
    detector = build_detector(read_config(config, [size]))
    load_weights(detector, weights(vector.info["net"]))
    images, placement = vector.input()
    raw = detector(images)
    (head,) = (s.layer for s in read_cfg(vector.cfg) if s.kind == "region")
    assert vector.deviation(head, "region", activated(raw[0], 5, "region")) < 1e-4
    vector.check_boxes(detector, raw, placement)


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) for name in CLASSIFIERS if "darknet19" in name])
@torch.inference_mode()
def test_darknet19_gives_what_darknet_gives(shared, weights, name):
    vector = Vector(shared, name)
    classifier = Classifier(Darknet19(strides=(32,)), 1000, pool="scores").eval()
    load_darknet_weights(classifier.darknet_layers(), weights("darknet19"))
    images, _ = vector.input()
    (layer,) = (s.layer for s in read_cfg(vector.cfg) if s.kind == "softmax")
    assert vector.deviation(layer, "softmax", classifier(images)[0].softmax(0)) < 1e-4


def test_a_detector_trained_by_others_sees_dog_bicycle_and_car(shared):
    model = load(shared / "weights" / "yolo-fastest-1.1" / "yolo-fastest-1.1.cfg", device="cpu")
    detections = model(shared / "sample_images" / "darknet" / "dog.jpg")
    names = [model.classes[label] for label in detections.labels]
    assert {"dog", "bicycle", "car"} <= set(names)
    left, top, right, bottom = detections.boxes[names.index("dog")]  # it fills about 130 … 310 by 220 … 540
    assert left < 200 < right < 450
    assert top < 300 < bottom


# ----------------------------------------------------------------------------------------------------------------------
# Layers


def build(body: str, size_hw: tuple[int, int] = (16, 24), num_classes: int = 2) -> Darknet:
    return Darknet(DarknetConfig(cfg=f"[net]\n{body}", file="a.cfg"), num_classes, size_hw).eval()


@torch.no_grad()
def run(body: str, images: Tensor) -> Tensor:
    network = build(body, tuple(images.shape[2:]))
    (out,) = network(images)
    return out


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 1, None), (2, 2, None), (3, 2, 1), (5, 1, None), (3, 1, 0)]
)
@pytest.mark.parametrize("side", [6, 7])
def test_maxpool_pads_in_total_size_minus_one(size, stride, padding, side):
    x = -torch.rand(1, 3, side, side + 1) - 1  # all below zero: zeros in the padding would win
    option = "" if padding is None else f"padding={padding}\n"
    out = run(f"[maxpool]\nsize={size}\nstride={stride}\n{option}", x)
    total = size - 1 if padding is None else padding
    rows, columns = ((n + total - size) // stride + 1 for n in x.shape[2:])
    assert out.shape == (1, 3, rows, columns)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride - total // 2, j * stride - total // 2
            window = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
            assert torch.equal(out[:, :, i, j], window.amax((2, 3)))


def test_convolution_reads_groups_stride_padding_and_activation():
    x = torch.randn(2, 3, 9, 8)
    body = "[convolutional]\nfilters=6\nsize={}\nstride=2\n{}\nactivation={}\ngroups=3\n"
    for size, option, padding, activation, function in (
        (3, "pad=1", 1, "leaky", lambda y: F.leaky_relu(y, 0.1)),
        (5, "pad=1\npadding=1", 2, "relu", F.relu),
        (3, "padding=2", 2, "mish", F.mish),
        (3, "pad=0", 0, "swish", lambda y: y * y.sigmoid()),
        (1, "pad=1", 0, "relu6", lambda y: y.clamp(0, 6)),
        (3, "pad=1", 1, "logistic", torch.sigmoid),
        (3, "pad=1", 1, "linear", lambda y: y),
    ):
        network = build(body.format(size, option, activation), (9, 8))
        conv = network.layers[0].conv
        wanted = function(F.conv2d(x, conv.weight, conv.bias, 2, padding, groups=3))
        torch.testing.assert_close(network(x)[0], wanted)


def test_route_and_shortcut_take_the_layers_they_name():
    x = torch.randn(1, 3, 8, 8)
    body = """
[upsample]
stride=2
[maxpool]
size=2
stride=2
[dropout]
probability=.9
[route]
layers=-1,1,-3
"""
    with pytest.raises(
        DetkitError, match=r"section 4 \[route\]: layers differ in height or width: 3 × 8 × 8, .*3 × 16 × 16"
    ):
        run(body, x)
    assert torch.equal(run(body.replace("-1,1,-3", "-1, 1"), x), torch.cat([x, x], 1))
    up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(run(body.replace("-1,1,-3", "0"), x), up)
    assert torch.equal(run("[dropout]\n[route]\nlayers=0\ngroups=3\ngroup_id=1", x), x[:, 1:2])
    two = "[dropout]\n[route]\nlayers=0,0\n[route]\nlayers=0,1\ngroups=3\ngroup_id=2"
    assert torch.equal(run(two, x), torch.cat([x[:, 2:], x[:, 1:]], 1))
    assert torch.equal(run("[dropout]\n[dropout]\n[shortcut]\nfrom=-2\nactivation=relu", x), (2 * x).relu())


def test_shortcut_of_other_shapes_adds_the_first_channels_and_every_second_pixel():
    y = torch.randn(1, 3, 8, 8)
    pooled = F.max_pool2d(y, 2)
    small = "[dropout]\n[maxpool]\nsize=2\nstride=2\n"
    assert torch.equal(run(f"{small}[shortcut]\nfrom=0", y), pooled + y[:, :, ::2, ::2])
    narrow = "[dropout]\n[route]\nlayers=0\ngroups=3\ngroup_id=2\n[shortcut]\nfrom=0"
    assert torch.equal(run(narrow, y), y[:, 2:] + y[:, :1])
    wide = "[dropout]\n[route]\nlayers=0\ngroups=3\ngroup_id=2\n[route]\nlayers=0\n[shortcut]\nfrom=1"
    wanted = y.clone()
    wanted[:, :1] += y[:, 2:]
    assert torch.equal(run(wide, y), wanted)
    with pytest.raises(DetkitError, match=r"section 3 .*cannot add a map of 3 × 4 × 4 to one of 3 × 8 × 8"):
        run("[maxpool]\nsize=2\nstride=2\n[upsample]\n[shortcut]\nfrom=0", y)


def test_reorg_follows_its_formula():
    c, h, w, s = 8, 4, 6, 2
    x = torch.arange(c * h * w, dtype=torch.float32)
    flat = torch.empty(c * h * w)
    for k in range(c):
        for j in range(h):
            for i in range(w):
                channel, off = k % (c // s**2), k // (c // s**2)
                source = i * s + off % s + w * s * (j * s + off // s + h * s * channel)
                flat[(k * h + j) * w + i] = x[source]
    out = Reorg(s)(x.view(1, c, h, w))
    assert torch.equal(out, flat.view(1, c * s * s, h // s, w // s))
    assert torch.equal(Reorg(s)(x.view(1, c, h, w).contiguous(memory_format=torch.channels_last)), out)
    assert not torch.equal(out, F.pixel_unshuffle(x.view(1, c, h, w), s))


def test_local_has_its_own_weights_at_each_place():
    x = torch.randn(2, 3, 5, 6)
    network = build("[local]\nfilters=4\nsize=3\nstride=2\npad=1\nactivation=linear", (5, 6))
    local = network.layers[0].conv
    nn.init.normal_(local.bias)
    out = network(x)[0]
    assert out.shape == (2, 4, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1))
    for row in range(3):
        for column in range(3):
            patch = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].flatten(1)
            place = row * 3 + column
            wanted = patch @ local.weight[place].T + local.bias.view(4, 9)[:, place]
            torch.testing.assert_close(out[:, :, row, column], wanted)


def test_yolo_decodes_masked_anchors_and_scale():
    body = """
[convolutional]
filters=14
size=1
stride=8
activation=linear
[yolo]
mask=2,0
anchors=10,20, 1,1, 30,40
num=3
classes=2
scale_x_y=1.2
"""
    network = build(body)
    raw = torch.full((1, 14, 2, 3), -20.0)
    raw[0, 7:14, 1, 2] = torch.tensor([0.5, -1.0, 0.2, -0.3, 2.0, 1.0, -9.0])  # second anchor of the mask: 10 × 20
    raw[0, 4:7, 0, 0] = torch.tensor([-1.0, 5.0, 5.0])  # objectness .27 is not above the threshold
    found = network.decode([raw], 0.3)
    assert found.count.tolist() == [1]
    assert found.labels[0].tolist() == [0]

    def logistic(t: float) -> float:
        return 1 / (1 + np.exp(-t))

    x, y = (2 + 1.2 * logistic(0.5) - 0.1) * 8, (1 + 1.2 * logistic(-1) - 0.1) * 8
    w, h = 10 * np.exp(0.2), 20 * np.exp(-0.3)
    assert found.boxes[0, 0].tolist() == pytest.approx([x - w / 2, y - h / 2, x + w / 2, y + h / 2], rel=1e-5)
    assert found.scores[0, 0].item() == pytest.approx(logistic(2) * logistic(1), rel=1e-5)


TREE = "n1 -1\nn2 -1\nn3 0\nn4 0\nn5 1\nn6 2\nn7 2\n"
NAMES = ["animal", "vehicle", "dog", "crane (n4)", "crane (n5)", "terrier", "poodle"]


@pytest.fixture
def over_a_tree(tmp_path) -> Path:
    """A .cfg as yolo9000.cfg ends, in a folder beside that of its tree, as Darknet's lie; the .weights beside it."""
    for folder in ("cfg", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "7.tree").write_text(TREE)
    (tmp_path / "data" / "7.names").write_text("\n".join(name.split(" (")[0] for name in NAMES))
    config = {
        "classes": NAMES,
        "detector": {
            "name": "yolov2",
            "backbone": {"name": "darknet_reference"},
            "anchors": [[12, 17], [70, 81]],
            "neck": {"depth": 0, "passthrough": False},
        },
        "preprocess": {"size": [64, 96]},
    }
    torch.manual_seed(0)
    detector = build_detector(ModelConfig.model_validate(config))
    nn.init.normal_(detector.head.bias)
    cfg = tmp_path / "cfg" / "yolo7.cfg"
    save_darknet(cfg, detector, (64, 96), NAMES)
    cfg.with_suffix(".names").unlink()
    cfg.write_text(cfg.read_text() + "tree=data/7.tree\nmap = data/coco7.map\n")
    return cfg


@torch.no_grad()
def test_a_region_over_a_tree_detects_as_yolo9000(over_a_tree, tmp_path):
    config, network = read_model(over_a_tree)
    assert config.classes == NAMES
    raw = torch.full((1, 24, 2, 3), -9.0)
    one, two = raw.view(2, 12, 2, 3)[:, :, 1, 2]
    one[:] = torch.tensor([0, 0, 0, 0, 2, 3, 0, 2, 0, 0, 3, 0])  # a terrier
    two[:] = torch.tensor([0, 0, 0, 0, 2, 3, 0, 2, 0, 0, 0.1, 0])  # a dog, but which?
    found = network.decode([raw], 0.1)
    assert [NAMES[label] for label in found.labels[0]] == ["terrier", "dog"]
    dog = 1 / (1 + np.exp(-2)) ** 2 / (1 + np.exp(-3))
    assert found.scores[0].tolist() == pytest.approx([dog / (1 + np.exp(-3)), dog], rel=1e-5)
    assert found.boxes[0, 0].tolist() == pytest.approx([80 - 6, 48 - 8.5, 80 + 6, 48 + 8.5])
    network.tree_threshold = 0.9
    assert [NAMES[label] for label in network.decode([raw], 0.1).labels[0]] == ["animal", "animal"]
    network.tree_threshold = 0.5

    # The explicit detector takes the same .weights, and both give the same for each picture.
    detector = {
        "name": "yolo9000",
        "backbone": {"name": "darknet_reference"},
        "anchors": [[12, 17], [70, 81]],
        "neck": {"depth": 0, "passthrough": False},
        "tree": str(tmp_path / "data" / "7.tree"),
    }
    tree = {"classes": [], "detector": detector, "preprocess": config.preprocess.model_dump(mode="json")}
    (tmp_path / "own.yaml").write_text(json.dumps(tree))
    own, explicit = read_model(tmp_path / "own.yaml", over_a_tree.with_suffix(".weights"))
    assert own.classes == NAMES
    batch = Batch(torch.rand(2, 3, 64, 96), torch.tensor([[64, 96]] * 2))
    for selection in (Selection(score=0.01), Selection(score=0.01, labels=(0, 3))):
        for a, b in zip(network.detect(batch, selection), explicit.detect(batch, selection), strict=True):
            assert len(a) > 3
            torch.testing.assert_close((a.boxes, a.scores, a.labels), (b.boxes, b.scores, b.labels))
    asked = network.detect(batch, Selection(score=0.01, labels=(0, 3)))
    assert {label for one in asked for label in one.labels.tolist()} == {0, 3}


@torch.no_grad()
def test_a_checkpoint_keeps_the_tree(over_a_tree, tmp_path):
    export_checkpoint(tmp_path / "a.safetensors", over_a_tree)
    (tmp_path / "data" / "7.tree").unlink()
    config, network = read_model(tmp_path / "a.safetensors")
    assert (config.classes, config.detector.tree) == (NAMES, [-1, -1, 0, 0, 1, 2, 2])
    assert network.heads[0].tree.depth == 3
    assert export_darknet(tmp_path / "b.cfg", tmp_path / "a.safetensors") == [
        "the tree that its [region] names is not written; put that file beside the .cfg"
    ]


def test_a_tree_is_found_beside_its_cfg_and_named_by_the_names_there(over_a_tree, tmp_path):
    (tmp_path / "data" / "7.tree").rename(over_a_tree.parent / "7.tree")
    assert darknet_model_config(over_a_tree)["classes"] == [f"n{i}" for i in range(1, 8)]
    over_a_tree.with_suffix(".names").write_text("\n".join("abcdefg"))
    assert darknet_model_config(over_a_tree)["classes"] == list("abcdefg")


def test_a_tree_that_does_not_serve_is_named(over_a_tree, tmp_path):
    text = over_a_tree.read_text()
    with pytest.raises(DetkitError, match=r"yolo7\.cfg, line \d+: section \d+ \[region\]: the tree is not there"):
        Darknet(DarknetConfig(cfg=text, file="yolo7.cfg"), 7, (64, 96))
    with pytest.raises(DetkitError, match="is no tree: label 0 has the parent 7"):
        Darknet(DarknetConfig(cfg=text, tree=[7] * 7), 7, (64, 96))
    (tmp_path / "data" / "7.names").unlink()
    (tmp_path / "data" / "7.tree").write_text(TREE + "n8 2\n")
    with pytest.raises(DetkitError, match=r"\[region\]: the tree has 8 labels, but classes is 7"):
        read_model(over_a_tree)
    (tmp_path / "data" / "7.tree").unlink()
    with pytest.raises(DetkitError, match=r"tree=data/7\.tree is not there; put 7\.tree and its \.names beside the"):
        read_model(over_a_tree)
    region = "[convolutional]\nfilters=14\n[yolo]\nanchors=1,2,3,4\nnum=2\nclasses=2\ntree=a.tree\n"
    with pytest.raises(DetkitError, match="unknown option 'tree'"):
        build(region)


TINY = """
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[maxpool]
size=2
stride=1
[convolutional]
filters=8
size=1
activation=mish
[shortcut]
from=-2
[convolutional]
filters=7
size=1
stride=4
activation=linear
[yolo]
anchors=10,20
num=1
classes=2
[route]
layers=0,3
[convolutional]
filters=7
size=1
activation=linear
[yolo]
anchors=1,2
num=1
classes=2
"""


@torch.no_grad()
def test_export_and_memory_format_change_nothing():
    network = build(TINY)
    images = torch.rand(2, 3, 16, 24)
    raw = network(images)
    assert [tuple(x.shape) for x in raw] == [(2, 7, 2, 3), (2, 7, 8, 12)]
    exported = torch.export.export(network, (images,)).module()
    for a, b in zip(exported(images), raw, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    last = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    for a, b in zip(last, raw, strict=True):
        assert a.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(a, b)


def test_maps_are_dropped_after_their_last_reader():
    network = build(TINY)
    # Layer 0 is read by the pooling and the route, 1 by the convolution and the shortcut, 5 and 8 are heads.
    assert network.done_after == [[-1], [], [], [1, 2], [], [4], [0, 3], [6], [7]]


@torch.no_grad()
def test_candidates_are_ordered_by_picture_head_and_cell():
    network = build(TINY)
    raw = [torch.full((2, 7, 2, 3), 3.0), torch.full((2, 7, 8, 12), 3.0)]
    found = network.decode(raw, 0.5)
    assert found.count.tolist() == [2 * (6 + 96)] * 2
    assert found.labels[1, :4].tolist() == [0, 1, 0, 1]
    x = (found.boxes[1, :12, 0] + found.boxes[1, :12, 2]) / 2
    assert (x.diff()[1::2] > 0).tolist() == [True, True, False, True, True]  # along the row, then the next row
    assert torch.equal(found.boxes[0], found.boxes[1])


# ----------------------------------------------------------------------------------------------------------------------
# Errors

HEAD = "[convolutional]\nfilters=14\nactivation=linear\n[yolo]\nmask=0,1\nanchors=1,2,3,4\nnum=2\nclasses=2\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", r"a\.cfg: has no layer after \[net\]"),
        ("[convolution]\n", r"a\.cfg, line 2: section 1 \[convolution\]: unknown layer; did you mean 'convolutional'"),
        ("[dropout]\n[crnn]\n", r"a\.cfg, line 3: section 2 \[crnn\]: unknown layer"),
        ("[convolutional]\nfiltres=8\n", r"line 3: section 1 .*unknown option 'filtres'; did you mean 'filters'"),
        ("[convolutional]\nxnor=1\n", r"line 3: section 1 .*xnor=1 is not supported, only xnor=0"),
        ("[convolutional]\nsize=3x3\n", r"line 3: section 1 .*size must be a whole number, got '3x3'"),
        ("[convolutional]\nstride=0\n", "stride must be at least 1, got 0"),
        ("[convolutional]\nactivation=leeky\n", "line 3: .*unknown activation 'leeky'; did you mean 'leaky'"),
        ("[convolutional]\nfilters=4\ngroups=2\n", "groups=2 does not divide the 3 input channels"),
        ("[convolutional]\nsize=64\n", "section 1 .*leaves nothing of its input 3 × 16 × 24"),
        ("[dropout]\n[route]\nlayers=-1,7\n", "line 4: section 2 .*names layer 7, but only layers 0 to 0 come before"),
        ("[dropout]\n[route]\nlayers=-2\n", "layers names layer -2"),
        ("[dropout]\n[route]\nlayers=1\n", "layers names layer 1"),
        ("[dropout]\n[route]\n", "line 3: section 2 .*option layers is missing"),
        ("[dropout]\n[route]\nlayers=0\ngroups=2\n", "group_id=0 of groups=2 does not exist in 3 × 16 × 24"),
        ("[dropout]\n[shortcut]\nfrom=-9\n", "from names layer -9"),
        ("[dropout]\nprobability=1.5\n", "probability must be from 0 to below 1"),
        ("[reorg]\nstride=2\n", "stride=2 does not divide its input 3 × 16 × 24"),
        (HEAD.replace("mask=0,1", "mask=0,2"), "line 6: section 2 .*mask names anchor 2, but there are anchors 0 to 1"),
        (HEAD.replace("=14", "=255"), r"section 2 .yolo.: 2 anchors and 2 classes want 14 channels .* got 255"),
        (HEAD.replace("num=2", "num=3"), "anchors must be num=3 pairs of positive numbers, got 4 numbers"),
        (HEAD.replace("classes=2", "classes=2\nnew_coords=1"), "new_coords=1 is not supported"),
        (HEAD + "[dropout]\n", r"section 3 .dropout.: reads layer 1 \[yolo\]"),
        (HEAD.replace("classes=2", "classes=3").replace("=14", "=16"), "has 3 classes, but the model 2"),
        ("[connected]\noutput=9\n[detection]\nclasses=2\nside=2\nnum=1\n", "want 28 numbers .* got 9"),
        (
            "[convolutional]\nfilters=14\n[region]\nanchors=1,2,3,4\nnum=2\nclasses=2\n[route]\nlayers=0\n"
            "[yolo]\nanchors=1,2,3,4\nnum=2\nclasses=2\n",
            r"section 4 .yolo.: cannot stand beside section 2 \[region\]",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_run_as_read_is_an_error(body, message):
    with pytest.raises(DetkitError, match=message):
        build(body)


def test_weights_of_another_length_name_the_section(tmp_path):
    network = build("[convolutional]\nfilters=2\n[dropout]\n[convolutional]\nfilters=3\n")  # 8 and 9 numbers
    path = tmp_path / "a.weights"
    header = np.array([0, 1, 0, 0], "<i4").tobytes()
    path.write_bytes(header + b"\0" * 4 * 10)
    with pytest.raises(DetkitError, match=r"too short by 28 bytes.* ends within section 3 \[convolutional\]"):
        load_darknet(network, path)
    path.write_bytes(header + b"\0" * 4 * 20)
    with pytest.raises(DetkitError, match=r"too long by 12 bytes.* wants 17 .* up to section 3 \[convolutional\]"):
        load_darknet(network, path)


def test_a_classifier_finds_no_boxes_and_a_cfg_is_not_trained(tmp_path):
    network = build("[avgpool]\n[softmax]\n")
    with pytest.raises(DetkitError, match="so it finds no boxes"):
        network.decode(network(torch.rand(1, 3, 16, 24)), 0.5)
    path = tmp_path / "a.cfg"
    path.write_text("[net]\nwidth=32\nheight=32\n[avgpool]\n")
    with pytest.raises(DetkitError, match="so it finds no boxes"):
        darknet_model_config(path)


# ----------------------------------------------------------------------------------------------------------------------
# What lies beside a cfg


def test_names_come_from_the_stem_then_the_only_file_then_numbers(tmp_path):
    cfg = tmp_path / "a.cfg"
    assert darknet_names(cfg, 3) == ["0", "1", "2"]
    (tmp_path / "coco.names").write_text("dog\ntraffic light \n\n")
    assert darknet_names(cfg, 2) == ["dog", "traffic light"]
    with pytest.raises(DetkitError, match=r"coco\.names: holds 2 names, but .*a\.cfg has 3 classes"):
        darknet_names(cfg, 3)
    (tmp_path / "voc.names").write_text("cat\n")
    assert darknet_names(cfg, 3) == ["0", "1", "2"]
    (tmp_path / "a.names").write_text("x\ny\nz\n")
    assert darknet_names(cfg, 3) == ["x", "y", "z"]


@pytest.mark.parametrize(("head", "mode"), [("yolo", "letterbox"), ("region", "letterbox"), ("detection", "stretch")])
def test_pictures_are_resized_as_darknet_does(head, mode):
    preprocess = darknet_preprocess(parse_cfg(f"[net]\nwidth=320\nheight=200\n[{head}]\n", "a.cfg"))
    assert (preprocess.mode, preprocess.size, preprocess.interpolation) == (mode, (200, 320), "darknet")
    with pytest.raises(DetkitError, match=r"line 1: section 0 \[net\]: height must be at least 1, got 0"):
        darknet_preprocess(parse_cfg(f"[net]\nwidth=320\n[{head}]\n", "a.cfg"))
    with pytest.raises(DetkitError, match="channels must be 3"):
        darknet_preprocess(parse_cfg("[net]\nwidth=32\nheight=32\nchannels=1\n", "a.cfg"))
