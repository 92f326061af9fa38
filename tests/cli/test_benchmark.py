import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit import cli
from detkit.model import Model

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--device", "cpu", "--seconds", "0", "--size", "64")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `detkit benchmark` in an empty folder: code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def detkit(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["detkit", "benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return detkit


def test_a_table_of_the_model_that_comes_with_detkit(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*QUICK, "--batch", "1, 2")
    assert (code, err) == (0, "")
    assert out.startswith("yolov3_fasternet_coco at 64 × 64, fp32, on ")
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = [line.split() for line in out.splitlines()]
    assert ["batch", "1", "2"] in rows
    parts = ("decode picture,", "preprocess,", "forward,", "decode boxes,", "select,", "write,")
    shares = [row[-2:] for name in parts for row in rows if row[: len(name.split())] == name.split()]
    assert [sum(float(share) for share in column) for column in zip(*shares, strict=True)] == pytest.approx(
        [100] * 2, abs=0.4
    )
    assert "GB/s in a copy; a forward of one picture has 0.06" in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_what_was_measured_before_a_batch_that_does_not_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Model.prepare

    def limited(self: Model, pictures: Any, proposals: Any = None) -> Any:
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(self, pictures, proposals)

    monkeypatch.setattr(Model, "prepare", limited)
    code, out, err = run(*QUICK, "--batch", "2,64", "--json")
    assert [row["batch"] for row in json.loads(out)["batches"]] == [2]
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(
        "error: --batch 64: the cpu's memory does not hold so many pictures of 64 × 64; ask for fewer"
    )


def test_json_of_a_config_without_weights(run: Run) -> None:
    code, out, err = run("yolov3_tiny_coco", "--untrained", *QUICK, "--batch", "2", "--precision", "bf16", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["size"] == [64, 64]
    assert (found["model"], found["precision"], found["untrained"]) == ("yolov3_tiny_coco", "bf16", True)
    assert found["ceilings"]["product"] > found["ceilings"]["copy"] > 0
    (row,) = found["batches"]
    # 5.56 billion operations at 416, as Darknet counts them; here for two pictures of 64 × 64
    assert row["operations"] == pytest.approx(2 * 5.56e9 * (64 / 416) ** 2, rel=0.01)
    assert row["share_of_product"] == pytest.approx(row["operations"] / row["forward"] / found["ceilings"]["product"])
    assert row["bytes_moved"] > 8.8e6 * 2  # at the least it reads its weights, two bytes each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,x"], "--batch 1,x: expected numbers from 1 to 4096, separated by commas"),
        (["--batch", "0"], "--batch 0: expected numbers from 1 to 4096"),
        (["--size", "100"], "size [100, 100] must be multiples of the divisor 32"),
        (["yolov3_tiny_coco"], "yolov3_tiny_coco: is a config without weights"),
        (["yolov3_tiny_coco", "--untrained", "--weights", "a.weights"], "a.weights: has nothing to load into"),
        (["--precision", "fp16"], "--precision fp16: needs a GPU; on the CPU use bf16 or fp32"),
        (["--cuda-graphs"], "--cuda-graphs: needs a CUDA device"),
        (["classify_resnet50_imagenet", "--untrained"], "is a classifier, which finds no objects"),
        (["--source", "none.jpg", "--seconds", "0"], "none.jpg: no such file or folder"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run("--device", "cpu", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
