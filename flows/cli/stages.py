"""Stage commands: each brings one pipeline stage up to date through DVC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import Wait, app, plain_errors, require_project
from flows.cli.completion import complete_modality, complete_network, complete_setting, complete_study

Force = Annotated[
    bool,
    typer.Option("--force", "-f", help="Run even if nothing has changed; transcribe, extract and train from scratch."),
]


def _run_flow(flow: Any, *errors: type[Exception], **parameters: Any) -> Any:
    """Run a flow through DVC; the first lines of `errors` are printed, and the exit code is 1."""
    from prefect.exceptions import CancelledRun

    from flows.display.console import console
    from flows.orchestration import engine
    from flows.orchestration.dvc import StageFailedError
    from flows.orchestration.workspace import WorkspaceBusyError

    expected: tuple[type[Exception], ...] = (StageFailedError, CancelledRun, WorkspaceBusyError, *errors)
    try:
        return engine.run_flow(flow, **parameters)
    except expected as error:
        message = str(error).splitlines()[0]  # the rest was printed when the stage failed
        console.print(message, style="bold red", markup=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("interrupted: finished work is kept, and the next run resumes from there")
        raise typer.Exit(130) from None


def _run(targets: list[str], force: bool, time_limit: float = 0.0, wait: bool = True) -> None:
    """Run the pipeline up to `targets` and print the stages' outcomes."""
    from flows.config.params import load_params
    from flows.display.console import console
    from flows.pipeline import pipeline

    with plain_errors():
        load_params()  # validates all parameters before the first stage runs
        results = _run_flow(pipeline, targets=targets, force=force, time_limit=time_limit, wait=wait)
    for result in results:
        console.print(f"{result.stage:<16} {result.state:<7} {result.seconds:6.1f} s")


@app.command()
def prepare(force: Force = False) -> None:
    """Read the corpus into [bold]data/manifest.parquet[/bold], one checked row a clip.

    The demo's videos are generated first. Unusable rows (missing media, labels out of range, unknown splits, duplicate
    ids) are listed in data/problems/prepare.parquet with their row number.
    """
    _run(["prepare"], force)


@app.command()
def transcribe(force: Force = False) -> None:
    """Write [bold]data/transcripts.parquet[/bold]: text, words and their times.

    The corpus's transcripts are kept. Clips without one are recognised, and words are timed, by the models or files
    that [bold]transcribe[/bold] in params.yaml names; without any, align estimates the times.
    """
    _run(["transcribe"], force)


@app.command()
def extract(
    modality: Annotated[
        str | None,
        typer.Argument(help="Modality: text, audio or vision; by default all three.", autocompletion=complete_modality),
    ] = None,
    force: Force = False,
) -> None:
    """Extract text, audio and vision features into [bold]data/features/[/bold].

    Clips that were extracted before are reused, for instance after an interruption. A clip that fails is listed with
    its reason; if more than [bold]extract.max_failed_fraction[/bold] of them fail, the stage stops.
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
    """Evaluate the model: [bold]metrics/test.json[/bold], predictions.parquet and report/index.html."""
    _run(["evaluate"], force)


@app.command()
def pipeline(
    force: Force = False,
    time_limit: Annotated[float, typer.Option(min=0, help="Time limit per stage, minutes; 0: none.")] = 0.0,
    wait: Wait = True,
) -> None:
    """Run all stages, as one Prefect run with one task per stage; cached stages show as cached."""
    _run([], force, time_limit, wait)


@app.command()
def results() -> None:
    """Print the metrics of the last evaluation, their change since the previous one, and the report's path."""
    from flows.config.params import load_params
    from flows.display.console import console
    from flows.orchestration.evaluations import print_metrics, print_other_corpus, read_other_corpus

    with plain_errors():
        params = load_params()
    path = params.paths.metrics / f"{params.evaluate.split}.json"
    if not path.is_file():
        console.print(f"no {path} yet: `dashfusion evaluate` (or `dvc repro`) writes it")
        raise typer.Exit(1)
    metrics = json.loads(path.read_text(encoding="utf-8"))
    print_metrics(params, metrics)
    if other := read_other_corpus(params):
        print_other_corpus(other)
    console.print(f"report: {(params.paths.report / 'index.html').resolve()}")


@app.command()
def study(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Study: a file of studies/, or a path; without it all are listed.", autocompletion=complete_study
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds in place of the file's, such as 0,1,2.")] = "",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Parameter of all variants: key=value, such as train.epochs=8.",
            autocompletion=complete_setting,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core, or one per GPU.")] = 0,
    wait: Wait = True,
) -> None:
    """Train variants of the model over several seeds, compare them, and add the table to the report.

    A study is a small file of [bold]studies/[/bold]: ablation, bottleneck, anchor, missing, noise, ... or one of your
    own. Finished trainings are reused, also those of other studies.
    """
    import yaml

    from flows.studies.spec import available, read_spec

    with plain_errors():
        require_project()
        if name is None:
            for known in available():
                typer.echo(f"{known:<14} {read_spec(known).question}")
            return
        from flows.study import TrialFailedError
        from flows.study import study as run

        changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in change or ())}
        _run_flow(run, TrialFailedError, name=name, seeds=_numbers(seeds), changes=changes, workers=workers, wait=wait)


def _numbers(seeds: str) -> list[int]:
    """Return the seeds of the option --seeds."""
    if any(not seed.strip().isdigit() for seed in filter(None, seeds.split(","))):
        raise ValueError(f"--seeds {seeds}: give whole numbers with commas between them, such as 0,1,2")
    return [int(seed) for seed in filter(None, seeds.split(","))]


@app.command()
def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Networks (model.name); by default those of compare.models in params.yaml.",
            autocompletion=complete_network,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds in place of compare.seeds, such as 0,1,2.")] = "",
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Settings to try for each network in place of compare.trials; 0: the published ones."),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="File for the leaderboard: .csv, or .png for quality against cost."),
    ] = None,
    on: Annotated[
        list[Path] | None,
        typer.Option(help="Dataset folder of another corpus, to measure the networks on too; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one per core, or one per GPU.")] = 0,
    wait: Wait = True,
) -> None:
    """Train networks with the same budget and seeds, and rank them on the test split.

    Settings are chosen on valid. Differences to the best and to the text encoder alone have an interval and a verdict:
    better, worse or undecided. Finished trainings are reused, so that a run that was stopped goes on.
    """
    from flows.compare import compare as run
    from flows.report.leaderboard import save_leaderboard
    from flows.studies.results import StudyResult
    from flows.study import TrialFailedError

    with plain_errors():
        require_project()
        for path in output or ():
            if path.suffix not in (".csv", ".png"):
                raise ValueError(f"--output {path}: name a .csv file, for the table, or a .png file, for the picture")
        chosen = {"models": models or [], "seeds": _numbers(seeds), "trials": trials, "on": on or []}
        result = _run_flow(run, TrialFailedError, **chosen, workers=workers, wait=wait)
        for path in output or () if isinstance(result, StudyResult) else ():  # not if a stage was cancelled
            save_leaderboard(result, path)
