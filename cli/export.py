"""`detkit export`: write a model for elsewhere."""

import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Weights


def export_command(
    model: Annotated[
        str, typer.Argument(help="A checkpoint (.safetensors), a Darknet .cfg, or a config.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option(help="The file to write, which must not exist yet: NAME.safetensors, NAME.cfg or NAME.pt.")
    ],
    weights: Weights = None,
    form: Annotated[
        Literal["checkpoint", "darknet", "torchvision"],
        typer.Option(
            "--format",
            help="One checkpoint; Darknet's NAME.cfg, NAME.weights and NAME.names; or a state dict for torchvision.",
        ),
    ] = "checkpoint",
    half: Annotated[
        bool, typer.Option("--half", help="Store a checkpoint's matrices and kernels as float16: half the size.")
    ] = False,
    truncate: Annotated[
        str | None,
        typer.Option(
            metavar="R1,R2",
            help="Keep so many singular values of each fully connected layer of Fast or Faster R-CNN.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model with its class names and weights: as one checkpoint, as Darknet's files, or for torchvision."""
    from detkit.errors import DetkitError
    from detkit.export.checkpoint import export_checkpoint
    from detkit.export.darknet import export_darknet
    from detkit.export.torchvision import export_torchvision

    suffix = {"checkpoint": ".safetensors", "darknet": ".cfg", "torchvision": ".pt"}[form]
    if out.suffix != suffix:
        raise DetkitError(f"--out {out}: the name ends in {suffix} with --format {form}")
    if truncate is not None and not re.fullmatch(r"[0-9]+(,[0-9]+)*", truncate):
        raise DetkitError(f"--truncate {truncate}: expected whole numbers such as 1024,256")
    if (half or truncate) and form != "checkpoint":
        raise DetkitError(f"{'--half' if half else '--truncate'}: is for checkpoints, not for --format {form}")
    if form != "darknet" and out.exists():
        raise DetkitError(f"--out {out}: exists already; name a file that does not")
    written = [out]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)
        if form == "darknet":
            for line in export_darknet(out, model, weights):
                print(f"note: {line}", file=sys.stderr)
            written += [out.with_suffix(".weights"), out.with_suffix(".names")]
        elif form == "checkpoint":
            export_checkpoint(
                out, model, weights, half=half, truncate=[int(rank) for rank in (truncate or "").split(",") if rank]
            )
        else:
            theirs = export_torchvision(out, model, weights)
            print(f"note: its layers are those of torchvision.models.detection.{theirs}", file=sys.stderr)
    for file in written:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
