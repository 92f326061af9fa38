"""`detkit train`: teach a detector to find, or a classifier to name, the objects of a data set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Task


def train_command(
    config: Annotated[
        str | None, typer.Argument(help="A shipped config's name or a .yaml file.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A COCO, VOC or YOLO folder, a COCO .json, folders of pictures by class, a .csv of paths and labels, "
            "a .yaml that describes one, or sample:shapes. A classifier learns each object with a box as a picture."
        ),
    ] = None,
    task: Task = None,
    split: Annotated[
        str | None, typer.Option(help="The part of the data to learn.", show_default="the training split")
    ] = None,
    val_split: Annotated[
        str | None, typer.Option(help="The part to evaluate on.", show_default="the validation or test split")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, as train.epochs=30; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A new or empty folder for the run.", show_default="runs/train/<n>, the next free number"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a file, or a config that comes with its own; layers that know other classes "
            "start anew."
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run of this folder after its last whole epoch.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto, or as the run was started")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine, each on its own GPU.", show_default="1")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Machines; start the command on each with torchrun.", show_default="1")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the result and nothing else on stdout.")
    ] = False,
) -> None:
    """Train a detector or a classifier, or go on with a run that was stopped.

    Exits with 0 when the training is over, 2 when it cannot begin or go on, 130 when it is interrupted.
    """
    import sys
    from json import dumps

    from detkit.errors import DetkitError

    if resume is None and not config:
        from detkit.config import shipped_configs

        configs = shipped_configs()
        width = max(map(len, configs))
        lines = [f"  {name:<{width}}  {_first_comment(path)}" for name, path in configs.items()]
        raise DetkitError(
            "CONFIG is missing: `detkit train CONFIG --data PATH` trains, `detkit train --resume RUN` goes on\n\n"
            "the configs that come with detkit:\n" + "\n".join(lines)
        )
    if data == "" or (resume is None and data is None):
        raise DetkitError(
            f"--data is missing: name the pictures and boxes to learn, as in `detkit train {config} --data PATH`"
        )
    given: dict[str, Any] = {
        "data": data,
        "split": split,
        "val_split": val_split,
        "device": device,
        "devices": devices,
        "nodes": nodes,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        for option, value in (("CONFIG", config), ("--out", out), ("--weights", weights)):
            if value is not None:
                raise DetkitError(f"{option} belongs to a new run; --resume goes on with the one in {resume}")

    from rich.console import Console

    from detkit.classify.model import require_task
    from detkit.train.run import Job, Trained, train
    from detkit.train.run import resume as go_on
    from detkit.train.task import headlines

    require_task(task, config if resume is None else resume / "config.yaml")
    console = Console(stderr=True)
    trained: Trained | None
    try:
        if resume is not None:
            trained = go_on(resume, settings=settings or (), changes=given, console=console)
        else:
            assert config is not None
            job = Job(**given)
            trained = train(config, job, settings=settings or (), out=out, weights=weights, console=console)
    except KeyboardInterrupt as stop:
        if stop.args:
            console.print(f"stopped; `detkit train --resume {stop}` goes on after the last whole epoch", soft_wrap=True)
        sys.exit(130)
    if trained is None:  # not the first of several processes
        return
    if json:
        print(dumps(trained.to_json()))
        return
    print(f"{'ended early' if trained.stopped_early else 'done'}: {trained.folder}")
    if trained.best is not None:
        print(f"best epoch {trained.best['epoch']}: {', '.join(headlines(trained.best))}")
    verb = "detect" if "AP" in trained.last else "classify"
    file = trained.folder / f"{'last' if trained.best is None else 'best'}.safetensors"
    print(f"{verb} with it: detkit {verb} PICTURE --model {file}")


def _first_comment(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip()
