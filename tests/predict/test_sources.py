import io
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from detkit.data.picture import MAX_PIXELS
from detkit.errors import DetkitError
from detkit.predict import sources as module
from detkit.predict.sources import Failure, Frame, Source, find_sources, read_frames

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def names(*sources: str | Path) -> list[str]:
    return [Path(source.name).name for source in find_sources([str(source) for source in sources])]


def read(*sources: str | Path) -> list[Frame | Failure]:
    return list(read_frames(find_sources([str(source) for source in sources]), MAX_PIXELS, ahead=3))


def test_a_folder_gives_its_pictures_in_natural_order(paint: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("10.jpg", "2.PNG", "1.webp", "deeper/3.jpg", ".hidden.jpg"):
        paint(name)
    assert names(tmp_path) == ["1.webp", "2.PNG", "10.jpg"]


def test_other_files_of_a_folder_are_counted_and_named(paint: Callable[..., Path], tmp_path: Path) -> None:
    paint("1.jpg")
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match="4 left out, being neither picture nor video: a.txt, b.txt, c.txt, …"):
        assert names(tmp_path) == ["1.jpg"]


def test_globs(paint: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/b/10.jpg", "a/b/9.jpg"):
        paint(name)
    assert names(f"{tmp_path}/a/*.jpg") == ["1.jpg"]
    assert sorted(names(f"{tmp_path}/**")) == ["1.jpg", "10.jpg", "9.jpg"]
    assert names(f"{tmp_path}/a/b/?.jpg", f"{tmp_path}/a/b/*.jpg") == ["9.jpg", "9.jpg", "10.jpg"]


def test_a_file_whose_name_looks_like_a_glob(paint: Callable[..., Path], tmp_path: Path) -> None:
    paint("[1].jpg")
    assert names(tmp_path / "[1].jpg") == ["[1].jpg"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jpg", "missing.jpg: no such file or folder"),
        ("*.jpg", r"\*.jpg: matches no file"),
        ("empty", "empty: holds no picture or video among its 0 files$"),
        ("full", r"full: holds no picture or video among its 1 files; pass '.*full/\*\*' to search its subfolders"),
    ],
)
def test_a_name_that_finds_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "deeper").mkdir(parents=True)
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(DetkitError, match=message):
        find_sources([str(tmp_path / name)])


def test_pictures_come_in_order_and_errors_in_their_place(paint: Callable[..., Path], tmp_path: Path) -> None:
    paint("1.png", RED)
    (tmp_path / "2.png").write_bytes(b"")
    paint("3.png", GREEN)
    paint("4.png", BLUE)
    first, second, third, fourth = read(tmp_path)
    assert isinstance(second, Failure)
    assert "2.png" in str(second.error)
    for frame, color in ((first, RED), (third, GREEN), (fourth, BLUE)):
        assert isinstance(frame, Frame)
        assert tuple(frame.picture[0, 0]) == color
        assert frame.index is None


def test_reading_stays_a_few_pictures_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0
    lock = threading.Lock()

    def count(path: Path, max_pixels: int, name: str) -> np.ndarray:
        nonlocal done
        with lock:
            done += 1
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(module, "read_picture", count)
    frames = read_frames([Source(str(i)) for i in range(100)], MAX_PIXELS, ahead=5)
    assert next(frames).source.name == "0"
    time.sleep(0.1)
    assert 1 <= done <= 6
    frames.close()
    assert done <= 6


def test_of_large_pictures_fewer_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0
    lock = threading.Lock()
    huge = np.broadcast_to(np.zeros(3, np.uint8), (8_000, 8_000, 3))  # 64 megapixels that take no memory

    def count(path: Path, max_pixels: int, name: str) -> np.ndarray:
        nonlocal done
        with lock:
            done += 1
        return huge

    monkeypatch.setattr(module, "read_picture", count)
    frames = read_frames([Source(str(i)) for i in range(100)], MAX_PIXELS, ahead=32)
    assert next(frames).source.name == "0"
    time.sleep(0.1)
    assert done <= 1 + 2 + 4, "besides the first: 100 megapixels, and one for each thread"
    assert [next(frames).source.name for _ in range(20)] == [str(i) for i in range(1, 21)]
    frames.close()


def test_the_limit_of_pixels_is_passed_on(paint: Callable[..., Path]) -> None:
    (failure,) = read_frames(find_sources([str(paint("big.png", RED, (10, 20)))]), max_pixels=199, ahead=1)
    assert isinstance(failure, Failure)
    assert "20 wide and 10 high" in str(failure.error)


def test_standard_input(paint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    content = paint("red.png").read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    (frame,) = read("-")
    assert isinstance(frame, Frame)
    assert frame.source.name == "-"
    assert frame.source.stem == "stdin"
    assert frame.picture.shape == (40, 60, 3)
    (failure,) = read("-")
    assert isinstance(failure, Failure)
    assert "standard input" in str(failure.error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("content", ["picture", "text", ""])
def test_a_pipe_that_has_a_name(paint: Callable[..., Path], tmp_path: Path, content: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = paint("red.jpg").read_bytes() if content == "picture" else content.encode()
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    (item,) = read(pipe)
    writer.join()
    if content == "picture":
        assert isinstance(item, Frame)
        assert item.picture.shape == (40, 60, 3)
    else:
        assert isinstance(item, Failure)
        assert re.search(r"pipe: (is not a picture|the file is empty)", str(item.error))


def test_a_pipe_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipe").touch()
    monkeypatch.setattr(Path, "is_fifo", lambda path: True)
    monkeypatch.setattr(Path, "read_bytes", lambda path: os.close(-1))
    (failure,) = read(tmp_path / "pipe")
    assert isinstance(failure, Failure)
    assert str(failure.error) == f"{tmp_path / 'pipe'}: cannot be read: Bad file descriptor"


def test_samples() -> None:
    (frame,) = read("sample:chelsea")
    assert isinstance(frame, Frame)
    assert frame.source.stem == "chelsea"
    (failure,) = read("sample:chelsae")
    assert isinstance(failure, Failure)
    assert "did you mean 'chelsea'" in str(failure.error)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_video_gives_its_frames(film: Callable[..., Path], name: str) -> None:
    path = film(name, [RED, GREEN, BLUE, RED, GREEN])
    (source,) = find_sources([str(path)])
    assert (source.fps, source.frames) == (12.5, 5)
    frames = list(read_frames([source], MAX_PIXELS, ahead=2))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [int(frame.picture[24, 32].argmax()) for frame in frames] == [0, 1, 2, 0, 1]


def test_pictures_and_videos_mixed_keep_their_order(film: Callable[..., Path], paint: Callable[..., Path]) -> None:
    clip, still = film("clip.mp4", [RED, GREEN]), paint("still.png")
    frames = read(still, clip, clip, still)
    assert [frame.source.stem for frame in frames] == ["still", "clip", "clip", "clip", "clip", "still"]
    assert [frame.index for frame in frames] == [None, 0, 1, 0, 1, None]


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("text")
    (failure,) = read(tmp_path)
    assert isinstance(failure, Failure)
    assert "bad.mp4: is not a video" in str(failure.error)


def test_a_truncated_video_gives_what_there_is_and_an_error(film: Callable[..., Path]) -> None:
    path = film("clip.avi", [RED] * 40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert cv2.VideoCapture(str(path)).isOpened()
    *frames, failure = read(path)
    assert 0 < len(frames) < 40
    assert isinstance(failure, Failure)
    assert f"ends after frame {len(frames)} of 40" in str(failure.error)
