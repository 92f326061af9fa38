import colorsys

import numpy as np
import pytest
import torch

from detkit import draw as module
from detkit.draw import class_color, draw, pixel_corners
from detkit.structures import Detections


def found(boxes: list[list[float]], size: tuple[int, int], scores: list[float] | None = None) -> Detections:
    scores = scores or [0.9 - 0.01 * i for i in range(len(boxes))]
    return Detections(
        torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores).float(), torch.arange(len(boxes)), size
    )


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def count(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == color).all(2).sum())


def test_colors_are_those_of_the_name() -> None:
    # Frozen: the same in every run, on every machine, for every model.
    assert class_color("person") == class_color("person")
    assert len({class_color(name) for name in ("person", "dog", "cat", "car", "bicycle", "horse", "cow")}) == 7
    assert class_color("狗") in {class_color(str(i)) for i in range(1000)}
    for name in map(str, range(200)):
        _, _, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in class_color(name)))
        assert value > 0.6, "a dark box is not seen"


def test_the_outline_lies_on_the_box() -> None:
    size = (200, 300)
    result = draw(grey(*size), found([[50, 60, 150, 160]], size), ["dog"])
    color = class_color("dog")
    assert tuple(result[159, 100]) == color
    assert tuple(result[110, 50]) == color
    assert tuple(result[110, 149]) == color
    assert tuple(result[110, 151]) != color
    assert tuple(result[110, 100]) == (128, 128, 128), "the inside is not touched"


def test_the_picture_itself_is_not_touched() -> None:
    picture = grey(100, 100)
    draw(picture, found([[10, 10, 90, 90]], (100, 100)), ["dog"])
    assert (picture == 128).all()


def test_nothing_found() -> None:
    assert (draw(grey(50, 70), found([], (50, 70)), ["dog"]) == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (20, 20), (100, 133)])
def test_any_size_and_any_box(size: tuple[int, int]) -> None:
    height, width = size
    boxes = [[0, 0, width, height], [0, 0, 0.1, 0.1], [width - 0.5, height - 0.5, width, height]]
    names = ["a name that is far too long for a small picture", "狗", ""]
    assert draw(grey(*size), found(boxes, size), names).shape == (*size, 3)


@pytest.mark.parametrize("scale", [1, 3, 20])
def test_tags_and_lines_grow_with_the_picture(scale: int) -> None:
    size = (150 * scale, 200 * scale)
    box = [x * scale for x in (40, 60, 160, 120)]
    result = draw(grey(*size), found([box], size), ["dog"])
    column = (result[:, 100 * scale] == class_color("dog")).all(1)
    line = int(column[90 * scale :].sum())
    assert line == pytest.approx(size[0] / 150 * 0.75, abs=1)
    tag_rows = np.flatnonzero((result[: 60 * scale, 40 * scale] == class_color("dog")).all(1))
    assert len(tag_rows) >= max(9, 3 * scale), "the text is at least nine pixels high"


def tag_places(boxes: list[list[int]], size: tuple[int, int], tag: tuple[int, int] = (60, 14)) -> list:
    return module._place([tag] * len(boxes), np.array(boxes), size)


def test_a_tag_goes_above_its_box_or_inside_at_the_top_border() -> None:
    assert tag_places([[20, 50, 120, 90]], (200, 200)) == [(20, 36)]
    assert tag_places([[20, 0, 120, 150]], (200, 200)) == [(20, 0)]


def test_a_tag_stays_in_the_picture() -> None:
    for box in ([190, 190, 199, 199], [0, 0, 5, 5], [195, 0, 199, 4], [0, 195, 4, 199]):
        ((x, y),) = tag_places([box], (200, 200))
        assert 0 <= x <= 200 - 60
        assert 0 <= y <= 200 - 14


def test_tags_of_the_same_box_keep_off_each_other() -> None:
    places = tag_places([[50, 50, 150, 150]] * 3, (200, 200))
    rows = np.array(places)
    for i in range(3):
        for j in range(i):
            apart = np.abs(rows[i] - rows[j])
            assert apart[0] >= 60 or apart[1] >= 14


def test_where_there_is_no_room_weak_tags_are_left_out() -> None:
    places = tag_places([[0, 0, 39, 19]] * 6, (20, 40), tag=(40, 14))
    assert places[0] is not None
    assert None in places


def test_the_best_box_is_drawn_last() -> None:
    size = (200, 200)
    detections = Detections(
        torch.tensor([[20.0, 60, 180, 180]]).expand(2, 4), torch.tensor([0.3, 0.9]), torch.tensor([0, 1]), size
    )
    assert class_color("cat") != class_color("dog")
    result = draw(grey(*size), detections, ["cat", "dog"])
    assert tuple(result[179, 100]) == class_color("dog")


@pytest.mark.parametrize("name", [f"class {i}" for i in range(30)])
def test_text_can_be_read_on_its_color(name: str) -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    ground = class_color(name)
    light, dark = sorted((luminance(ground), luminance(module.text_color(ground))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


def test_the_score_gives_way_to_the_name() -> None:
    wide, _, _ = module._fit("person", " 97%", 12, 400, 400)
    name, _, (width, _) = module._fit("person", " 97%", 12, 40, 100)
    cut, _, (cut_width, _) = module._fit("person with an umbrella", " 97%", 12, 40, 60)
    assert wide == "person 97%"
    assert name == "person"
    assert width <= 100
    assert cut.startswith("pers")
    assert cut.endswith("…")
    assert cut_width <= 60


def test_text_of_any_script_gets_a_font_that_has_it_or_the_default() -> None:
    assert module._font_file("собака").endswith("DejaVuSans.ttf")
    assert module._font_file("\U000f0000").endswith("DejaVuSans.ttf")


def test_pixel_corners_are_at_least_a_pixel_and_inside() -> None:
    corners = pixel_corners(found([[1.4, 2, 3.9, 6.1], [9.9, 9.9, 10, 10], [3, 3, 3, 3]], (10, 10)))
    assert corners.tolist() == [[1, 2, 3, 5], [9, 9, 9, 9], [3, 3, 3, 3]]
