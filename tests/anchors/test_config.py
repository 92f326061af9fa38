from pathlib import Path

import numpy as np
import pytest
import yaml

from detkit.anchors.config import Scale, prepare, write_anchors
from detkit.config import shipped_configs
from detkit.errors import DetkitError

YOLOV3 = """# A comment.
classes: [cell]   # spacing   is kept

detector:
  name: yolov3
  backbone: {name: darknet_tiny}
  levels:
    - {stride: 16, anchors: [[10, 14], [23, 27]], width: 128, depth: 0}  # finest
    - stride: 32
      anchors:   # of cells
        - [81, 82]
        - - 135
          - 169  # the last
      width: 256
      depth: 1
preprocess: {mode: stretch, size: [320, 416]}
"""
YOLOV2 = """classes: [cell]
detector:
  name: yolov2
  anchors: [[41, 55],
            [102, 128]]
  backbone: {name: darknet19}
preprocess: {mode: letterbox, size: [416, 416]}
"""


def scale(stride: int, *anchors: tuple[float, float]) -> Scale:
    return Scale(stride, np.array(anchors, float))


NEW = (scale(16, (8, 9.5)), scale(32, (61.25, 70), (100, 90), (200.5, 210)))


def test_a_config_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(YOLOV3)
    setup = prepare(str(file))
    assert setup.strides == (16, 32)
    assert [one.anchors.tolist() for one in setup.scales] == [[[10, 14], [23, 27]], [[81, 82], [135, 169]]]
    assert (setup.count, setup.preprocess.size, setup.preprocess.mode) == (4, (320, 416), "stretch")
    assert prepare(None, file).path == file  # what is written to is the config
    file.write_text(YOLOV2)
    assert (prepare(str(file)).strides, prepare(str(file)).count) == ((32,), 2)


def test_a_cfg_is_read(shared: Path) -> None:
    setup = prepare(str(shared / "weights" / "yolo-fastest-1.1" / "yolo-fastest-1.1.cfg"))
    assert setup.strides == (16, 32)
    assert setup.scales[0].anchors.tolist() == [[12, 18], [37, 49], [52, 132]]
    assert setup.path is None


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_only_the_anchors_change(tmp_path: Path, newline: str, mark: str) -> None:
    source, target = tmp_path / "mine.yaml", tmp_path / "new.yaml"
    text = mark + YOLOV3.replace("\n", newline)
    source.write_bytes(text.encode())
    write_anchors(source, target, NEW)
    expected = text.replace("[[10, 14], [23, 27]]", "[[8, 9.5]]")
    old = "- [81, 82]\n        - - 135\n          - 169".replace("\n", newline)
    new = "- [61.25, 70]\n        - [100, 90]\n        - [200.5, 210]".replace("\n", newline)
    assert target.read_bytes() == expected.replace(old, new).encode()
    assert source.read_bytes() == text.encode()
    assert [one.anchors.tolist() for one in prepare(str(target)).scales] == [one.anchors.tolist() for one in NEW]


def test_the_only_scale_of_yolov2(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(YOLOV2)
    write_anchors(file, file, [scale(32, (20, 30), (40, 50), (60, 70))])
    assert file.read_text() == YOLOV2.replace("[[41, 55],\n            [102, 128]]", "[[20, 30], [40, 50], [60, 70]]")


def test_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "mine.yaml", tmp_path / "link.yaml"
    file.write_text(YOLOV2)
    link.symlink_to(file)
    write_anchors(link, link, [scale(32, (20, 30))])
    assert link.is_symlink()
    assert "[[20, 30]]" in file.read_text()


def test_aliases_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = YOLOV3.replace("[[10, 14], [23, 27]]", "&a [[10, 14], [23, 27]]")
    file.write_text(text[: text.index("      anchors:")] + "      anchors: *a\n" + text[text.index("      width") :])
    before = file.read_bytes()
    with pytest.raises(DetkitError, match="cannot be replaced in place"):
        write_anchors(file, file, NEW)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith(("yolov2", "yolov3"))])
def test_every_shipped_config_can_be_copied(tmp_path: Path, name: str) -> None:
    setup, target = prepare(name), tmp_path / "copy.yaml"
    assert setup.path is not None
    doubled = [Scale(one.stride, (2 * one.anchors).round()) for one in setup.scales]
    write_anchors(setup.path, target, doubled)
    again = prepare(str(target))
    assert [one.anchors.tolist() for one in again.scales] == [one.anchors.tolist() for one in doubled]
    trees = [yaml.safe_load(path.read_text()) for path in (setup.path, target)]
    for tree in trees:
        for level in tree["detector"].get("levels", [tree["detector"]]):
            del level["anchors"]
    assert trees[0] == trees[1]


def test_what_cannot_be_written_to(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text(YOLOV3)
    other.write_text(YOLOV2)
    shipped = shipped_configs()["yolov3_tiny_coco"]
    for target in (shipped, Path("yolov3_tiny_coco")):
        with pytest.raises(DetkitError, match=r"is not overwritten; .* --write yolov3_tiny_coco_anchors.yaml"):
            prepare(None, target)
    for config, target, message in (
        (None, tmp_path / "none.yaml", "no such file; with --config"),
        (str(other), mine, "exists and is not"),
        ("yolov3_tiny_coco", mine, "exists and is not"),
        (None, tmp_path / "a.cfg", "into a .cfg paste"),
    ):
        with pytest.raises(DetkitError, match=message):
            prepare(config, target)
    assert prepare(str(mine), mine).path == mine
    assert prepare("yolov3_tiny_coco", tmp_path / "new.yaml").path == shipped


def test_sizes_and_detectors_that_do_not_fit(tmp_path: Path) -> None:
    assert prepare(None, size=300).preprocess.size == (300, 300)
    assert prepare("yolov3_tiny_coco", size=416).preprocess.size == (416, 416)
    with pytest.raises(DetkitError, match="--size 320: yolov3_tiny_coco has a size of its own, 416 × 416"):
        prepare("yolov3_tiny_coco", size=320)
    with pytest.raises(DetkitError, match="yolov1 has no anchors of given width and height"):
        prepare(next(name for name in shipped_configs() if name.startswith("yolov1")))
