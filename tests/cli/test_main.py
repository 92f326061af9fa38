"""What holds for every command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DETKIT = [sys.executable, "-m", "detkit.cli"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True} | options
    return subprocess.run([*DETKIT, *arguments], check=False, **options)


def test_a_mistake_is_one_sentence_and_exit_code_2() -> None:
    result = run("eval", "--data", "no such folder", "--detections", "none.json")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        result = run("--help", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert result.returncode == 2
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_too_long_for_the_system_is_one_sentence() -> None:
    result = run("eval", "--data", "n" * 300, "--detections", "x.json")
    assert result.returncode == 2
    assert "too long" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_ascii_terminal_is_no_reason_to_fail() -> None:
    result = run("detect", "bild×.jpg", "--model", "no.cfg", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_version_and_help() -> None:
    assert run("--version").stdout.strip().count(".") == 2
    assert {"detect", "eval", "train"} <= set(run("--help").stdout.split())
