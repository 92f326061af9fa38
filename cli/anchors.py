"""`detkit anchors`: find the anchors that fit a data set, or judge those of a config."""

from pathlib import Path
from typing import Annotated

import typer


def anchors_command(
    data: Annotated[
        str | None,
        typer.Option(help="A COCO, VOC or YOLO folder, a COCO .json, a .yaml that describes one, or sample:shapes."),
    ] = None,
    kmeans: Annotated[
        bool, typer.Option("--kmeans", help="Find anchors; without it those of --config are judged.")
    ] = False,
    k: Annotated[
        str | None,
        typer.Option(
            "-k",
            metavar="K",
            help="Anchors to find, or a range as 1-15.",
            show_default="as many as the config has, or 9",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of the network's input, which pictures are fitted into.",
            show_default="the config's, or 416",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The part of the data.", show_default="the training split")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same anchors.")] = 0,
    config: Annotated[
        str | None,
        typer.Option(help="A config whose preprocessing and scales count: a name, .yaml, checkpoint or Darknet .cfg."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG", help="A config (.yaml) to write the anchors into, or a new file for a copy of --config."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A .png for a picture of boxes and anchors, or of the curve over k.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Find the anchors that fit the boxes of a data set best, or judge those of a config."""
    from detkit.errors import DetkitError

    if not kmeans:
        for option, value in (("-k", k), ("--write", write)):
            if value is not None:
                raise DetkitError(f"{option} belongs to --kmeans, which finds anchors")
    if data is None or not (kmeans or config):
        missing = "--data is missing" if data is None else "--kmeans or --config is missing"
        raise DetkitError(
            f"{missing}: `detkit anchors --kmeans --data PATH` finds anchors for a data set, "
            "`detkit anchors --config CONFIG --data PATH` judges those that a config has"
        )
    if plot is not None and plot.suffix != ".png":
        raise DetkitError(f"--plot {plot}: expected the name of a .png file")
    counts = _counts(k) if k is not None else []
    if write is not None and len(counts) > 1:
        raise DetkitError(f"-k {k}: a range gives a curve; --write needs one number of anchors")

    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from detkit.anchors.config import prepare, write_anchors
    from detkit.anchors.plots import plot_outcome
    from detkit.anchors.report import print_outcome
    from detkit.anchors.run import run
    from detkit.data.dataset import Wanted, load_dataset
    from detkit.evaluate.plots import to_png
    from detkit.files import write_atomically

    messages = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    setup = prepare(config, write, size)
    dataset = load_dataset(data, split or Wanted.LEARNED)
    for note in dataset.notes:
        messages.print(note)
    with Progress(console=messages, disable=not messages.is_terminal, transient=True) as progress:
        task = progress.add_task("finding anchors", total=1)
        outcome = run(
            dataset, setup, counts, judged=not kmeans, seed=seed, advance=lambda share: progress.advance(task, share)
        )
    if plot is not None:
        write_atomically(plot, to_png(plot_outcome(outcome)))
    if write is not None and setup.path is not None:
        write_anchors(setup.path, write, outcome.shown.scales)
    if json:
        print(dumps(outcome.to_json()))
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    print_outcome(outcome, console)
    for path in filter(None, (plot, write)):
        console.print(f"written to {path}")
    if write is not None:
        console.print("weights that were trained with other anchors do not fit these: train the detector with them")


def _counts(text: str) -> list[int]:
    """Read `9` or `1-15`."""
    from detkit.errors import DetkitError

    first, dash, last = text.partition("-")
    if not (
        first.isdecimal() and (last.isdecimal() if dash else True) and 1 <= int(first) <= int(last or first) <= 100
    ):
        raise DetkitError(f"-k {text}: expected a number from 1 to 100, or a range of them as 1-15")
    return list(range(int(first), int(last or first) + 1))
