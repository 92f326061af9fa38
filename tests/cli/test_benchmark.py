import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detkit import cli

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
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if len(line) == 13 and line[0].isdigit()] == ["1", "2"]
    assert "preprocess" in out
    assert "GB/s in a copy; a forward of one picture has 0.06" in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


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
        (["--source", "none.jpg", "--seconds", "0"], "none.jpg: no such file or folder"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run("--device", "cpu", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
