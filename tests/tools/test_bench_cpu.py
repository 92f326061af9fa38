"""The CPU benchmark runs, and what it reports holds together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_cpu.py"


@pytest.mark.slow
def test_quick_run_reports_every_case(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--threads", "1", "--json", out], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    assert report["threads"] == 1
    assert report["device"]["cpu"]
    assert report["device"]["cores"] >= 1
    assert report["workers"][0]["versions"]["torch"]
    assert 40 <= report["candidates"]["yolov3-tiny"] <= 140  # weights are made to let 90 pass

    cases = {case["case"]: case for case in report["cases"]}
    selections = [name for name in cases if name.startswith("select 1000")]
    assert set(cases) == {"yolov3-tiny detect", "yolov3-tiny forward", *selections}
    assert len(selections) == 8  # clustered and spread, 1 and 80 classes, limited and not
    for name, case in cases.items():
        first = case["contestants"][0]
        assert case["rounds"] == 3
        assert first["name"].startswith("detkit")
        assert first["ratio"] == 1
        for contestant in case["contestants"]:
            assert 0 < contestant["min"] <= contestant["median"] <= contestant["max"]
            assert contestant["ratio"] == pytest.approx(first["median"] / contestant["median"])
            assert contestant["name"] in run.stdout
        assert name in run.stdout

    detect = {entry["name"].split()[0]: entry for entry in cases["yolov3-tiny detect"]["contestants"]}
    assert set(detect) >= {"detkit", "opencv"}
    # The same weights, and two ways to resize the picture: nearly the same boxes.
    assert detect["opencv"]["detections"] == pytest.approx(detect["detkit"]["detections"], rel=0.25)
    forward = {entry["name"]: entry for entry in cases["yolov3-tiny forward"]["contestants"]}
    assert 0.4 < forward["detkit fp32"]["gflop"] < 0.7  # 5.6 at 416 × 416
    spread = [case["contestants"] for name, case in cases.items() if "spread" in name and "no limit" in name]
    assert all(entry["detections"] > 900 for pair in spread for entry in pair)
    clustered = [case["contestants"] for name, case in cases.items() if "clustered, 1 class, no limit" in name]
    assert all(20 <= entry["detections"] < 200 for pair in clustered for entry in pair)


def test_a_worker_that_fails_ends_the_run(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--only", "select", "--peer-python", python], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert f"{python} ended with code 3" in run.stderr
    assert "Traceback" not in run.stderr
