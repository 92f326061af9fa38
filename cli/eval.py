"""`detkit eval`: how good a model, or a file of detections, is on a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Batch, Compile, CudaGraphs, Device, Iou, MaxPixels, Model, Precision, Resize, Task, Weights

if TYPE_CHECKING:
    from rich.console import Console

    from detkit.data.sample import Dataset


def eval_command(
    data: Annotated[
        str,
        typer.Option(help="A COCO, VOC or YOLO folder, a COCO .json, a .yaml that describes one, or sample:shapes."),
    ],
    model: Model = None,
    weights: Weights = None,
    task: Task = None,
    detections: Annotated[
        Path | None, typer.Option(help="Detections made elsewhere, as a COCO result list (.json), in place of --model.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The part of the data.", show_default="the validation split")
    ] = None,
    metric: Annotated[
        Literal["coco", "voc07", "voc"],
        typer.Option(
            help="coco: AP at IoU .50:.95 and COCO's other numbers; voc07: VOC's eleven points; voc: VOC's whole curve."
        ),
    ] = "coco",
    match_iou: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Overlap at which VOC's metrics take an object for found.", show_default="0.5"
        ),
    ] = None,
    evaluator: Annotated[
        Literal["hotcoco", "pycocotools"],
        typer.Option(help="What computes COCO's numbers; they are the same, hotcoco is faster."),
    ] = "hotcoco",
    score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Count detections that score above this.", show_default="0.001")
    ] = None,
    iou: Iou = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, help="Count at most so many detections of a picture.", show_default="100")
    ] = None,
    batch: Batch = 8,
    device: Device = "auto",
    precision: Precision = "fp32",
    compiled: Compile = False,
    cuda_graphs: CudaGraphs = False,
    max_pixels: MaxPixels = None,
    resize: Resize = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A new or empty folder for metrics.json, detections.json, pr_curves.png and confusion_matrix.png (of "
            "a classifier metrics.json, confusion_matrix.png and reliability.png).",
            show_default="runs/eval/<n>, the next free number",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Measure how good a model, or a file of detections, is on a data set.

    Of a classifier: accuracy, loss and calibration, on pictures with labels or on the objects of pictures with boxes.
    """
    import sys
    import warnings
    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from detkit.classify.model import is_classifier, require_task
    from detkit.config import validate
    from detkit.data.dataset import load_dataset
    from detkit.data.picture import MAX_PIXELS
    from detkit.errors import DetkitError
    from detkit.evaluate.report import print_result
    from detkit.evaluate.run import evaluate_model, evaluate_results, results_folder
    from detkit.model import load
    from detkit.ops.nms import Selection

    messages = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    for_model = {
        "--model": model,
        "--weights": weights,
        "--score": score,
        "--iou": iou,
        "--max-detections": max_detections,
        "--max-pixels": max_pixels,
        "--resize": resize,
        "--compile": compiled or None,
        "--cuda-graphs": cuda_graphs or None,
    }
    if detections is not None:
        for option, value in for_model.items():
            if value is not None:
                raise DetkitError(f"{option} is for a model; the detections of --detections are measured as they are")
    require_task(task, model)
    if detections is None and model is not None and is_classifier(model):
        for_detector = {
            "--metric": None if metric == "coco" else metric,
            "--match-iou": match_iou,
            "--score": score,
            "--iou": iou,
            "--max-detections": max_detections,
            "--resize": resize,
            "--compile": compiled or None,
            "--cuda-graphs": cuda_graphs or None,
        }
        for option, value in for_detector.items():
            if value is not None:
                raise DetkitError(f"{option} is for a detector; {model} is a classifier")
        options = {"batch_size": batch, "max_pixels": max_pixels or MAX_PIXELS}
        loading = {"weights": weights, "device": device, "precision": precision}
        _eval_classifier(model, loading, load_dataset(data, split), options, out, json, messages)
        return
    if match_iou is not None and metric == "coco":
        raise DetkitError("--match-iou belongs to the metrics voc07 and voc; COCO's takes IoU .50:.95")
    match_iou = match_iou or 0.5

    dataset = load_dataset(data, split)
    for note in dataset.notes:
        messages.print(note)
    with results_folder(out) as folder:
        if detections is None:
            detector = load(
                model,
                weights,
                device=device,
                precision=precision,
                resize=resize,
                compiled=compiled,
                cuda_graphs=cuda_graphs,
            )
            given = {"score": 0.001 if score is None else score, "max_detections": max_detections or 100}
            given |= {} if iou is None else {"iou": iou}
            selection = validate(Selection, detector.selection.model_dump() | given, "selection")
            with warnings.catch_warnings(), Progress(console=messages, disable=not messages.is_terminal) as progress:
                warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
                bar = progress.add_task("evaluating", total=len(dataset))
                evaluation = evaluate_model(
                    detector,
                    dataset,
                    metric=metric,
                    program=evaluator,
                    match_iou=match_iou,
                    selection=selection,
                    batch_size=batch,
                    max_pixels=max_pixels or MAX_PIXELS,
                    say=messages.print,
                    advance=lambda pictures: progress.advance(bar, pictures),
                )
        else:
            evaluation = evaluate_results(detections, dataset, metric=metric, program=evaluator, match_iou=match_iou)
        evaluation.save(folder)
    if json:
        print(dumps(evaluation.result.to_json()))
    else:
        print_result(evaluation.result, Console(highlight=False))
        print(f"\ndetections: {len(evaluation.detections)}, pictures: {len(dataset)}; saved to {folder}")


def _eval_classifier(
    model: str,
    loading: dict[str, Any],
    dataset: "Dataset",
    options: dict[str, Any],
    out: Path | None,
    json: bool,
    messages: "Console",
) -> None:
    import warnings
    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from detkit.classify.model import load_classifier
    from detkit.evaluate.classify import evaluate_classifier
    from detkit.evaluate.report import print_classifier_result
    from detkit.evaluate.run import results_folder

    for note in dataset.notes:
        messages.print(note)
    with results_folder(out) as folder:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: messages.print(f"warning: {message}")
            classifier = load_classifier(model, **loading)
        with Progress(console=messages, disable=not messages.is_terminal) as progress:
            task = progress.add_task("evaluating", total=None)

            def advance(pictures: int, total: int) -> None:
                progress.update(task, advance=pictures, total=total)

            result = evaluate_classifier(classifier, dataset, say=messages.print, advance=advance, **options)
        result.save(folder)
    if json:
        print(dumps(result.to_json()))
    else:
        print_classifier_result(result, Console(highlight=False))
        print(f"\npictures: {result.confusion.sum()}; saved to {folder}")
