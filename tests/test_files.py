import errno
import os
import threading
from pathlib import Path

import pytest

from detkit.errors import DetkitError
from detkit.files import aside, explained, new_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "dog.jpg"
    with aside(path) as part:
        part.write_text("half")
        assert not path.exists()
        assert (part.parent, part.suffix) == (path.parent, path.suffix)
        assert part.name.startswith(".dog.")
        part.write_text("whole")
    assert names(path.parent) == ["dog.jpg"]
    assert path.read_text() == "whole"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "dog.jpg"
    with aside(path) as first, aside(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the outer block ends last"
    assert names(tmp_path) == ["dog.jpg"]


def half_write(path: Path, error: BaseException) -> None:
    with aside(path) as part:
        part.write_text("half")
        raise error


# A broken pipe is not of this file: it is not explained away.
@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError()])
def test_a_failure_keeps_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "dog.jpg"
    path.write_text("old")
    with pytest.raises(type(error)):
        half_write(path, error)
    assert names(tmp_path) == ["dog.jpg"]
    assert path.read_text() == "old"


def test_a_block_may_give_its_file_up(tmp_path: Path) -> None:
    with aside(tmp_path / "clip.mp4") as part:
        part.unlink()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["d" * 250 + ".jpg", "ä" * 125 + ".jpg", "d." + "o" * 253])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    assert len(os.fsencode(name)) >= 254
    write_atomically(tmp_path / name, "whole")
    assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match=r"ddd\.jpg: cannot be written: .+"):
        write_atomically(tmp_path / ("d" * 252 + ".jpg"), "whole")
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "dog.jpg"
    path.write_text("old")
    with pytest.raises(DetkitError) as caught:
        write_atomically(path, b"new")
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert names(tmp_path) == ["dog.jpg"]
    assert path.read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_umask_applies_and_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    umask = os.umask
    before = umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: touched.append(mask) or umask(mask))
        write_atomically(tmp_path / "dog.jpg", b"whole")
    finally:
        umask(before)
    assert (tmp_path / "dog.jpg").stat().st_mode & 0o777 == 0o640
    assert not touched, "for an instant the files of other threads would be open to everyone"


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = [str(number) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents
    assert names(tmp_path) == ["state"]


def test_an_error_of_the_operating_system_is_one_sentence() -> None:
    with pytest.raises(DetkitError) as caught, explained(Path("out/dog.jpg")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"{Path('out/dog.jpg')}: cannot be written: No space left on device"


def test_new_folders_go_when_the_block_fails_and_leaves_them_empty(tmp_path: Path) -> None:
    def fail(folder: Path, file: Path | None = None) -> None:
        with new_folder(folder):
            assert folder.is_dir()
            if file:
                file.touch()
            raise KeyboardInterrupt

    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "old", tmp_path / "old/new/newer"):
        with pytest.raises(KeyboardInterrupt):
            fail(folder)
        assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "a/b/c", tmp_path / "a/kept")
    assert names(tmp_path / "a") == ["kept"]


def test_a_file_that_fails_takes_its_new_folders_along(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError):
        half_write(tmp_path / "crops" / "dog" / "dog.jpg", BrokenPipeError())
    assert names(tmp_path) == []
    with pytest.raises(DetkitError, match="too long"):
        write_atomically(tmp_path / "new" / ("n" * 300) / "dog.jpg", b"")
    assert names(tmp_path) == []
