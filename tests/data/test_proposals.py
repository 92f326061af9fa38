import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import detkit.data.proposals as module
from detkit.data.dataset import Dataset, load_dataset
from detkit.data.proposals import proposals_of
from detkit.errors import DetkitError
from detkit.regions import FileConfig, GridConfig, Proposals, SelectiveSearchConfig, WindowsConfig, propose

XML = "<annotation><size><width>40</width><height>30</height><depth>3</depth></size></annotation>"
GRID = GridConfig(divisions=(1, 2))


def write(root: Path, name: str, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    assert cv2.imwrite(str(root / f"JPEGImages/{name}.png"), picture)
    (root / f"Annotations/{name}.xml").write_text(XML)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "voc"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for seed, name in enumerate("abc"):
        write(folder, name, seed)
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that proposals are made of."""
    names: list[str] = []

    def spy(picture: np.ndarray, config: GridConfig, source: str) -> Proposals:
        names.append(Path(source).stem)
        return propose(picture, config, source)

    monkeypatch.setattr(module, "propose", spy)
    return names


def taken(names: list[str]) -> str:
    found = "".join(sorted(names))
    names.clear()
    return found


def test_proposals_come_in_order_and_again_from_the_cache(root: Path, tmp_path: Path, made: list[str]) -> None:
    data, config = load_dataset(root), SelectiveSearchConfig(min_side=4)
    seen: list[bool] = []
    first = proposals_of(data, config, tmp_path / "cache", advance=seen.append)
    assert taken(made) == "abc"
    assert seen == [False] * 3
    for sample, found in zip(data.samples, first, strict=True):
        expected = propose(sample.read(), config)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
    again = proposals_of(data, config, tmp_path / "cache", workers=1, advance=seen.append)
    assert taken(made) == ""
    assert seen[3:] == [True] * 3
    for found, expected in zip(again, first, strict=True):
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert found.boxes.dtype == found.scores.dtype == np.float32


def test_the_cache_is_keyed_by_settings_and_picture(root: Path, tmp_path: Path, made: list[str]) -> None:
    cache = tmp_path / "cache"
    proposals_of(load_dataset(root), GRID, cache)
    taken(made)
    other = GridConfig(divisions=(1, 3))
    assert len(proposals_of(load_dataset(root), other, cache)[0]) != len(
        proposals_of(load_dataset(root), GRID, cache)[0]
    )
    assert taken(made) == "abc"
    proposals_of(load_dataset(root), WindowsConfig(), cache)
    assert taken(made) == "abc"
    write(root, "b", 77)
    proposals_of(load_dataset(root), GRID, cache)
    assert taken(made) == "b", "another picture under the same name"
    moved = shutil.move(root, tmp_path / "moved")
    proposals_of(load_dataset(moved), GRID, cache)
    assert taken(made) == "", "the same pictures elsewhere"
    settings = {path.read_text() for path in cache.glob("*/settings.json")}
    assert settings == {config.model_dump_json() + "\n" for config in (GRID, other, WindowsConfig())}


def test_a_stopped_run_goes_on_and_damage_is_mended(root: Path, tmp_path: Path, made: list[str]) -> None:
    cache = tmp_path / "cache"

    def stop(cached: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proposals_of(load_dataset(root), GRID, cache, workers=1, advance=stop)
    before = taken(made)
    assert before.startswith("a")
    proposals_of(load_dataset(root), GRID, cache, workers=1)
    assert before + taken(made) == "abc"
    tables = sorted(cache.glob("*/*.npy"))
    assert len(tables) == 3
    whole = [np.load(table) for table in tables]
    tables[0].write_bytes(tables[0].read_bytes()[:-40])
    tables[1].write_bytes(b"")
    np.save(tables[2], np.zeros((3, 4)))
    proposals_of(load_dataset(root), GRID, cache)
    assert taken(made) == "abc"
    for table, expected in zip(tables, whole, strict=True):
        np.testing.assert_array_equal(np.load(table), expected)
    assert not list(cache.glob("*/.*")), "nothing half-written stays"


def test_without_a_cache_nothing_is_kept(
    root: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [len(found) for found in proposals_of(load_dataset(root), GRID, None)] == [10] * 3
    proposals_of(load_dataset(root), GRID, None)
    assert taken(made) == "aabbcc"
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_generated_pictures_are_kept_by_their_pixels(tmp_path: Path, made: list[str]) -> None:
    def data(seed: int) -> Dataset:
        return load_dataset(f"sample:shapes?seed={seed}&pictures=2&size=64", "train")

    for seed, expected in ((0, 2), (0, 2), (1, 4)):
        proposals_of(data(seed), GRID, tmp_path)
        assert len(made) == expected


def test_proposals_from_a_file_are_not_kept(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "made.jsonl"
    lines = [
        f'{{"source": "x/{name}.png", "width": 40, "height": 30, "proposals": [{{"box": [0, 0, {i}, 5]}}]}}'
        for i, name in enumerate("abc", 1)
    ]
    file.write_text("\n".join(lines))
    found = proposals_of(load_dataset(root), FileConfig(path=file), tmp_path / "cache")
    assert [proposals.boxes[0, 2] for proposals in found] == [1, 2, 3]
    assert not (tmp_path / "cache").exists()
    file.write_text("\n".join(lines[:2]))
    with pytest.raises(DetkitError, match=r"has no line for the picture .*c\.png"):
        proposals_of(load_dataset(root), FileConfig(path=file), None)


def test_a_picture_that_cannot_be_read(root: Path, tmp_path: Path) -> None:
    data = load_dataset(root)
    (root / "JPEGImages/b.png").write_bytes(b"text")
    with pytest.raises(DetkitError, match=r"b\.png: is not a picture"):
        proposals_of(data, GRID, tmp_path / "cache")
    (root / "JPEGImages/b.png").unlink()
    with pytest.raises(DetkitError, match=r"b\.png: cannot be read"):
        proposals_of(data, GRID, tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(DetkitError, match="cannot be written"):
        proposals_of(data, GRID, tmp_path / "file")
