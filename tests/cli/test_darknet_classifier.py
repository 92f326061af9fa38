"""Darknet's classifiers from the command line: classified with, and written as checkpoints and Darknet's files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit import cli
from detkit.backbones.darknet import DarknetReference
from detkit.classify.classifier import Classifier
from detkit.export.darknet import save_darknet
from detkit.weights.darknet import darknet_header, save_darknet_weights

Run = Callable[..., tuple[int, str, str]]
CONFIG = "classifier: {backbone: {name: darknet_reference}, stride: 8, pool: scores}\npreprocess: {size: [32, 64]}\n"
CONFIG = CONFIG.replace("{size", "{mode: letterbox, interpolation: darknet, size")


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    """A classifier of three classes, as net.cfg with its .weights and .names, and the config of one without classes."""
    torch.manual_seed(0)
    network = Classifier(DarknetReference((8,)), 3, pool="scores").eval()
    torch.nn.init.normal_(network.head.weight)
    save_darknet(tmp_path / "net.cfg", network, (32, 64), ["red", "green", "blue"], darknet_header(0, 1, 0, 7))
    (tmp_path / "net.yaml").write_text(CONFIG)
    return network


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit` in a folder with a picture of the network's size: code, stdout, stderr."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit_.value.code or 0), out, err

    return go


def scores(run: Run, *model: str) -> tuple[dict[str, float], str]:
    """What the command says of the picture: scores by class, and its warnings."""
    code, out, err = run("classify", "noise.png", "--model", *model, "--json", "--device", "cpu")
    assert code == 0, err
    return {found["label"]: found["score"] for found in json.loads(out)["classes"]}, err


@torch.inference_mode()
def expected(network: Classifier) -> list[float]:
    pixels = torch.from_numpy(np.array(Image.open("noise.png"))).permute(2, 0, 1)[None] / 255
    return network(pixels)[0].softmax(0).tolist()


def test_a_cfg_and_what_is_made_of_it_classify_alike(run: Run, classifier: Classifier) -> None:
    wanted = dict(zip(("red", "green", "blue"), expected(classifier), strict=True))
    assert max(wanted.values()) - min(wanted.values()) > 0.1
    for form, out in (("checkpoint", "one.safetensors"), ("darknet", "two.cfg")):
        assert run("export", "net.cfg", "--format", form, "--out", out)[::2] == (0, "")
    assert run("export", "one.safetensors", "--format", "darknet", "--out", "three.cfg")[0] == 0
    for model in ("net.cfg", "one.safetensors", "two.cfg", "three.cfg"):
        assert scores(run, model) == (pytest.approx(wanted, abs=1e-4), "")
    for copy in ("two", "three"):
        assert Path(f"{copy}.cfg").read_bytes() == Path("net.cfg").read_bytes()
    assert Path("two.weights").read_bytes() == Path("net.weights").read_bytes()


def test_a_config_without_classes_has_the_names_beside_its_weights(run: Run, classifier: Classifier) -> None:
    wanted = expected(classifier)
    model = ("net.yaml", "--weights", "net.weights")
    named = pytest.approx(dict(zip(("red", "green", "blue"), wanted, strict=True)), abs=1e-4)
    assert scores(run, *model) == (named, "")
    for form, out in (("checkpoint", "one.safetensors"), ("darknet", "two.cfg")):
        assert run("export", *model, "--format", form, "--out", out)[::2] == (0, "")
        assert scores(run, out) == (named, "")
    assert scores(run, "net.yaml", "--weights", "one.safetensors") == (named, "")
    torch.save(classifier.state_dict(), "net.pt")
    assert scores(run, "net.yaml", "--weights", "net.pt") == (named, "")


def test_classes_without_names_are_numbers_which_is_said(run: Run, classifier: Classifier) -> None:
    Path("net.names").unlink()
    numbered = pytest.approx(dict(zip("012", expected(classifier), strict=True)), abs=1e-4)
    said = "has no net.names beside it, so its classes are called 0 to 2\n"
    assert scores(run, "net.cfg") == (numbered, f"warning: net.cfg: {said}")
    assert scores(run, "net.yaml", "--weights", "net.weights") == (numbered, f"warning: net.weights: {said}")
    code, _, err = run("export", "net.cfg", "--out", "one.safetensors")
    assert (code, err) == (0, f"note: net.cfg: {said}")


def test_what_a_cfg_does_not_say_is_noted(run: Run, classifier: Classifier) -> None:
    Path("net.yaml").write_text(CONFIG.replace("letterbox", "center_crop"))
    code, _, err = run("export", "net.yaml", "--weights", "net.weights", "--format", "darknet", "--out", "one.cfg")
    note = "note: a .cfg does not say preprocess.mode, which is center_crop and will be read as letterbox\n"
    assert (code, err) == (0, note)


DETECTOR = "[net]\nwidth=32\nheight=32\n[conv]\nfilters=7\nactivation=linear\n[yolo]\nanchors=10,14\nclasses=2\nnum=1\n"
GROUPS = "[net]\nwidth=32\nheight=32\n[connected]\noutput=6\nactivation=linear\n[softmax]\ngroups=2\n"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("net.cfg", DETECTOR), ("classify", "noise.png"), "net.cfg: is a detector; `detkit detect` finds objects"),
        (("net.cfg", GROUPS), ("classify", "noise.png"), "section 2 [softmax]: a classifier has one softmax over all"),
        (("net.names", "red\n"), ("classify", "noise.png"), "net.names: holds 1 names, but net.cfg has 3 classes"),
        (("net.names", "red\n"), ("detect", "noise.png"), "so it finds no boxes"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, classifier: Classifier, change, arguments, message) -> None:
    if change[1] == GROUPS:
        Path("net.names").write_text("\n".join("abcdef"))
    Path(change[0]).write_text(change[1])
    code, out, err = run(*arguments, "--model", "net.cfg")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_weights_of_another_network_are_named(run: Run, classifier: Classifier) -> None:
    other = Classifier(DarknetReference((16,)), 3, pool="scores")
    save_darknet_weights(Path("other.weights"), other.darknet_layers(), darknet_header())
    code, _, err = run("classify", "noise.png", "--model", "net.cfg", "--weights", "other.weights")
    assert code == 2
    assert "other.weights: is too long by" in err


@pytest.mark.slow
@pytest.mark.parametrize("net", ["darknet19_256x256", "extraction_224x224"])
def test_the_probabilities_are_darknets(net: str, run: Run, shared: Path, weights: Callable[[str], Path]) -> None:
    folder = shared / "darknet_reference"
    options = ("--model", str(folder / "cfg" / f"{net}.cfg"), "--weights", str(weights(net.partition("_")[0])))
    code, out, err = run("classify", str(folder / "img" / "dog.png"), *options, "--json", "--top", "1000")
    assert code == 0, err
    found = {row["label_id"]: row["score"] for row in json.loads(out)["classes"]}
    with np.load(folder / "ref" / f"{net}_dog_lb.npz") as file:
        (layer,) = (name for name in file if name.endswith("softmax"))
        wanted = file[layer].ravel()
    assert [found[i] for i in range(1000)] == pytest.approx(wanted.tolist(), abs=6e-5)
