"""The benchmark of anchors runs, and what it reports holds together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_anchors.py"


@pytest.mark.slow
def test_quick_run(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    subprocess.run([sys.executable, SCRIPT, "--quick", "--k", "4", "--json", out], check=True, capture_output=True)
    report = json.loads(out.read_text())
    (case,) = report["cases"]
    assert (case["boxes"], case["count"], report["k"]) == ("generated", 2000, 4)
    rows = {row["contestant"]: row for row in case["contestants"]}
    assert set(rows) == {"detkit", "medians"}
    for row in rows.values():
        assert 0.3 < row["worst"] <= row["first"] <= row["best"] < 1
        assert row["seconds"] > 0
        assert len(row["best_anchors"]) == 4
    assert rows["detkit"]["first"] > rows["medians"]["best"] - 1e-4
    (growth,) = report["growth"]
    assert growth["boxes"] == 10_000
    assert growth["further_mib"] > 0.1


def test_a_peer_that_fails_ends_the_run(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    run = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--peer-python", python], capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert f"{python} ended with code 3" in run.stderr
