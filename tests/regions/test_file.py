import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.regions import FileConfig, propose

PICTURE = np.zeros((20, 30, 3), np.uint8)


def line(source: str = "pics/a.jpg", boxes: Any = ([1, 2, 11, 12], [0, 0, 30, 20]), **changes: Any) -> str:
    proposals = [{"box": box, "score": score} for score, box in enumerate(boxes)]
    return json.dumps({"source": source, "width": 30, "height": 20, "proposals": proposals} | changes)


@pytest.fixture
def config(tmp_path: Path) -> FileConfig:
    return FileConfig(path=tmp_path / "proposals.jsonl")


@pytest.mark.parametrize("name", ["pics/a.jpg", "a.jpg", "/elsewhere/a.jpg"])
def test_proposals_come_back_best_first(config: FileConfig, name: str) -> None:
    config.path.write_text(line() + "\n\n" + line("pics/b.jpg", []) + "\n")
    found = propose(PICTURE, config, name)
    assert found.boxes.tolist() == [[0, 0, 30, 20], [1, 2, 11, 12]]
    assert found.scores.tolist() == [1, 0]
    assert propose(PICTURE, config, "b.jpg").boxes.shape == (0, 4)
    assert len(propose(PICTURE, config.model_copy(update={"max_proposals": 1}), name)) == 1


def test_a_box_that_stands_twice_is_the_better(config: FileConfig) -> None:
    config.path.write_text(line(boxes=([1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4])))
    found = propose(PICTURE, config, "a.jpg")
    assert found.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.scores.tolist() == [2, 1]


def test_the_file_is_read_anew_when_it_changes(config: FileConfig) -> None:
    config.path.write_text(line())
    assert len(propose(PICTURE, config, "a.jpg")) == 2
    config.path.write_text(line(boxes=([1, 2, 3, 4],)))
    assert len(propose(PICTURE, config, "a.jpg")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is not a text file"),
        ("{", "line 1: is not valid JSON"),
        ("[]", "line 1: expected a mapping"),
        (line() + "\n" + line(), "line 2: the picture pics/a.jpg stood on a line before"),
        (line(frame=3), "line 1: is of a video"),
        (line(widht=3), "line 1: unknown key 'widht'; did you mean 'width'"),
        (line(proposals=[{"box": [1, 2, 3]}]), "line 1: proposals.0.box"),
        (line(boxes=([0, 0, 1, 1], [5, 5, 5, 9])), "line 1: proposals.1.box: expected left < right"),
        (line(boxes=([0, 0, 31, 9],)), "line 1: proposals.0.box: expected left < right"),
        (line(boxes=([0, 0, float("nan"), 9],)), "line 1: proposals.0.box"),
        (line("b.jpg"), "has no line for the picture a.jpg"),
        (line(width=31), "31 wide and 20 high, but it is 30 wide and 20 high"),
        (line() + "\n" + line("more/a.jpg"), "could be pics/a.jpg or more/a.jpg"),
    ],
)
def test_mistakes(config: FileConfig, content: str | bytes | None, message: str) -> None:
    if content is not None:
        config.path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DetkitError, match=re.escape(message)) as caught:
        propose(PICTURE, config, "a.jpg")
    assert str(caught.value).startswith(str(config.path))


def test_a_file_needs_a_name(config: FileConfig) -> None:
    with pytest.raises(DetkitError, match="need the picture's name"):
        propose(PICTURE, config)
