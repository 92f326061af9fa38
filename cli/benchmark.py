"""`detkit benchmark`: how fast a model is here, and where the time goes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Compile, CudaGraphs, Device, Precision, Weights

if TYPE_CHECKING:
    from detkit.predict.benchmark import Ceilings, Row

_STAGES = ("decode picture", "preprocess", "forward", "decode boxes", "select", "write")


def benchmark_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint (.safetensors), a Darknet .cfg, or a config.",
            show_default="the detector of COCO's classes that comes with detkit",
        ),
    ] = None,
    weights: Weights = None,
    untrained: Annotated[
        bool,
        typer.Option(
            "--untrained", help="Give a config random weights; what boxes and selection take then says little."
        ),
    ] = False,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A picture, folder or glob in quotes; may be given several times.", show_default="two samples"
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,…", help="Pictures that go through the model at once.", show_default="1,8,64; on a CPU 1,8"
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the network's input in pixels.", show_default="the model's")
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    compiled: Compile = False,
    cuda_graphs: CudaGraphs = False,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="How long to measure each size of a batch.")] = 6,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure how fast a model is on this machine, and where the time goes.

    From picture files to annotated picture files, with the model's own selection. Latency is that of a batch that
    passes the stages one after the other; pictures/s are those of `detkit detect`, which reads and prepares a batch
    while another is computed. The forward is compared with what the device reaches in a product of large matrices and
    in a copy.
    """
    from json import dumps

    from rich.console import Console

    from detkit.model import load
    from detkit.predict.benchmark import SAMPLES, benchmark, describe, measure_ceilings

    messages = Console(stderr=True, highlight=False, markup=False)
    batch_sizes = _numbers(batch) if batch is not None else None
    detector = load(
        model,
        weights,
        device=device,
        precision=precision,
        settings=[f"preprocess.size=[{size}, {size}]"] if size else [],
        compiled=compiled,
        cuda_graphs=cuda_graphs,
        untrained=untrained,
    )
    sizes = batch_sizes or ([1, 8] if detector.device.type == "cpu" else [1, 8, 64])
    rows: list[Row] = []
    try:
        with messages.status("measuring the machine") as status:
            ceilings = measure_ceilings(detector)

            def show(row: "Row | None" = None) -> None:
                rows.extend([row] if row else [])
                if len(rows) < len(sizes):
                    status.update(f"batches of {sizes[len(rows)]}, {len(rows) + 1} of {len(sizes)}")

            show()
            benchmark(detector, source or SAMPLES, batch_sizes=sizes, seconds=seconds, on_row=show)
    finally:  # what was measured before a batch that does not fit into the memory stays of use
        about = describe(detector) | {"compiled": compiled, "cuda_graphs": cuda_graphs, "untrained": untrained}
        if rows and json:
            found = {"product": ceilings.product, "copy": ceilings.copy}
            print(dumps({**about, "ceilings": found, "batches": [row.to_json(ceilings) for row in rows]}))
        elif rows:
            _print(about, ceilings, rows)


def _numbers(text: str) -> list[int]:
    from detkit.errors import DetkitError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and 1 <= int(part) <= 4096 for part in parts):
        raise DetkitError(f"--batch {text}: expected numbers from 1 to 4096, separated by commas")
    return [int(part) for part in parts]


def _print(about: dict[str, Any], ceilings: "Ceilings", rows: "list[Row]") -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from detkit.data.sample import count
    from detkit.predict.benchmark import STAGES

    console = Console(highlight=False)
    console.width = max(console.width, 24 + 10 * len(rows))  # however many columns, none is cut
    how = [name.replace("_", " ") for name in ("compiled", "cuda_graphs", "untrained") if about[name]]
    threads = f", {count(about['threads'], 'thread')}" if about["threads"] else ""
    console.print(
        f"{about['model']} at {about['size'][0]} × {about['size'][1]}, {', '.join([about['precision'], *how])}, on "
        f"{about['device']}{threads}, PyTorch {about['torch']}"
    )
    found = [row.to_json(ceilings) for row in rows]
    table = Table("batch", box=SIMPLE)
    for row in rows:
        table.add_column(str(row.batch), justify="right", no_wrap=True)
    table.add_row("pictures a second", *(f"{x['pictures_per_second']:.1f}" for x in found))
    for percent in ("50", "95"):
        table.add_row(f"latency p{percent}, ms", *(f"{1000 * x[f'latency_p{percent}']:.1f}" for x in found))
    for stage, name in zip(STAGES, _STAGES, strict=True):
        table.add_row(f"{name}, %", *(f"{100 * x['shares'][stage]:.1f}" for x in found))
    table.add_row("peak memory, MB", *("" if row.memory is None else f"{row.memory / 1e6:.0f}" for row in rows))
    for key in ("product", "copy"):
        table.add_row(f"of {key}, %", *(f"{100 * x[f'share_of_{key}']:.1f}" for x in found))
    console.print(table)
    console.print(
        f"Of product and copy: the device reaches {ceilings.product / 1e9:.4g} GFLOP/s in a product of matrices and "
        f"{ceilings.copy / 1e9:.4g} GB/s in a copy; a forward of one picture has "
        f"{rows[0].operations / rows[0].batch / 1e9:.4g} GFLOP."
    )
