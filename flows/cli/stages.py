"""Stage commands: each brings one pipeline stage up to date through DVC."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.cli.app import plain_errors, app

Force = Annotated[bool, typer.Option("--force", "-f", help="Run also what has not changed.")]


def _run(targets: list[str], force: bool, time_limit: float = 0.0, wait: bool = True) -> None:
    from flows.config.params import load_params
    from flows.display import console
    from flows.orchestration import engine
    from flows.orchestration.dvc import StageFailedError
    from flows.orchestration.workspace import WorkspaceBusyError
    from flows.pipeline import pipeline

    with plain_errors():
        load_params()  # all of it is checked before the first stage runs
        try:
            results = engine.run_flow(pipeline, targets=targets, force=force, time_limit=time_limit, wait=wait)
        except (StageFailedError, WorkspaceBusyError) as error:
            message = str(error).splitlines()[0]  # the rest was on the screen already
            console.console.print(message, style="bold red", markup=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            console.console.print("interrupted: finished work is kept, and the next run resumes from there")
            raise typer.Exit(130) from None
    for result in results:
        console.console.print(f"{result.stage:<16} {result.state:<7} {result.seconds:6.1f} s")


@app.command()
def prepare(force: Force = False) -> None:
    """Read the corpus into [bold]data/manifest.parquet[/bold], one checked row a clip.

    The demo's videos are generated first. Rows that cannot be used (missing media, labels out of range, unknown
    splits, doubled ids) are listed in data/problems/prepare.parquet with their row number.
    """
    _run(["prepare"], force)


@app.command()
def transcribe(force: Force = False) -> None:
    """Say who says what when, in [bold]data/transcripts.parquet[/bold]: text, words and their times.

    The corpus's transcripts stay as they are. Clips without one are recognised, and words are timed, where
    [bold]transcribe[/bold] in params.yaml names a model or a file for it; without any, align estimates the times.
    """
    _run(["transcribe"], force)


@app.command()
def extract(
    modality: Annotated[str | None, typer.Argument(help="text, audio or vision; all three if left out.")] = None,
    force: Force = False,
) -> None:
    """Extract text, audio and vision features into [bold]data/features/[/bold].

    Work that is done stays done: after an interruption only what is missing is extracted. A clip that fails is
    listed with its reason; more than [bold]extract.max_failed_fraction[/bold] of them stops the stage.
    """
    _run([f"extract@{modality}" if modality else "extract"], force)


@app.command()
def align(force: Force = False) -> None:
    """Join the features into [bold]data/dataset/[/bold], one row a clip, with word times and statistics."""
    _run(["align"], force)


@app.command()
def train(force: Force = False) -> None:
    """Train DashFusion into [bold]models/[/bold]: the best epoch by validation MAE, once for each seed."""
    _run(["train"], force)


@app.command()
def evaluate(force: Force = False) -> None:
    """Measure the model: [bold]metrics/test.json[/bold], predictions.parquet and report/index.html."""
    _run(["evaluate"], force)


@app.command()
def pipeline(
    force: Force = False,
    time_limit: Annotated[float, typer.Option(min=0, help="Minutes that one stage may take; 0: no limit.")] = 0.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for another run in this folder.")] = True,
) -> None:
    """All stages, as one Prefect run with a task a stage; cached stages show as cached."""
    _run([], force, time_limit, wait)


@app.command()
def results() -> None:
    """Print the metrics of the last evaluation, their change since the one before, and where the report is."""
    from flows.config.params import load_params
    from flows.display.console import console
    from flows.evaluate import metrics_before, metrics_table

    with plain_errors():
        params = load_params()
    path = params.paths.metrics / f"{params.evaluate.split}.json"
    if not path.is_file():
        console.print(f"no {path} yet: `dashfusion evaluate` (or `dvc repro`) makes it")
        raise typer.Exit(1)
    metrics = json.loads(path.read_text(encoding="utf-8"))
    console.print(metrics_table(params, metrics, metrics_before(params, metrics)))
    console.print(f"report: {(params.paths.report / 'index.html').resolve()}")


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(help="A file of studies/, or a path; without it they are listed.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="In place of the file's, such as 0,1,2.")] = "",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="For all variants: key=value, such as train.epochs=8.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one a core, or one a GPU.")] = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for another run in this folder.")] = True,
) -> None:
    """Train variants of the model over several seeds, compare them, and add the table to the report.

    A study is a small file of [bold]studies/[/bold]: ablation, bottleneck, anchor, missing, noise, ... or one of your
    own. Trainings that were done before, for whichever study, are not done again.
    """
    import yaml

    from flows.display import console
    from flows.orchestration import engine
    from flows.orchestration.dvc import StageFailedError
    from flows.orchestration.workspace import WorkspaceBusyError
    from flows.studies.spec import available, read_spec
    from flows.study import TrialFailedError
    from flows.study import study as run

    with plain_errors():
        if name is None:
            for known in available():
                typer.echo(f"{known:<14} {read_spec(known).question}")
            return
        if any(not seed.strip().isdigit() for seed in filter(None, seeds.split(","))):
            raise ValueError(f"--seeds {seeds}: give whole numbers with commas between them, such as 0,1,2")
        changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in change or ())}
        numbers = [int(seed) for seed in filter(None, seeds.split(","))]
        try:
            engine.run_flow(run, name=name, seeds=numbers, changes=changes, workers=workers, wait=wait)
        except (StageFailedError, WorkspaceBusyError, TrialFailedError) as error:
            console.console.print(str(error).splitlines()[0], style="bold red", markup=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            console.console.print("interrupted: finished trainings are kept, and the next run resumes from there")
            raise typer.Exit(130) from None
