"""Writing files so that a reader finds them whole or not at all."""

import os
import tempfile
from pathlib import Path

from detkit.errors import DetkitError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file aside and rename it into place; a failure leaves what was there and names the reason."""
    content = data.encode() if isinstance(data, str) else data
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            aside = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except OSError as error:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise DetkitError(f"{path}: cannot be written: {error.strerror or error}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
