"""Makes a data set of what scikit-image ships: 100 faces of Labeled Faces in the Wild, and pictures without faces.

    python tools/lfw_faces.py lfw/
    detkit train sliding_window_fasternet_faces --data lfw/

Faces are grey and 25 × 25, and so are 100 pieces of what lay around them (`skimage.data.lfw_subset`; Huang et al.,
2007, Labeled Faces in the Wild, Technical Report 07-49, University of Massachusetts, Amherst). A face fills its
picture, so its box is all of it; a piece of background has none. Every fifth of each is in the split `val`, the others
in `train`, which also has pieces of 256 × 256 of photographs without a face, for hard negatives to be found in. The
folder is a COCO set:

  annotations/instances_<split>.json
  images/<split>/face_000.png, …, background_000.png, …, coffee_0.png, …
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from detkit.errors import DetkitError
from detkit.files import write_atomically
from detkit.predict.runs import require_free

_FACES = 100  # the first so many pictures of lfw_subset; background follows
# fmt: off
_PHOTOGRAPHS = (
    "brick", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "moon", "page", "rocket",
    "stereo_motorcycle", "text",
)
# fmt: on
_PIECE = 256


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder")
    out: Path = parser.parse_args(arguments).out
    try:
        require_free(out)
        counts = make_faces(out)
    except DetkitError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{split}: {number} pictures" for split, number in counts.items()))


def make_faces(out: Path) -> dict[str, int]:
    """Write the data set into a folder, and return the pictures of each split."""
    crops = np.round(255 * data.lfw_subset()).astype(np.uint8)
    named = [(f"face_{i:03d}" if i < _FACES else f"background_{i - _FACES:03d}", crop) for i, crop in enumerate(crops)]
    splits = {"train": [row for i, row in enumerate(named) if i % 5] + list(_pieces()), "val": named[::5]}
    for split, pictures in splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, pixels) in enumerate(pictures, 1):
            height, width = pixels.shape[:2]
            _, encoded = cv2.imencode(".png", pixels)
            write_atomically(out / "images" / split / f"{name}.png", encoded.tobytes())
            images.append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
            if name.startswith("face"):
                box = {"bbox": [0, 0, width, height], "area": width * height, "iscrowd": 0}
                annotations.append({"id": number, "image_id": number, "category_id": 1, **box})
        tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "face"}]}
        write_atomically(out / "annotations" / f"instances_{split}.json", json.dumps(tree))
    return {split: len(pictures) for split, pictures in splits.items()}


def _pieces() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The photographs in grey, in pieces that lie side by side, with their names."""
    for name in _PHOTOGRAPHS:
        picture = getattr(data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture  # of a stereo pair the left one
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
        corners = product(*(range(0, max(1, side - _PIECE + 1), _PIECE) for side in grey.shape))
        for number, (top, left) in enumerate(corners):
            yield f"{name}_{number}", grey[top : top + _PIECE, left : left + _PIECE]


if __name__ == "__main__":
    main()
