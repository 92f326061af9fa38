from pathlib import Path

import pytest
import torch

from detkit.errors import DetkitError
from detkit.export.checkpoint import export_checkpoint
from detkit.model import ModelConfig, build_detector, load
from detkit.weights.checkpoint import Header, read_header, read_tensors, save_checkpoint

TREE = {
    "classes": ["cat", "dog"],
    "detector": {
        "name": "yolov3",
        "backbone": {"name": "darknet_tiny"},
        "levels": [{"stride": 32, "anchors": [[60, 60]], "width": 8, "depth": 1}],
    },
    "preprocess": {"size": [64, 96]},
}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(TREE)
    path = tmp_path / "trained.safetensors"
    header = Header(config.model_dump(mode="json"), ("cat", "dog"), {"AP": 0.5})
    save_checkpoint(path, build_detector(config).state_dict(), header)
    return path


def test_a_whole_copy_has_the_same_bits(trained: Path, tmp_path: Path) -> None:
    export_checkpoint(tmp_path / "copy.safetensors", trained)
    before, after = read_tensors(trained), read_tensors(tmp_path / "copy.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_header(tmp_path / "copy.safetensors") == read_header(trained)


def test_half_the_numbers_detect_almost_the_same(trained: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    export_checkpoint(small, trained, half=True)
    assert small.stat().st_size < 0.51 * trained.stat().st_size
    images = torch.rand(1, 3, 64, 96)
    whole, half = (load(path, device="cpu").detector for path in (trained, small))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    for a, b in zip(whole(images), half(images), strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=0.01, rtol=0.01)


def test_a_config_and_its_weights_become_one_file(trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "net.yaml"
    config.write_text(ModelConfig.model_validate(TREE).model_dump_json())
    export_checkpoint(tmp_path / "one.safetensors", str(config), trained)
    assert load(tmp_path / "one.safetensors", device="cpu").classes == ("cat", "dog")


def test_numbers_beyond_half_precision_are_named(trained: Path, tmp_path: Path) -> None:
    tensors = read_tensors(trained)
    tensors["heads.0.weight"][0, 0] = 1e6
    save_checkpoint(trained, tensors, read_header(trained))
    with pytest.raises(DetkitError, match=r"heads\.0\.weight: holds numbers beyond 65504"):
        export_checkpoint(tmp_path / "small.safetensors", trained, half=True)
    assert not (tmp_path / "small.safetensors").exists()


def faster_rcnn(folder: Path) -> Path:
    torch.manual_seed(0)
    tree = TREE | {
        "detector": {
            "name": "faster_rcnn",
            "backbone": {"name": "darknet_tiny"},
            "strides": [16],
            "anchors": {"sizes": [[32]], "ratios": [1]},
            "head": {"pooling": {"size": 3}, "widths": [32, 24]},
        }
    }
    config = ModelConfig.model_validate(tree)
    detector = build_detector(config).eval()
    for layer in detector.head.layers:
        layer.weight.data[10:] = 0  # no more than ten singular values
    header = Header(config.model_dump(mode="json"), ("cat", "dog"), {"AP": 0.5})
    save_checkpoint(folder / "faster.safetensors", detector.state_dict(), header)
    return folder / "faster.safetensors"


def test_layers_are_truncated_to_their_largest_singular_values(tmp_path: Path) -> None:
    path = faster_rcnn(tmp_path)
    images = torch.rand(1, 3, 64, 96)
    whole = load(path, device="cpu").detector(images)
    for ranks, alike in (((10, 10), True), ((4, 4), False)):
        small = tmp_path / f"{ranks[0]}.safetensors"
        export_checkpoint(small, path, truncate=ranks)
        header = read_header(small)
        assert header.config["detector"]["head"]["truncate"] == list(ranks)
        assert header.metrics == {}  # measured on another network
        logits = load(small, device="cpu").detector(images).logits
        assert torch.allclose(logits, whole.logits, atol=1e-5) == alike
        assert small.stat().st_size < path.stat().st_size
    with pytest.raises(DetkitError, match=r"4\.safetensors is truncated already, to \[4, 4\]"):
        export_checkpoint(tmp_path / "smaller.safetensors", tmp_path / "4.safetensors", truncate=(2, 2))


def test_what_cannot_be_truncated_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match=r"trained\.safetensors has none"):
        export_checkpoint(tmp_path / "small.safetensors", trained, truncate=(4,))
    path = faster_rcnn(tmp_path)
    for ranks in ((4,), (4, 0)):
        with pytest.raises(DetkitError, match="has 2 fully connected layers, each of which needs a number above 0"):
            export_checkpoint(tmp_path / "small.safetensors", path, truncate=ranks)
    with pytest.raises(DetkitError, match=r"layer 2 .*, 32 wide in and 24 out, saves nothing above 13, got 14"):
        export_checkpoint(tmp_path / "small.safetensors", path, truncate=(10, 14))
    assert not (tmp_path / "small.safetensors").exists()
