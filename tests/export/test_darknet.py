"""Darknet's files written: read back by the generic reader and by the explicit classes, and to the byte again."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit import cli
from detkit.backbones.darknet import Darknet19, Darknet53, DarknetReference, Extraction
from detkit.backbones.norm import DarknetNorm
from detkit.classify.classifier import Classifier
from detkit.detectors.darknet import Darknet, DarknetConfig, load_darknet
from detkit.errors import DetkitError
from detkit.export.checkpoint import export_checkpoint
from detkit.export.darknet import darknet_cfg, export_darknet, save_darknet
from detkit.model import ModelConfig, build_detector, read_config, read_model
from detkit.structures import Candidates
from detkit.weights.checkpoint import Header, save_checkpoint
from detkit.weights.darknet import darknet_tensors, load_darknet_weights, read_weights

slow = pytest.mark.slow

ANCHORS = [[10.3, 12], [33.7, 21], [7, 41.1]]
SMALL: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "yolov1 connected": (
        {
            "name": "yolov1",
            "backbone": {"name": "darknet_reference"},
            "stride": 8,
            "side": 3,
            "convolutions": [{"channels": 9, "kernel": 1}, {"channels": 8, "stride": 2}],
            "hidden": [20, 30],
        },
        (64, 40),
    ),
    "yolov1 local": (
        {
            "name": "yolov1",
            "backbone": {"name": "extraction"},
            "stride": 4,
            "side": 2,
            "boxes": 3,
            "convolutions": [{"channels": 9}],
            "local": 7,
            "hidden": [],
            "dropout": 0,
        },
        (24, 40),
    ),
    "yolov2 passthrough": (
        {"name": "yolov2", "backbone": {"name": "darknet_reference"}, "anchors": ANCHORS, "neck": {"width": 16}},
        (64, 96),
    ),
    "yolov2 paper": (
        {
            "name": "yolov2",
            "backbone": {"name": "darknet_reference"},
            "anchors": ANCHORS,
            "neck": {"width": 16, "depth": 1, "squeeze": None},
        },
        (96, 64),
    ),
    "yolov2 bare": (
        {
            "name": "yolov2",
            "backbone": {"name": "darknet_reference"},
            "anchors": ANCHORS,
            "neck": {"depth": 0, "passthrough": False},
        },
        (64, 96),
    ),
    "yolov3 spp": (
        {
            "name": "yolov3",
            "backbone": {"name": "darknet53"},
            "levels": [
                {"stride": 2, "anchors": ANCHORS[:1], "width": 8, "depth": 5},
                {"stride": 4, "anchors": ANCHORS, "width": 12, "depth": 3, "spp": True},
            ],
        },
        (64, 40),
    ),
    "yolov3 tiny": (
        {
            "name": "yolov3",
            "backbone": {"name": "darknet_tiny"},
            "levels": [
                {"stride": 8, "anchors": ANCHORS[:1], "width": 16, "depth": 0},
                {"stride": 32, "anchors": ANCHORS[1:], "width": 8, "depth": 1},
            ],
        },
        (64, 96),
    ),
}


def randomize(network: nn.Module) -> None:
    """Give every number of a network a value that no other has by default."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, DarknetNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(0, 0.5)


def small(kind: str) -> ModelConfig:
    detector, size = SMALL[kind]
    mode = "stretch" if detector["name"] == "yolov1" else "letterbox"
    preprocess = {"mode": mode, "size": size, "interpolation": "darknet", "divisor": 8}
    return ModelConfig.model_validate({"classes": ["cat", "hot dog"], "detector": detector, "preprocess": preprocess})


def trained(config: ModelConfig, path: Path) -> nn.Module:
    """Write a checkpoint of random numbers, and return its detector."""
    torch.manual_seed(0)
    detector = build_detector(config)
    randomize(detector)
    if "seen" in detector.state_dict():
        detector.seen.fill_(2**33 + 5)
    save_checkpoint(path, detector.state_dict(), Header(config.model_dump(mode="json"), ("cat", "hot dog"), {}))
    return detector


def numbers(network: nn.Module) -> list[Tensor]:
    return [tensor for layer in network.darknet_layers() for tensor in darknet_tensors(layer)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rows(found: Candidates) -> list[tuple[float, ...]]:
    """Candidates in an order of their own: finer heads come last in a .cfg."""
    count = int(found.count[0])
    table = torch.cat([found.labels[0, :count, None], found.scores[0, :count, None], found.boxes[0, :count]], 1)
    return sorted(map(tuple, table.tolist()))


@pytest.mark.parametrize("kind", SMALL)
@torch.no_grad()
def test_what_is_written_is_read_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    config = small(kind)
    detector = trained(config, tmp_path / "trained.safetensors")
    assert export_darknet(tmp_path / "net.cfg", tmp_path / "trained.safetensors") == []

    read, network = read_model(tmp_path / "net.cfg")
    assert isinstance(network, Darknet)
    assert read.classes == ["cat", "hot dog"]
    assert read.preprocess == config.preprocess.model_copy(update={"divisor": 1})
    assert same(numbers(network), numbers(detector))
    images = torch.rand(2, 3, *config.preprocess.size)
    raw, wanted = network(images), detector(images)
    assert same(raw, wanted[::-1] if isinstance(wanted, list) else [wanted])
    found = rows(network.decode(raw, 0.05))
    assert len(found) > 3
    assert found == rows(detector.decode(wanted, 0.05))

    (tmp_path / "net.yaml").write_text(config.model_dump_json())
    _, explicit = read_model(tmp_path / "net.yaml", tmp_path / "net.weights")
    assert explicit.state_dict().keys() == detector.state_dict().keys()
    assert same(list(explicit.state_dict().values()), list(detector.state_dict().values()))  # what was seen included


@pytest.mark.parametrize("activation", ["linear", "leaky"])
@torch.no_grad()
def test_a_classifier_is_read_back_to_the_bit(activation: str, tmp_path: Path) -> None:
    classifier = Classifier(DarknetReference((8,)), 5, pool="scores", activation=activation).eval()
    randomize(classifier)
    save_darknet(tmp_path / "a.cfg", classifier, (32, 48), list("vwxyz"))
    network = Darknet(DarknetConfig(cfg=(tmp_path / "a.cfg").read_text()), 5, (32, 48)).eval()
    load_darknet(network, tmp_path / "a.weights")
    assert same(numbers(network), numbers(classifier))
    images = torch.rand(2, 3, 32, 48)
    (probabilities,) = network(images)
    assert torch.equal(probabilities.flatten(1), classifier(images).softmax(1))
    other = Classifier(DarknetReference((8,)), 5, pool="scores", activation=activation).eval()
    load_darknet_weights(other.darknet_layers(), tmp_path / "a.weights")
    assert same(numbers(other), numbers(classifier))


# ----------------------------------------------------------------------------------------------------------------------
# The layouts of the released files

RELEASED = {
    "yolov1_extraction_voc": None,
    "yolov1_fast_voc": None,
    "yolov1_local_voc": None,
    "yolov1_tiny_voc": "yolov1_tiny_448x448",
    "yolov2_darknet19_coco": None,
    "yolov2_darknet19_voc": "yolov2_voc_416x416",
    "yolov2_tiny_voc": "yolov2_tiny_voc_416x416",
    "yolov3_darknet53_coco": "yolov3_416x416",
    "yolov3_spp_coco": None,
    "yolov3_tiny_coco": "yolov3_tiny_416x416",
}


def on_meta(text: str, num_classes: int, size_hw: tuple[int, int]) -> Darknet:
    with torch.device("meta"):
        return Darknet(DarknetConfig(cfg=text), num_classes, size_hw)


def layers(network: Darknet) -> list[tuple[str, tuple[int, ...]]]:
    return [(repr(layer), sources) for layer, sources in zip(network.layers, network.sources, strict=True)]


def shapes(network: nn.Module) -> list[torch.Size]:
    return [tensor.shape for tensor in numbers(network)]


@pytest.mark.parametrize("name", RELEASED)
def test_a_shipped_config_is_written_as_the_released_cfg(name: str, request: pytest.FixtureRequest) -> None:
    config = read_config(name)
    with torch.device("meta"):
        detector = build_detector(config)
    if hasattr(config.detector, "anchors"):
        detector.anchors = torch.tensor(config.detector.anchors)
    for i, level in enumerate(getattr(config.detector, "levels", [])):
        detector.register_buffer(f"anchors_{i}", torch.tensor(level.anchors))
    text = darknet_cfg(detector, config.preprocess.size)
    network = on_meta(text, detector.num_classes, config.preprocess.size)
    assert shapes(network) == shapes(detector)
    if RELEASED[name]:
        path = request.getfixturevalue("shared") / "darknet_reference" / "cfg" / f"{RELEASED[name]}.cfg"
        released = on_meta(path.read_text(), detector.num_classes, config.preprocess.size)
        assert layers(network) == layers(released)
        for section, other in zip(network.sections, released.sections, strict=True):
            for key in {"anchors", "mask"} & other.options.keys():
                assert section.numbers(key) == other.numbers(key)


@pytest.mark.parametrize(
    ("body", "activation", "released"),
    [
        (Darknet19, "linear", "darknet19_256x256"),
        (Extraction, "leaky", "extraction_224x224"),
        (Darknet53, "linear", None),
    ],
)
def test_a_classifier_is_written_as_the_released_cfg(
    body: Callable[..., Any], activation: str, released: str | None, request: pytest.FixtureRequest
) -> None:
    with torch.device("meta"):
        classifier = Classifier(body(strides=(32,)), 1000, pool="scores", activation=activation)
    network = on_meta(darknet_cfg(classifier, (256, 256)), 1000, (256, 256))
    assert shapes(network) == shapes(classifier)
    if released is not None:
        path = request.getfixturevalue("shared") / "darknet_reference" / "cfg" / f"{released}.cfg"
        assert layers(network) == layers(on_meta(path.read_text(), 1000, (256, 256)))


# ----------------------------------------------------------------------------------------------------------------------
# Files that were read


def test_a_network_by_others_is_written_as_it_was(shared: Path, tmp_path: Path) -> None:
    source = shared / "weights" / "yolo-fastest-1.1" / "yolo-fastest-1.1.cfg"
    assert export_darknet(tmp_path / "copy.cfg", source) == []
    for suffix in (".cfg", ".weights"):
        assert (tmp_path / f"copy{suffix}").read_bytes() == source.with_suffix(suffix).read_bytes()
    names = (source.parent / "coco.names").read_text().splitlines()
    assert (tmp_path / "copy.names").read_text().splitlines() == names


def test_a_checkpoint_of_it_keeps_the_cfg_and_every_number(shared: Path, tmp_path: Path) -> None:
    source = shared / "weights" / "yolo-fastest-1.1" / "yolo-fastest-1.1.cfg"
    export_checkpoint(tmp_path / "one.safetensors", source)
    export_darknet(tmp_path / "two.cfg", tmp_path / "one.safetensors")
    assert (tmp_path / "two.cfg").read_bytes() == source.read_bytes()
    before, after = read_weights(source.with_suffix(".weights")), read_weights(tmp_path / "two.weights")
    assert np.array_equal(before.numbers, after.numbers)
    assert (after.major, after.minor, after.revision, after.seen) == (0, 2, 0, 0)  # a checkpoint has no such header


@pytest.mark.parametrize(
    "header", [struct.pack("<3iI", 0, 1, 3, 2**32 - 1), struct.pack("<3iQ", 0, 2, 5, 2**40 + 1)], ids=["32", "64"]
)
def test_headers_and_texts_come_back_to_the_byte(header: bytes, tmp_path: Path) -> None:
    cfg = (
        "\ufeff# größer\r\n[net]\r\nwidth = 32 ; a comment\r\nheight=32\n\n[conv]\nfilters=7\nactivation=linear\n\n"
        "[yolo]\nanchors = 10,14\nclasses=2\nnum=1"
    )
    (tmp_path / "a.cfg").write_bytes(cfg.encode())
    values = np.array([-0.0, 1e-42, *np.linspace(-1, 1, 26)], "<f4")  # a negative zero, and a denormal number
    (tmp_path / "a.backup").write_bytes(header + values.tobytes())
    export_darknet(tmp_path / "b.cfg", tmp_path / "a.cfg", tmp_path / "a.backup")
    assert (tmp_path / "b.cfg").read_bytes() == cfg.encode()
    assert (tmp_path / "b.weights").read_bytes() == (tmp_path / "a.backup").read_bytes()
    assert (tmp_path / "b.names").read_text() == "0\n1\n"


REFERENCE = ["yolov1_tiny_448x448", "yolov2_tiny_voc_416x416", "yolov2_voc_416x416", "yolov3_416x416"]
EXPLICIT = {f"{released}": name for name, released in RELEASED.items() if released}


@pytest.mark.parametrize("cfg", ["yolov3_tiny_416x416", *(pytest.param(cfg, marks=slow) for cfg in REFERENCE)])
def test_reference_weights_are_written_as_they_were_read(
    cfg: str, shared: Path, weights: Callable[[str], Path], tmp_path: Path
) -> None:
    path, source = weights(cfg.rsplit("_", 1)[0]), shared / "darknet_reference" / "cfg" / f"{cfg}.cfg"
    export_darknet(tmp_path / "generic.cfg", source, path)
    assert (tmp_path / "generic.cfg").read_bytes() == source.read_bytes()
    export_darknet(tmp_path / "explicit.cfg", EXPLICIT[cfg], path)
    for name in ("generic", "explicit"):
        assert (tmp_path / f"{name}.weights").read_bytes() == path.read_bytes()


@slow
@pytest.mark.parametrize(
    ("name", "body", "activation"), [("darknet19", Darknet19, "linear"), ("extraction", Extraction, "leaky")]
)
def test_reference_classifiers_are_written_as_they_were_read(
    name: str, body: Callable[..., Any], activation: str, weights: Callable[[str], Path], tmp_path: Path
) -> None:
    classifier = Classifier(body(strides=(32,)), 1000, pool="scores", activation=activation)
    file = load_darknet_weights(classifier.darknet_layers(), weights(name))
    save_darknet(tmp_path / "a.cfg", classifier, (224, 224), [str(i) for i in range(1000)], file.header)
    assert (tmp_path / "a.weights").read_bytes() == weights(name).read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# What a user can get wrong, and what a .cfg does not say


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (
            SMALL["yolov3 tiny"][0] | {"backbone": {"name": "timm/resnet18"}},
            "YOLOv3 on a TimmBackbone has no Darknet form, only on darknet19, ",
        ),
        (
            SMALL["yolov2 paper"][0] | {"backbone": {"name": "mobilenet_v3_large"}},
            "YOLOv2 on a MobileNetV3Large has no",
        ),
        (
            SMALL["yolov2 paper"][0] | {"name": "yolo9000", "tree": {"cat": {}, "hot dog": {}}},
            "YOLO9000 has no Darknet form here, only YOLOv1, YOLOv2, ",
        ),
    ],
)
def test_a_model_without_a_darknet_form_is_named(detector: dict[str, Any], message: str) -> None:
    classes = [] if detector["name"] == "yolo9000" else ["cat", "hot dog"]
    config = ModelConfig.model_validate({"classes": classes, "detector": detector, "preprocess": {"size": [64, 96]}})
    with torch.device("meta"):
        network = build_detector(config)
    with pytest.raises(DetkitError, match=message):
        darknet_cfg(network, (64, 96))


def test_darknets_pooling_of_odd_sides_is_another() -> None:
    with torch.device("meta"):
        classifier = Classifier(Darknet19(strides=(32,)), 10, pool="scores")
    with pytest.raises(DetkitError, match=r"size \[100, 128\]: must be multiples of 32 for a \.cfg"):
        darknet_cfg(classifier, (100, 128))


def test_a_name_that_is_no_line_is_named(tmp_path: Path) -> None:
    classifier = Classifier(DarknetReference((2,)), 2, pool="scores")
    for name in ("two\nlines", " blank", ""):
        with pytest.raises(DetkitError, match=r"classes: .* cannot stand on a line"):
            save_darknet(tmp_path / "a.cfg", classifier, (32, 32), ["cat", name])
    assert not list(tmp_path.iterdir())


def test_what_a_cfg_does_not_say_is_said(tmp_path: Path) -> None:
    config = small("yolov2 bare").model_dump(mode="json")
    config["preprocess"] |= {"mode": "stretch", "interpolation": "linear"}
    config["selection"]["iou"] = 0.6
    config["detector"]["loss"] |= {"weigh_small": True, "prior_pictures": 0}
    config["detector"]["loss"]["weights"] |= {"prior": 0.1, "object": 2}  # the latter is object_scale
    trained(ModelConfig.model_validate(config), tmp_path / "a.safetensors")
    assert export_darknet(tmp_path / "b.cfg", tmp_path / "a.safetensors") == [
        "a .cfg does not say preprocess.mode, which is stretch and will be read as letterbox",
        "a .cfg does not say preprocess.interpolation, which is linear and will be read as darknet",
        "a .cfg does not say selection.iou, which is 0.6 and will be read as 0.45",
        "a .cfg does not say detector.loss.weigh_small, which is True and will be read as False",
        "a .cfg does not say detector.loss.prior_pictures, which is 0 and will be read as 12800",
        "a .cfg does not say detector.loss.weights.prior, which is 0.1 and will be read as 0.01",
    ]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `detkit export`: code, stdout, stderr."""

    def detkit(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return detkit


def test_the_command_writes_three_files_beside_each_other(run: Any, tmp_path: Path) -> None:
    trained(small("yolov1 local"), tmp_path / "a.safetensors")
    out = tmp_path / "new" / "b.cfg"
    code, printed, _ = run(tmp_path / "a.safetensors", "--format", "darknet", "--out", out)
    assert code == 0
    assert [line.split(": ")[0] for line in printed.splitlines()] == [
        str(out.with_suffix(suffix)) for suffix in (".cfg", ".weights", ".names")
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["b.cfg", "b.names", "b.weights"]


def test_nothing_is_written_of_a_model_without_a_darknet_form(run: Any, tmp_path: Path) -> None:
    config = small("yolov2 paper").model_dump(mode="json")
    config["detector"] |= {"name": "yolo9000", "tree": {"cat": {}, "hot dog": {}}}
    trained(ModelConfig.model_validate(config), tmp_path / "a.safetensors")
    code, printed, err = run(tmp_path / "a.safetensors", "--format", "darknet", "--out", tmp_path / "b.cfg")
    assert (code, printed) == (2, "")
    assert err.startswith("error: YOLO9000 has no Darknet form here")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("suffix", [".cfg", ".weights", ".names"])
def test_no_file_is_written_over(suffix: str, run: Any, tmp_path: Path) -> None:
    (tmp_path / f"b{suffix}").write_text("mine")
    code, _, err = run("a.cfg", "--format", "darknet", "--out", tmp_path / "b.cfg")
    assert code == 2
    assert f"b{suffix} exists already" in err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "darknet", "--out", "b.weights"], "--out b.weights: the name ends in .cfg with --format darknet"),
        (["--out", "b.cfg"], "--out b.cfg: the name ends in .safetensors with --format checkpoint"),
        (["--format", "darknet", "--out", "b.cfg", "--half"], "--half: is for checkpoints"),
        (["--format", "torchvision", "--out", "b.pt", "--truncate", "4,4"], "--truncate: is for checkpoints"),
        (["--out", "b.safetensors", "--truncate", "4;4"], "--truncate 4;4: expected whole numbers such as 1024,256"),
    ],
)
def test_options_that_do_not_fit_are_named(arguments: list[str], message: str, run: Any) -> None:
    code, _, err = run("a.cfg", *arguments)
    assert code == 2
    assert message in err
