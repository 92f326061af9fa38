"""The generated detection data set `sample:shapes`: textured shapes on textured ground.

A picture depends on (seed, split, index) alone, so pictures are drawn when they are read and nothing is stored. Shapes
of 8 to 50 % of the shorter side stand at any angle, partly hide each other, and may leave the picture a little; a box
spans the whole shape within the picture, hidden parts included, in whole pixels. One picture in twenty is empty.

Shapes: H × W the picture, P × Q a window of it, V corners of an outline. Colours are RGB 0 … 1.
"""

from __future__ import annotations

import colorsys
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from detkit.config import Strict, validate
from detkit.data.sample import Dataset, Objects, Picture, Sample, make_samples
from detkit.errors import DetkitError, nearest
from detkit.files import write_atomically

Floats = NDArray[np.float64]

CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")


class Shapes(Strict):
    """What is generated: `pictures` for training, a quarter as many for validation and for test, and their longer side.

    The shorter side is 66 to 100 % of the longer, upright or lying.
    """

    seed: int = Field(0, ge=0)
    pictures: int = Field(200, ge=1, le=100_000)
    size: int = Field(320, ge=64, le=4096)

    @property
    def splits(self) -> dict[str, int]:
        """The number of pictures of each split."""
        fewer = max(1, self.pictures // 4)
        return {"train": self.pictures, "val": fewer, "test": fewer}

    def random(self, split: str, index: int, purpose: int) -> np.random.Generator:
        """Return the random numbers for one purpose in one picture."""
        return np.random.default_rng([self.seed, list(self.splits).index(split), index, purpose])


class Shape(NamedTuple):
    """One object: its label, centre x, y and radius in pixels, angle in radians."""

    label: int
    x: float
    y: float
    radius: float
    angle: float


def parse_shapes(name: str) -> Shapes:
    """Read `sample:shapes?seed=3&pictures=200&size=320`; every parameter may be left out."""
    base, _, query = name.partition("?")
    if base != "sample:shapes":
        hint = nearest(base, ["sample:shapes"])
        raise DetkitError(f"{name}: there is no such data set{hint} (there is sample:shapes)")
    return validate(Shapes, dict(parse_qsl(query, keep_blank_values=True)), name)


def load_shapes(shapes: Shapes, split: str) -> Dataset:
    """Return a split as a data set whose pictures are drawn when they are read."""
    pictures, index_of, boxes, labels = [], [], [], []
    names = list(shapes.splits)
    first_id = sum(shapes.splits[name] for name in names[: names.index(split)])  # no id stands in two splits
    for index in range(shapes.splits[split]):
        (height, width), things = lay_out(shapes, split, index)
        pictures.append(Picture(first_id + index, Path(f"{split}_{index:06d}.png"), height, width))
        index_of += [index] * len(things)
        boxes += [_box(thing, height, width) for thing in things]
        labels += [thing.label for thing in things]
    objects = Objects(
        picture=np.array(index_of, np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        crowd=np.zeros(len(labels), bool),
        difficult=np.zeros(len(labels), bool),
    )
    samples, notes = make_samples(pictures, objects, lambda row: f"sample:shapes, {split}, picture {index_of[row]}")
    samples = [replace(sample, draw=partial(draw, shapes, split, index)) for index, sample in enumerate(samples)]
    source = Path(f"sample:shapes?seed={shapes.seed}&pictures={shapes.pictures}&size={shapes.size}")
    return Dataset(source, split, CLASSES, samples, tuple(range(1, len(CLASSES) + 1)), notes)


def lay_out(shapes: Shapes, split: str, index: int) -> tuple[tuple[int, int], list[Shape]]:
    """Return a picture's (height, width) and its objects from back to front; nothing is drawn."""
    rng = shapes.random(split, index, 0)
    short = round(shapes.size * rng.uniform(0.66, 1))
    height, width = (shapes.size, short) if rng.random() < 0.5 else (short, shapes.size)
    things: list[Shape] = []
    wanted = 0 if rng.random() < 0.05 else rng.integers(1, 9)
    for _ in range(10 * wanted):
        radius = short / 2 * math.exp(rng.uniform(math.log(0.08), math.log(0.5)))
        margin = 0.4 * radius
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        thing = Shape(int(rng.integers(len(CLASSES))), x, y, radius, rng.uniform(0, 2 * math.pi))
        # Circles about the shapes may overlap by 45 % of the smaller one's diameter.
        if all(
            math.hypot(x - other.x, y - other.y) > radius + other.radius - 0.9 * min(radius, other.radius)
            for other in things
        ):
            things.append(thing)
        if len(things) == wanted:
            break
    return (height, width), things


def draw(shapes: Shapes, split: str, index: int) -> NDArray[np.uint8]:
    """Draw a picture [H, W, 3]."""
    (height, width), things = lay_out(shapes, split, index)
    rng = shapes.random(split, index, 1)
    picture = _ground(rng, height, width)
    light = rng.uniform(0, 2 * math.pi)
    for thing in things:
        _paint(rng, picture, thing, light)
    falloff = np.cos(np.linspace(-1, 1, height))[:, None, None] * np.cos(np.linspace(-1, 1, width))[None, :, None]
    picture *= 1 - rng.uniform(0, 0.5) * (1 - falloff)
    picture += rng.normal(0, rng.uniform(0.01, 0.03), (height, width, 1))
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


def write_shapes(folder: Path, layout: Literal["coco", "voc", "yolo"], shapes: Shapes | None = None) -> None:
    """Write all splits, pictures as PNG, into a new or empty folder as a COCO, VOC or YOLO data set."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DetkitError(f"{folder}: exists already; name a new or an empty folder")
    shapes = shapes or Shapes()
    for split in shapes.splits:
        data = load_shapes(shapes, split)
        images = folder / ("JPEGImages" if layout == "voc" else f"images/{split}")
        for sample in data.samples:
            _, png = cv2.imencode(".png", sample.read()[:, :, ::-1])
            write_atomically(images / sample.path.name, png.tobytes())
            if layout == "voc":
                write_atomically(folder / "Annotations" / f"{sample.path.stem}.xml", _voc_xml(sample))
            if layout == "yolo":
                write_atomically(folder / "labels" / split / f"{sample.path.stem}.txt", _yolo_lines(sample))
        if layout == "coco":
            write_atomically(folder / "annotations" / f"instances_{split}.json", json.dumps(data.ground_truth()))
        if layout == "voc":
            stems = "".join(f"{sample.path.stem}\n" for sample in data.samples)
            write_atomically(folder / "ImageSets" / "Main" / f"{split}.txt", stems)
    if layout == "voc":
        write_atomically(folder / "data.yaml", yaml.safe_dump({"format": "voc", "classes": list(CLASSES)}))
    if layout == "yolo":
        tree = {split: f"images/{split}" for split in shapes.splits} | {"names": list(CLASSES)}
        write_atomically(folder / "data.yaml", yaml.safe_dump(tree, sort_keys=False))


def _voc_xml(sample: Sample) -> str:
    lines = [
        "<annotation>",
        f"  <filename>{sample.path.name}</filename>",
        f"  <size><width>{sample.width}</width><height>{sample.height}</height><depth>3</depth></size>",
    ]
    for box, label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        bndbox = "".join(f"<{side}>{value:.0f}</{side}>" for side, value in sides)
        lines.append(
            f"  <object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox>{bndbox}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def _yolo_lines(sample: Sample) -> str:
    w, h = sample.width, sample.height
    rows = zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)
    return "".join(
        f"{label} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}\n"
        for label, (x1, y1, x2, y2) in rows
    )


def _polar(*radius: float) -> Floats:
    """Corners at equal angles whose radii repeat, [V, 2]."""
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    corners: Floats = np.stack([np.cos(angle), np.sin(angle)], 1) * np.array(radius)[:, None]
    return corners


_CROSS = np.array(
    [(1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1), (-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)]
)
_OUTLINES = {
    "cross": _CROSS / math.hypot(1, 3),
    "square": _polar(1, 1, 1, 1),
    "star": _polar(*[1, 0.45] * 5),
    "triangle": _polar(1, 1, 1),
}


def _outline(thing: Shape) -> Floats | None:
    """Corners [V, 2] in pixels, or None for what is round."""
    corners = _OUTLINES.get(CLASSES[thing.label])
    if corners is None:
        return None
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    rotated: Floats = corners @ np.array([[cos, sin], [-sin, cos]]) * thing.radius + (thing.x, thing.y)
    return rotated


def _box(thing: Shape, height: int, width: int) -> list[float]:
    corners = _outline(thing)
    if corners is None:
        corners = np.array([(thing.x + reach, thing.y + reach) for reach in (-thing.radius, thing.radius)])
    low, high = np.floor(corners.min(0)), np.ceil(corners.max(0))
    return [*low.clip(0).tolist(), *np.minimum(high, (width, height)).tolist()]


def _distance(thing: Shape, x: Floats, y: Floats) -> Floats:
    """Signed distance in pixels of points to the edge of a shape, negative inside."""
    corners = _outline(thing)
    if corners is None:
        centre = np.hypot(x - thing.x, y - thing.y)
        if CLASSES[thing.label] == "circle":
            return centre - thing.radius
        return np.abs(centre - 0.74 * thing.radius) - 0.26 * thing.radius
    nearest_edge, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, 0), strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clip(0, 1)
        nearest_edge = np.minimum(nearest_edge, np.hypot(px - along * ex, py - along * ey))
        inside ^= ((ay > y) != (by > y)) & ((ex * py < ey * px) == (by > ay))  # a ray to the left crosses this edge
    return np.where(inside, -nearest_edge, nearest_edge)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Floats:
    """Smooth noise 0 … 1 whose spots are about `cell` pixels wide, with finer detail laid over."""
    total: Floats = np.zeros((height, width))
    for octave in range(4):
        spot = max(1.0, cell / 2**octave)
        grid = rng.random((math.ceil(height / spot) + 1, math.ceil(width / spot) + 1))
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.clip(total / 1.875, 0, 1)  # 1 + 1/2 + 1/4 + 1/8


def _pattern(rng: np.random.Generator, u: Floats, v: Floats, spacing: float) -> Floats:
    """A texture 0 … 1 over coordinates in pixels: plain, stripes, checks, dots or speckle."""
    wave_u, wave_v = np.sin(u * 2 * np.pi / spacing), np.sin(v * 2 * np.pi / spacing)
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros(u.shape)
    if kind == 1:
        return _noise(rng, u.shape[0], u.shape[1], spacing)
    wave = {2: 4 * wave_u, 3: 6 * wave_u * wave_v, 4: 4 * (wave_u + wave_v - 0.6)}[int(kind)]
    texture: Floats = np.tanh(wave) / 2 + 0.5
    return texture


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def _ground(rng: np.random.Generator, height: int, width: int) -> Floats:
    side = max(height, width)
    first, second = (_colour(rng, (0.05, 0.5), (0.25, 0.85)) for _ in range(2))
    blend = _noise(rng, height, width, side * rng.uniform(0.1, 0.4))[..., None]
    picture = first + (second - first) * (3 * (blend - 0.5) + 0.5).clip(0, 1)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    picture *= 1 + rng.uniform(0, 0.25) * (_pattern(rng, u, v, side * rng.uniform(0.03, 0.2))[..., None] - 0.5)
    canvas = picture.astype(np.float32)
    for _ in range(rng.integers(0, 7)):  # twigs, which are no objects
        start, end = rng.random((2, 2)) * (width, height)
        colour = _colour(rng, (0.1, 0.9), (0.1, 0.9)).tolist()
        thickness = int(rng.integers(1, max(3, side // 60)))
        cv2.line(canvas, start.astype(int).tolist(), end.astype(int).tolist(), colour, thickness, cv2.LINE_AA)
    return np.asarray(canvas, np.float64)


def _paint(rng: np.random.Generator, picture: Floats, thing: Shape, light: float) -> None:
    """Lay a shape with its shadow over the picture, lit from the direction `light`."""
    reach = thing.radius * 1.3 + 4
    left, top = max(0, int(thing.x - reach)), max(0, int(thing.y - reach))
    window = picture[top : int(thing.y + reach) + 1, left : int(thing.x + reach) + 1]
    y, x = np.mgrid[top : top + window.shape[0], left : left + window.shape[1]] + 0.5
    toward_x, toward_y = math.cos(light), math.sin(light)

    drop, blur = 0.1 * thing.radius, 0.12 * thing.radius + 1
    shadow = _distance(thing, x + drop * toward_x, y + drop * toward_y)
    window *= 1 - 0.45 * (0.5 - shadow / (2 * blur)).clip(0, 1)[..., None]

    around = window.mean((0, 1))
    colour = max(
        (_colour(rng, (0.2, 0.95), (0.25, 1)) for _ in range(3)), key=lambda c: float(np.abs(c - around).sum())
    )
    other = (colour * rng.uniform(0.4, 0.8) + _colour(rng, (0, 0.6), (0, 1)) * 0.2).clip(0, 1)
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    u, v = (x - thing.x) * cos + (y - thing.y) * sin, (y - thing.y) * cos - (x - thing.x) * sin
    spacing = max(4.0, thing.radius * rng.uniform(0.25, 0.7))
    skin = colour + (other - colour) * _pattern(rng, u, v, spacing)[..., None]
    shade = 1 + 0.25 * ((x - thing.x) * toward_x + (y - thing.y) * toward_y) / thing.radius
    distance = _distance(thing, x, y)
    rim = 1 - 0.35 * (1.5 + distance / max(1.5, 0.05 * thing.radius)).clip(0, 1)
    cover = (0.5 - distance).clip(0, 1)[..., None]
    window += cover * (skin * (shade * rim)[..., None] - window)
