"""The command line: every command parses, calls one function of detkit, and prints."""

import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import Annotated

import typer

from detkit import __version__
from detkit.errors import DetkitError

from .anchors import anchors_command
from .benchmark import benchmark_command
from .classify import classify_command
from .detect import detect_command
from .eval import eval_command
from .export import export_command
from .models import models_command
from .propose import propose_command
from .train import train_command

app = typer.Typer(
    name="detkit",
    help="Detect objects with the classical detectors: paper-faithful, trainable, on any modern backbone.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("detect")(detect_command)
app.command("classify")(classify_command)
app.command("eval")(eval_command)
app.command("train")(train_command)
app.command("export")(export_command)
app.command("anchors")(anchors_command)
app.command("propose")(propose_command)
app.command("models")(models_command)
app.command("benchmark")(benchmark_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake of the user's is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except DetkitError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a folder without permission, a name that is too long, a full disk
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror or error}", err=True)
        # What is still in the buffer of a stdout that takes no more would fail once again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that nothing half-written stays."""
    raise KeyboardInterrupt
