"""`detkit export`: write a model for elsewhere."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Weights


def export_command(
    model: Annotated[
        str, typer.Argument(help="A checkpoint (.safetensors), a Darknet .cfg, or a config.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="The file to write, which must not exist yet: NAME.safetensors, or NAME.cfg.")
    ],
    weights: Weights = None,
    form: Annotated[
        Literal["checkpoint", "darknet"],
        typer.Option("--format", help="One checkpoint, or Darknet's NAME.cfg, NAME.weights and NAME.names."),
    ] = "checkpoint",
    half: Annotated[
        bool, typer.Option("--half", help="Store a checkpoint's matrices and kernels as float16: half the size.")
    ] = False,
) -> None:
    """Write a model with its class names and weights: as one checkpoint, or as Darknet's files."""
    from detkit.errors import DetkitError
    from detkit.export.checkpoint import export_checkpoint
    from detkit.export.darknet import export_darknet

    suffix = {"checkpoint": ".safetensors", "darknet": ".cfg"}[form]
    if out.suffix != suffix:
        raise DetkitError(f"--out {out}: the name ends in {suffix} with --format {form}")
    if form == "darknet":
        if half:
            raise DetkitError("--half: is for checkpoints; a .weights file holds float32 only")
        for line in export_darknet(out, model, weights):
            print(f"note: {line}", file=sys.stderr)
        written = [out, out.with_suffix(".weights"), out.with_suffix(".names")]
    else:
        if out.exists():
            raise DetkitError(f"--out {out}: exists already; name a file that does not")
        export_checkpoint(out, model, weights, half=half)
        written = [out]
    for file in written:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
