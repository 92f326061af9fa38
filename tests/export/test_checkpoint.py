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
