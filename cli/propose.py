"""`detkit propose`: boxes where objects may be, before any network has looked."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import MaxPixels


def propose_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="A picture, folder, glob in quotes ('pics/**/*.jpg'), video, - (a picture on standard input) or "
            "sample:NAME.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Literal["selective-search", "windows", "grid", "file"], typer.Option(help="Where the boxes come from.")
    ] = "selective-search",
    mode: Annotated[
        Literal["single", "fast", "quality"] | None,
        typer.Option(help="Groupings that selective search combines: 1, 8 or 80.", show_default="fast"),
    ] = None,
    max_proposals: Annotated[
        int | None, typer.Option(min=1, help="Keep the best so many of a picture.", show_default="all")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the random part of the order.", show_default="0")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Proposals for --method file: JSON lines as --json prints them.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting of the method, as min_side=8; repeatable."),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,…",
            help="What to save of SOURCE, separated by commas: image (with boxes drawn), json (proposals.jsonl).",
            show_default="image; with --json nothing, unless --out is given",
        ),
    ] = None,
    drawn: Annotated[int, typer.Option("--draw", min=1, help="Draw the best so many boxes.")] = 100,
    max_pixels: MaxPixels = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="In place of SOURCE: a data set, whose proposals are kept in --cache and compared with its objects."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The part of the data.", show_default="the validation split")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the proposals of --data.", show_default="runs/proposals")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Pictures of --data to work on at once.", show_default="one per core")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new or empty folder for the results.", show_default="runs/propose/<n>, the next free number"
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else: a line per picture, or the report of --data.")
    ] = False,
) -> None:
    """Propose boxes where objects may be: by selective search, windows, a grid, or from a file.

    Exits with 0 when all is done, 1 when some pictures could not be read (the others are done), 2 when nothing could.
    """
    from detkit.config import override, validate
    from detkit.errors import DetkitError
    from detkit.regions import METHODS

    if bool(sources) == (data is not None):
        raise DetkitError("pass either SOURCE, pictures to propose boxes in, or --data, a data set")
    for option, passed, owner in (
        ("--mode", mode is not None, "selective-search"),
        ("--file", file is not None, "file"),
    ):
        if passed and method != owner:
            raise DetkitError(f"{option} belongs to --method {owner}, not to {method}")
    if method == "file" and file is None:
        raise DetkitError("--method file: pass the file of proposals as --file")
    if seed is not None and "seed" not in METHODS[method].model_fields:
        raise DetkitError(f"--seed: there is nothing random in --method {method}")
    given: dict[str, Any] = {"mode": mode, "max_proposals": max_proposals, "seed": seed, "path": file}
    tree = {"method": method} | {key: value for key, value in given.items() if value is not None}
    config = validate(METHODS[method], override(tree, settings or ()), f"--method {method}")
    if data is None:
        for option, value in (("--split", split), ("--cache", cache), ("--workers", workers)):
            if value is not None:
                raise DetkitError(f"{option} belongs to --data")
        _propose_sources(sources or [], config, save, drawn, out, max_pixels, json)
    else:
        if save is not None:
            raise DetkitError("--save belongs to SOURCE; of --data the report and the cache are kept")
        _propose_dataset(data, split, config, cache, workers, out, max_pixels, json)


def _propose_sources(
    sources: list[str], config: Any, save: str | None, drawn: int, out: Path | None, max_pixels: int | None, json: bool
) -> None:
    import sys
    import warnings

    from detkit.data.picture import MAX_PIXELS
    from detkit.predict.propose import proposals_line, propose_sources
    from detkit.predict.sources import Failure, Frame
    from detkit.regions import Proposals

    def show(frame: Frame, proposals: Proposals) -> None:
        if json:
            print(proposals_line(frame, proposals), flush=True)
        else:
            height, width = frame.picture.shape[:2]
            number = "" if frame.index is None else f" frame {frame.index}"
            print(f"{frame.source.name}{number} {width}×{height}: {len(proposals)} proposals", flush=True)

    def complain(failure: Failure) -> None:
        print(f"error: {failure.error}", file=sys.stderr)

    if save is None:
        save = "" if json and out is None else "image"
    kinds = [kind.strip() for kind in save.split(",") if kind.strip()]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        summary = propose_sources(
            sources, config, show, complain, save=kinds, out=out, drawn=drawn, max_pixels=max_pixels or MAX_PIXELS
        )
    if summary.folder is not None:
        print(f"saved to {summary.folder}", file=sys.stderr if json else sys.stdout)
    if summary.failures:
        print(f"{len(summary.failures)} of {summary.sources} sources could not be read", file=sys.stderr)
        raise typer.Exit(1 if summary.pictures else 2)


def _propose_dataset(
    data: str,
    split: str | None,
    config: Any,
    cache: Path | None,
    workers: int | None,
    out: Path | None,
    max_pixels: int | None,
    json: bool,
) -> None:
    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from detkit.data.dataset import load_dataset
    from detkit.data.picture import MAX_PIXELS
    from detkit.data.proposals import CACHE, proposals_of
    from detkit.evaluate.proposals import cover, print_coverage
    from detkit.predict.runs import require_free, run_folder

    messages = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    dataset = load_dataset(data, split)
    for note in dataset.notes:
        messages.print(note)
    if out is not None:
        require_free(out)
    cache = cache or CACHE
    there = 0
    with run_folder("propose", out) as folder:
        with Progress(console=messages, disable=not messages.is_terminal) as progress:
            task = progress.add_task("proposing", total=len(dataset))

            def advance(cached: bool) -> None:
                nonlocal there
                there += cached
                progress.advance(task)

            proposals = proposals_of(
                dataset, config, cache, workers=workers, max_pixels=max_pixels or MAX_PIXELS, advance=advance
            )
        coverage = cover(dataset, proposals)
        coverage.save(folder, f"Proposals of {data}: {config.method}")
    kept = {"made": len(dataset) - there, "from_cache": there, "cache": str(cache), "folder": str(folder)}
    if json:
        print(dumps({"data": data, "split": dataset.split, "settings": config.model_dump(mode="json")} | kept
                    | coverage.to_json()))  # fmt: skip
        return
    print_coverage(coverage, Console(highlight=False))
    print(f"\npictures: {len(dataset)} ({there} from {cache}), objects: {coverage.objects}; saved to {folder}")
