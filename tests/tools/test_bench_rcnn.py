"""The benchmark against torchvision runs, and both find the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_rcnn.py"


@pytest.mark.slow
def test_quick_run_reports_every_case(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    quick = "--side 96 --rounds 1 --regions 4 --device cpu --models fasterrcnn_mobilenet_v3_large_fpn"
    run = subprocess.run([sys.executable, SCRIPT, *quick.split(), "--json", out], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    (case,) = report["detect"]
    found = case["found"]
    assert found["detkit"] == found["torchvision"] == found["alike"]
    assert all(median["ms"] > 0 for part in (case, *report["truncation"]) for median in part["times"].values())
    parameters = report["truncation"][0]["parameters"]
    assert parameters["truncated"] == 1024 * (25088 + 4096) + 4096 + 256 * (4096 + 4096) + 4096
