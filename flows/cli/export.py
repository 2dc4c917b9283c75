"""Export commands: the dataset and the model for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import Checkpoint, app, plain_errors

export = typer.Typer(no_args_is_help=True, help="The dataset and the model for other tools.")
app.add_typer(export, name="export")


@export.command()
def mmsa(path: Annotated[Path, typer.Argument(help="Pickle file (.pkl) to write.")]) -> None:
    """Write [bold]data/dataset/[/bold] as a pickle in MMSA's format, which MMSA trains on.

    Clips without a label are omitted. docs/mmsa.md lists the MMSA settings to use with it.
    """
    from extractors.dataset.export import export_mmsa
    from flows.config.params import load_params
    from flows.display.metrics import format_count

    with plain_errors():
        written = export_mmsa(load_params().paths.dataset, path)
    shapes = ", ".join(f"{m} {steps} x {width}" for m, (steps, width) in written.shapes.items())
    clips = ", ".join(f"{count} {split}" for split, count in written.clips.items())
    typer.echo(f"{path}: {clips}; {shapes}; {'with' if written.tokens else 'without'} text_bert")
    if written.unlabelled:
        typer.echo(f"left out: {format_count(written.unlabelled, 'clip')} without a label")


@export.command()
def datasets(path: Annotated[Path, typer.Argument(help="Folder to write.")]) -> None:
    """Write [bold]data/dataset/[/bold] as a folder that Hugging Face [bold]datasets.load_dataset(path)[/bold] reads."""
    from extractors.dataset.export import export_datasets
    from flows.config.params import load_params

    with plain_errors():
        clips = export_datasets(load_params().paths.dataset, path)
    typer.echo(f"{path}: {', '.join(f'{count} {split}' for split, count in clips.items())}")


@export.command("model")
def export_model(folder: Annotated[Path, typer.Argument(help="Folder to write.")], model: Checkpoint = None) -> None:
    """Copy a checkpoint, which is all that prediction needs, with the test metrics in its model card (README.md).

    Outside a project, without params.yaml, --model names the checkpoint, and the card keeps the validation metrics.
    """
    from flows.prediction.inputs import PARAMS, default_model
    from model.checkpoint.model_card import export_checkpoint

    with plain_errors():
        metrics, split, source = _test_metrics() if PARAMS.is_file() else (None, "", f"no {PARAMS} here")
        export_checkpoint(model or default_model(), folder, metrics, split)
    typer.echo(f"{folder}: {source}" + ("" if metrics else ": its card has the validation metrics"))


def _test_metrics() -> tuple[dict[str, Any] | None, str, str]:
    """Return the project's metrics, if it is evaluated, their split, and a note on their source."""
    from flows.config.params import load_params

    params = load_params()
    split = params.evaluate.split
    path = params.paths.metrics / f"{split}.json"
    if not path.is_file():
        return None, split, f"no {path} yet"
    return json.loads(path.read_text(encoding="utf-8")), split, f"metrics of {path}"


@export.command()
def onnx(path: Annotated[Path, typer.Argument(help="ONNX file (.onnx) to write.")], model: Checkpoint = None) -> None:
    """Write the network as ONNX, from features and masks to the score, for any number of clips and steps.

    Its predictions are compared with PyTorch's, for single clips and padded batches, with and without missing
    modalities; a difference over 1e-4 is an error. Needs pip install -e '.[onnx]'.
    """
    from flows.display.metrics import format_count
    from flows.prediction.inputs import default_model

    with plain_errors():
        from model.checkpoint.onnx import export_onnx

        written = export_onnx(model or default_model(), path)
    for name, shape in written.inputs.items():
        typer.echo(f"{name:<12} [{', '.join(map(str, shape))}]")
    clips = format_count(written.clips, "clip")
    typer.echo(f"{path}: differs from PyTorch by {written.difference:.1e} at most, over {clips}")
