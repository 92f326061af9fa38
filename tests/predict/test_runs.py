import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detkit.errors import DetkitError
from detkit.predict.runs import next_run, require_free


def test_next_run_counts_on_from_the_highest_number(tmp_path: Path) -> None:
    assert next_run("detect", tmp_path) == tmp_path / "detect" / "1"
    (tmp_path / "detect" / "9").mkdir()
    (tmp_path / "detect" / "notes").mkdir()
    assert next_run("detect", tmp_path).name == "10"
    assert next_run("eval", tmp_path).name == "1"


def test_next_run_gives_no_folder_twice(tmp_path: Path) -> None:
    workers = 8
    barrier = threading.Barrier(workers)

    def claim(_: int) -> list[Path]:
        barrier.wait()
        return [next_run("detect", tmp_path) for _ in range(10)]

    with ThreadPoolExecutor(workers) as pool:
        folders = [folder for some in pool.map(claim, range(workers)) for folder in some]
    assert len(set(folders)) == workers * 10


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that nobody may write to")
def test_next_run_without_permission() -> None:
    with pytest.raises(DetkitError, match="/sys/detect: cannot be written"):
        next_run("detect", "/sys")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_next_run_in_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DetkitError, match="Permission denied"):
        next_run("detect", tmp_path)


def test_require_free(tmp_path: Path) -> None:
    require_free(tmp_path / "new")
    require_free(tmp_path)
    (tmp_path / "old.jpg").touch()
    with pytest.raises(DetkitError, match="is not empty and nothing is overwritten"):
        require_free(tmp_path)
    with pytest.raises(DetkitError, match="is a file"):
        require_free(tmp_path / "old.jpg")
