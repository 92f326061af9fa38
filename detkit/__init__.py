"""detkit: the classical object detectors, paper-faithful and trainable, on any modern backbone.

The public names below are loaded on first use, so that importing detkit costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from detkit.errors import DetkitError as DetkitError
    from detkit.model import Model as Model
    from detkit.model import load as load
    from detkit.ops.nms import Selection as Selection
    from detkit.preprocess import Preprocess as Preprocess
    from detkit.structures import Batch as Batch
    from detkit.structures import Candidates as Candidates
    from detkit.structures import Detections as Detections
    from detkit.structures import Target as Target

_PUBLIC = {
    "Batch": "detkit.structures",
    "Candidates": "detkit.structures",
    "Detections": "detkit.structures",
    "DetkitError": "detkit.errors",
    "Model": "detkit.model",
    "Preprocess": "detkit.preprocess",
    "Selection": "detkit.ops.nms",
    "Target": "detkit.structures",
    "load": "detkit.model",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'detkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
