"""The benchmark of proposals runs, and what it reports holds together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_proposals.py"


@pytest.mark.slow
def test_run_without_a_peer(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, SCRIPT, "--data", "sample:shapes?size=500&pictures=10", "--split", "val"]
    run = subprocess.run([*command, "--pictures", "2", "--rounds", "1", "--json", out], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    assert report["timed_pictures"] == 2
    assert report["median_seconds"]["detkit"] > 0
    assert set(report["coverage"]) == {"detkit", "detkit, all boxes"}
    assert report["coverage"]["detkit"][-1]["recall50"] > 0.5
    assert report["odd_shapes"]["detkit"]["1×1"] == "1 boxes"
    assert "ms a picture" in run.stdout
