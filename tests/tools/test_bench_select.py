"""The benchmark of decoding and selection runs, and what it reports holds together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_select.py"
SMALL = ("--device", "cpu", "--threads", "1", "--batch", "1", "--clusters", "300", "--rounds", "3", "--seconds", "0")
# One NMS for all pictures finds no memory.
FAILING = """
import runpy, sys, torchvision
nms = torchvision.ops.nms
def limited(boxes, scores, iou):
    if sys._getframe(1).f_code.co_name == "_apart":
        raise RuntimeError("CUDA out of memory")
    return nms(boxes, scores, iou)
torchvision.ops.nms = limited
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_small_run_reports_every_case_but_what_fails(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run = subprocess.run(
        [sys.executable, "-c", FAILING, str(SCRIPT), *SMALL, "--json", out], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr  # and so detkit and torchvision leave the same boxes of a cluster
    report = json.loads(out.read_text())
    cases = {case["case"]: case for case in report["cases"]}
    assert len(cases) == 4 + 1 + 4
    for case in cases.values():
        times = {row["name"]: row for row in case["contestants"]}
        assert case["rounds"] == 3
        for row in times.values():
            assert 0 < row["min"] <= row["median"] <= row["max"]
            assert row["ratio"] == pytest.approx(row["median"] / times["detkit"]["median"])
    for threshold in (0.001, 0.25):
        case = cases[f"detect, B = 1, scores above {threshold}"]
        assert case["failed"] == {"torchvision trick": "CUDA out of memory"}
        assert f"B = 1, scores above {threshold}: torchvision trick fails (CUDA out of" in " ".join(run.stdout.split())
        times = {row["name"]: row for row in case["contestants"]}
        assert set(times) >= {"detkit", "torchvision loop", "forward bf16"}
        assert times["detkit"]["boxes"] == times["torchvision loop"]["boxes"]
        assert times["detkit"]["share"] == pytest.approx(case["floor"] / times["detkit"]["median"])
        assert times["forward bf16"]["ratio"] > 1
    assert set(cases["rpn, B = 1"]["failed"]) == {"torchvision trick"}
    assert report["device"]["name"]


def test_an_interpreter_that_cannot_be_asked(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, SCRIPT, "--peer-python", tmp_path / "no"], capture_output=True, text=True)
    assert run.returncode != 0
    assert run.stderr.startswith(f"--peer-python {tmp_path / 'no'}: cannot be asked for its packages")
