"""`detkit export`: write a model for elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Weights


def export_command(
    model: Annotated[
        str, typer.Argument(help="A checkpoint (.safetensors), a Darknet .cfg, or a config.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The file to write, which must not exist yet: NAME.safetensors.")],
    weights: Weights = None,
    half: Annotated[bool, typer.Option("--half", help="Store matrices and kernels as float16: half the size.")] = False,
) -> None:
    """Write a model as one checkpoint that holds its config, class names and weights."""
    from detkit.errors import DetkitError
    from detkit.export.checkpoint import export_checkpoint

    if out.suffix != ".safetensors":
        raise DetkitError(f"--out {out}: a checkpoint's name ends in .safetensors")
    if out.exists():
        raise DetkitError(f"--out {out}: exists already; name a file that does not")
    export_checkpoint(out, model, weights, half=half)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
