"""The benchmark of both searches runs, and they look at the same windows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_windows.py"


@pytest.mark.slow
def test_quick_run_reports_both_searches(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run = subprocess.run(
        [sys.executable, SCRIPT, "--strides", "32", "--rounds", "1", "--device", "cpu", "--json", out],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    assert report["device"]["system"]
    (case,) = report["searches"]
    assert case["windows"] == 233  # of five sizes and three shapes on 224 pixels, half a window apart
    print(case)
    assert 0.001 < case["difference"] < 1  # FasterNet pads
    assert all(median["ms"] > 0 for median in case["times"].values())
