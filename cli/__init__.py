"""The command line: every command parses, calls one function of detkit, and prints."""

import sys
from typing import Annotated

import typer

from detkit import __version__
from detkit.errors import DetkitError

from .detect import detect_command
from .eval import eval_command
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
app.command("eval")(eval_command)
app.command("train")(train_command)


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
    try:
        app()
    except DetkitError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
