"""Options that mean the same in every command."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[
    str | None,
    typer.Option(
        help="A checkpoint (.safetensors), a Darknet .cfg, or a config (then with --weights).",
        show_default="the detector of COCO's classes that comes with detkit",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="The weights of a config or .cfg.", show_default="those beside the config or .cfg")
]
Task = Annotated[
    Literal["detect", "classify"] | None,
    typer.Option(
        help="Find objects, or name pictures; in data with boxes, classify makes a picture of each object.",
        show_default="what the model does",
    ),
]
Iou = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Of boxes that overlap more, keep the best.", show_default="the model's"),
]
Batch = Annotated[int, typer.Option(min=1, max=4096, help="Pictures that go through the model at once.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Numbers to compute in.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Let torch.compile make the network's code first, which takes a minute: for long runs."
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option("--cuda-graphs", help="Launch the network's kernels on the GPU at once, recorded for each shape."),
]
MaxPixels = Annotated[
    int | None, typer.Option(min=1, help="Refuse pictures with more pixels.", show_default="100000000")
]
Resize = Annotated[
    Literal["stretch", "letterbox"] | None,
    typer.Option(help="How pictures are brought to the model's size.", show_default="the model's"),
]
