import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detkit.errors import DetkitError
from detkit.weights.checkpoint import Header, load_state, read_header, read_tensors, save_checkpoint

HEADER = Header({"detector": {"name": "yolov3"}}, ("cat", "dög"), {"AP50": 0.5})


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a pickle was run')",))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.rand(3, 4), "b": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    save_checkpoint(path, tensors, HEADER)
    assert read_header(path) == HEADER
    read = read_tensors(path)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path) -> None:
    for name, write in {
        "new.pt": lambda path: torch.save({"a": Payload()}, path),
        "old.pth": lambda path: path.write_bytes(pickle.dumps(Payload())),
    }.items():
        path = tmp_path / name
        write(path)
        with pytest.raises(DetkitError, match=rf"{name}: refused, and nothing in it was run"):
            read_tensors(path)


def test_plain_state_dicts_are_read_wrapped_or_not(tmp_path: Path) -> None:
    state = {"weight": torch.rand(2, 2)}
    for i, content in enumerate((state, {"state_dict": state, "epoch": 3}, {"model": state})):
        path = tmp_path / f"{i}.pt"
        torch.save(content, path)
        assert torch.equal(read_tensors(path)["weight"], state["weight"])


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_files_that_are_something_else_are_named(tmp_path: Path, name) -> None:
    path = tmp_path / name
    with pytest.raises(DetkitError, match="no such file"):
        read_tensors(path)
    for content in (b"", b"hello", struct.pack("<Q", 10**15) + b"{}", b"\x80\x02"):
        path.write_bytes(content)
        with pytest.raises(DetkitError, match=f"{name}: (is no|refused)"):
            read_tensors(path)


def test_a_cut_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_checkpoint(path, {"a": torch.rand(1000)}, HEADER)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DetkitError, match="no whole safetensors file"):
        read_header(path)


def test_a_foreign_safetensors_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.rand(1)}, path)
    with pytest.raises(DetkitError, match="--weights"):
        read_header(path)


@pytest.mark.parametrize("entry", ['{"format": 2}', "{}", "[", '{"format": 1, "config": {}}'])
def test_a_damaged_or_newer_header_is_an_error(tmp_path: Path, entry) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.rand(1)}, path, {"detkit": entry})
    with pytest.raises(DetkitError, match=r"format 2|damaged"):
        read_header(path)


def test_a_checkpoint_of_another_model_names_the_difference() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(DetkitError, match=r"1 tensors are missing \(first: bias\) and 1 .* \(first: other\)"):
        load_state(module, {"weight": torch.rand(2, 3), "other": torch.rand(1)}, "file")
    with pytest.raises(DetkitError, match=r"weight has shape \[2, 4\], the model's is \[2, 3\]"):
        load_state(module, {"weight": torch.rand(2, 4), "bias": torch.rand(2)}, "file")


def test_a_folder_without_permission_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DetkitError, match="cannot be written"):
        save_checkpoint(blocked / "model.safetensors", {}, HEADER)
    assert blocked.read_text() == ""
