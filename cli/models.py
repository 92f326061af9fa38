"""`detkit models`: what detkit can build, and what it costs."""

from typing import Annotated

import typer


def models_command(
    filter_: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="TEXT",
            help="Only what has this in its name, kind or paper; timm/TEXT looks among the models of timm.",
        ),
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list and nothing else.")] = False,
) -> None:
    """List the detectors, backbones and configs, with parameters, GFLOPs, strides and weights."""
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console

    from detkit.models import list_models, print_models

    entries = list_models(filter_)
    if json:
        print(dumps([asdict(entry) for entry in entries]))
    else:
        print_models(entries, Console(highlight=False, markup=False))
