"""The benchmark of backbones runs, and its literal peers give the maps of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "bench_backbones.py"


@pytest.mark.slow
def test_literal_peers_give_the_same_maps(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    names = ["simple-cnn", "pvt_small", "nat_tiny"]
    run = subprocess.run(
        [sys.executable, SCRIPT, "--names", *names, "--builds", "1", "--rounds", "1", "--out", out],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    pairs = json.loads(out.read_text())["pairs"]
    literal = [row for row in pairs if row["theirs"].startswith("literal")]
    assert {row["ours"] for row in literal} == set(names)
    assert all(row["difference"] < 1e-4 for row in literal)
    assert all(row["parameters"][0] == row["parameters"][1] for row in literal)
    assert all(min(row[mode]["ms"]) > 0 for row in pairs for mode in ("inference", "training"))
