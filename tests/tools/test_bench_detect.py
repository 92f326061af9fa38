"""The benchmark of whole detectors runs, and what it reports holds together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_detect.py"
SMALL = ("--device", "cpu", "--size", "64", "--batch", "1", "--rounds", "3", "--seconds", "0", "--cpu-time")


@pytest.mark.slow
def test_a_small_run_reports_every_case(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run = subprocess.run([sys.executable, SCRIPT, *SMALL, "--json", out], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr  # and so detkit and torchvision found the same
    report = json.loads(out.read_text())
    assert report["device"]
    assert (report["threads"], report["clock"]) == (1, "CPU time of the process")
    assert report["versions"]["torchvision"] != "missing"
    names = [case.split(",")[0] for case in report["cases"]]
    assert names == [
        "prepare yolov3_fasternet_coco", "prepare yolov3_tiny_coco", "faster_rcnn fasterrcnn_resnet50_fpn",
        "yolov3 yolov3_tiny_coco", "yolov3 yolov3_darknet53_coco",
    ]  # fmt: skip
    for case, contestants in report["cases"].items():
        first, *_ = contestants.values()
        assert case in run.stdout
        for name, found in contestants.items():
            assert name in run.stdout
            assert found["rounds"] == 3
            assert 0 < found["min"] <= found["median"] <= found["max"]
            assert found["ratio"] == pytest.approx(first["median"] / found["median"])
    prepared = report["cases"]["prepare yolov3_tiny_coco, 1 of 64 × 64"]
    assert list(prepared) == ["as trained", "folded", "channels last", "as loaded fp32", "as loaded bf16"]
