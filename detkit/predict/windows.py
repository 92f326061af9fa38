"""The search of a sliding-window detector as a moving picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from detkit.detectors.sliding_window import SlidingWindow
from detkit.draw import draw
from detkit.errors import DetkitError
from detkit.model import Model
from detkit.ops.nms import Selection
from detkit.predict.sources import Source
from detkit.structures import Detections

_FRAMES = 60  # of the search; one more shows what is reported
_MILLISECONDS, _AT_THE_END = 100, 3000
_LONGEST = 480  # pixels
_LOOKING, _HOT = (255, 255, 255), (255, 184, 0)


def require_windows(model: Model, sources: Sequence[Source] = ()) -> None:
    """Raise DetkitError when a model finds objects without looking through windows, or a source is a video."""
    if not isinstance(model.detector, SlidingWindow):
        raise DetkitError(
            f"--show-windows: {model.name} finds objects without sliding windows; take a model of the detector "
            "sliding_window, or leave the option out"
        )
    for source in sources:
        if source.is_video:
            raise DetkitError(f"--show-windows: {source.name} is a video; a search is shown of pictures alone")


@torch.inference_mode()
def search_animation(model: Model, picture: NDArray[np.uint8], found: Detections, selection: Selection) -> bytes:
    """Return a GIF of a search: windows in their order, of which those that enter the selection stay, then the report.

    picture [H, W, 3] RGB uint8; found: its detections. Windows enter that show a class of the selection's with a
    probability above its score. The picture is searched anew. A frame stands for the next 60th of all windows and shows
    the last of them. Raises DetkitError for a model without windows.
    """
    require_windows(model)
    batch, (placement,) = model.preprocess([picture])
    with model.autocast():
        raw = model.detector(*model.detector.inputs(batch.to(model.device)))
    boxes = placement.to_picture(raw.boxes.cpu())
    labels = list(selection.labels or range(len(model.classes)))
    hot = (raw.logits[0].softmax(-1)[:, labels].amax(-1) > selection.score).cpu()
    canvas = Image.fromarray(picture)
    scale = min(1, _LONGEST / max(canvas.size))
    small = canvas.resize([max(1, round(side * scale)) for side in canvas.size], Image.Resampling.BILINEAR)
    ends = torch.linspace(0, len(boxes), min(_FRAMES, len(boxes)) + 1).round().long()[1:].tolist()
    frames = [_frame(small, boxes[:end][hot[:end]] * scale, boxes[end - 1] * scale) for end in ends]
    result = Image.fromarray(draw(picture, found, model.classes)).resize(small.size, Image.Resampling.BILINEAR)
    # One table of colours, so that a frame holds no more than what has changed; few pixels are hot, so more are added.
    legend = np.full((small.height // 8 + 1, small.width, 3), _HOT, np.uint8)
    colours = Image.fromarray(np.concatenate([frames[-1], result, legend])).quantize(255)
    first, *others = [frame.quantize(palette=colours, dither=Image.Dither.NONE) for frame in [*frames, result]]
    file = io.BytesIO()
    durations = [_MILLISECONDS] * len(others) + [_AT_THE_END]
    first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return file.getvalue()


def _frame(picture: Image.Image, hot: Tensor, looking: Tensor) -> Image.Image:
    frame = picture.copy()
    pen = ImageDraw.Draw(frame)
    for box in hot.round().tolist():
        pen.rectangle(box, outline=_HOT)
    pen.rectangle(looking.round().tolist(), outline=_LOOKING, width=2)
    return frame
