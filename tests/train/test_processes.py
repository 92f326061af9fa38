"""Training in real processes: killed and resumed, shared out, on two machines that are both this one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detkit.weights.checkpoint import read_header, read_tensors

PYTHON = sys.executable
TRAIN = ["-m", "detkit.cli", "train"]
FROZEN = ["--set", "train.frozen_batch_norm=true", "--set", "train.optimizer.lr=0.002", "--device", "cpu"]
LIMIT = 400  # seconds until a process that hangs is ended

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    ours = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"OMP_NUM_THREADS": "1"}


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, *map(str, arguments)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors
    return output


def table(folder: Path) -> list[dict[str, str]]:
    file = folder / "metrics.csv"
    return list(csv.DictReader(file.open())) if file.exists() else []


def wait_for_epochs(process: subprocess.Popen[str], folder: Path, epochs: int) -> None:
    end = time.monotonic() + LIMIT
    while len(table(folder)) < epochs:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def losses(folder: Path) -> torch.Tensor:
    """[epochs, terms] of a run."""
    names = ("xy", "wh", "object", "no_object", "classes")
    return torch.tensor([[float(row[name]) for name in names] for row in table(folder)], dtype=torch.float64)


def test_killed_and_resumed_is_as_if_never_stopped(config: Path, data: str, tmp_path: Path) -> None:
    arguments = [*TRAIN, config, "--data", data, "--set", "train.epochs=5", "--set", "train.workers=1", "--json"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unbroken = start(*arguments, "--out", whole)
    printed = json.loads(finish(unbroken))
    process = start(*arguments, "--out", killed)
    for epochs in (1, 3):  # once right after an epoch, once in the middle of one, as it comes
        wait_for_epochs(process, killed, epochs)
        time.sleep(0.2 * (epochs - 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(table(killed)) < 5
        process = start(*TRAIN, "--resume", killed, "--json")
    assert json.loads(finish(process)) == printed | {"folder": str(killed)}
    assert table(killed) == table(whole)
    for name in ("last.safetensors", "best.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert [path for path in killed.iterdir() if path.name.startswith(".")] == []


def test_an_interrupt_ends_in_order(config: Path, data: str, tmp_path: Path) -> None:
    process = start(*TRAIN, config, "--data", data, "--set", "train.epochs=99", "--out", tmp_path / "run")
    wait_for_epochs(process, tmp_path / "run", 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith(f"stopped; `detkit train --resume {tmp_path / 'run'}`")
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def alone(config: Path, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with frozen batch norm."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(start(*TRAIN, config, "--data", data, *FROZEN, "--out", folder))
    return folder


def assert_same(folder: Path, alone: Path) -> None:
    torch.testing.assert_close(losses(folder), losses(alone), rtol=1e-5, atol=1e-5)
    ours, theirs = (read_tensors(run / "last.safetensors") for run in (folder, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
    ours_ap, theirs_ap = (read_header(run / "last.safetensors").metrics["AP"] for run in (folder, alone))
    assert ours_ap == pytest.approx(theirs_ap, abs=1e-3)


def test_two_processes_have_the_losses_of_one(config: Path, data: str, tmp_path: Path, alone: Path) -> None:
    out = finish(start(*TRAIN, config, "--data", data, *FROZEN, "--devices", "2", "--out", tmp_path / "run", "--json"))
    assert json.loads(out)["epochs"] == 2  # one object, although there are two processes
    assert_same(tmp_path / "run", alone)


def test_two_machines_have_the_losses_of_one(config: Path, data: str, tmp_path: Path, alone: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        start(
            "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank),
            "--master-addr", "127.0.0.1", "--master-port", str(port),
            *TRAIN, config, "--data", data, *FROZEN, "--nodes", "2", "--out", tmp_path / "run",
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for node in nodes:
        finish(node)
    assert_same(tmp_path / "run", alone)
