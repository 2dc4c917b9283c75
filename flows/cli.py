"""The `dashfusion` command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="dashfusion",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="""From raw talking-head videos to a trained, evaluated sentiment model.

    Every stage command brings that stage and what it needs up to date, through DVC: what has not changed is not
    run again. [bold]params.yaml[/bold] holds the settings; [bold]dvc repro[/bold] does the same without Prefect's
    record of the run.

    [dim]prepare -> transcribe -> extract (text, audio, vision) -> align -> train -> evaluate[/dim]
    """,
)

Force = Annotated[bool, typer.Option("--force", "-f", help="Run also what has not changed.")]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Print what a user can mend as a line and end with exit code 1; a traceback is for mistakes of ours."""
    from flows.runtime import console

    try:
        yield
    except (ValueError, OSError) as error:
        console.print(str(error), style="bold red", markup=False)
        raise typer.Exit(1) from error


def _run(targets: list[str], force: bool) -> None:
    from flows import runtime
    from flows.params import load_params
    from flows.pipeline import StageFailed, pipeline

    with _plain_errors():
        load_params()  # all of it is checked before the first stage runs
        try:
            results = runtime.run_stage(pipeline, targets=targets, force=force)
        except StageFailed as error:
            runtime.console.print(str(error).splitlines()[0], style="bold red")  # the rest was on the screen already
            raise typer.Exit(1) from error
    for result in results:
        runtime.console.print(f"{result.stage:<16} {result.state:<7} {result.seconds:6.1f} s")


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
def pipeline(force: Force = False) -> None:
    """All stages, as one Prefect run with a task a stage; cached stages show as cached."""
    _run([], force)


@app.command()
def results() -> None:
    """Print the metrics of the last evaluation and where its report is."""
    from flows.evaluate import metrics_table
    from flows.params import load_params
    from flows.runtime import console

    with _plain_errors():
        params = load_params()
    path = params.paths.metrics / f"{params.evaluate.split}.json"
    if not path.is_file():
        console.print(f"no {path} yet: `dashfusion evaluate` (or `dvc repro`) makes it")
        raise typer.Exit(1)
    console.print(metrics_table(params, json.loads(path.read_text(encoding="utf-8"))))
    console.print(f"report: {(params.paths.report / 'index.html').resolve()}")


@app.command()
def doctor(
    corpus: Annotated[Path, typer.Argument(help="Folder with label.csv and Raw/<video_id>/<clip_id>.mp4.")],
    sample: Annotated[int, typer.Option(min=0, help="Clips to extract for the estimated time; 0: none.")] = 3,
) -> None:
    """Look at a corpus before hours are spent on it: clips, durations, formats, labels, problems, estimated time.

    Language, label range and extractors are those of [bold]params.yaml[/bold]. Nothing is written. The exit status is
    1 where more rows than [bold]extract.max_failed_fraction[/bold] cannot be used.
    """
    from flows.doctor import doctor as examine
    from flows.params import load_params

    with _plain_errors():
        fit = examine(corpus, load_params(), sample=sample)
    if not fit:
        raise typer.Exit(1)


cache = typer.Typer(no_args_is_help=True, help="What extraction keeps between runs, in .dashfusion/scratch.")
app.add_typer(cache, name="cache")


@cache.command()
def prune() -> None:
    """Remove what [bold]params.yaml[/bold]'s settings do not need: results, states of stopped trainings, tracebacks."""
    from corpora.manifest import MODALITIES
    from corpora.problems import read_problems
    from extractors import run
    from extractors.transcribe import signatures
    from flows.extract import scratch_folder
    from flows.params import load_params
    from model.train import MAPPED, runs_folder

    with _plain_errors():
        params, scratch = load_params(), scratch_folder()
        chosen = [getattr(params.extract, modality) for modality in MODALITIES]
        keep = {run.describe(item.extractor, item.options).signature for item in chosen}
        keep |= signatures(params.transcribe)
        problems = read_problems(sorted(params.paths.problems.glob("*.parquet")))
        training = {MAPPED}
        if (params.paths.dataset / "dataset.json").exists():
            training.add(runs_folder(scratch, params.paths.dataset, params.model, params.train).name)
        folders, freed = run.prune(scratch, keep | training | {problem.traceback for problem in problems})
    typer.echo(f"{folders} folders removed, {freed / 2**20:.1f} MiB freed; kept: {', '.join(sorted(keep))}")


@app.command()
def use(
    choices: Annotated[list[str], typer.Argument(help="group=preset or key=value, such as corpus=mmsa.")],
) -> None:
    """Compose [bold]params.yaml[/bold] from the presets in conf/: what is not named goes back to the default.

    For example: dashfusion use corpus=mmsa prepare.root=/videos/mosi prepare.corpus=mosi
    """
    from flows.presets import apply

    with _plain_errors():
        changed = apply(choices)
    for key, (before, after) in changed.items():
        typer.echo(f"{key}: {before} -> {after}")
    typer.echo(f"params.yaml: {len(changed)} values changed")


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on loopback.")] = 4200) -> None:
    """Serve Prefect's pages on loopback until Ctrl-C: every run on this machine, with its tasks and artifacts."""
    from flows import server

    api_url = f"http://127.0.0.1:{port}/api"
    if server.healthy(api_url):
        typer.echo(f"a Prefect server is there already: http://127.0.0.1:{port}")
        return
    keeper = server.start(None, port)
    try:
        if not server.wait_until_healthy(api_url, keeper):
            typer.secho(f"the server did not start; see {server.STATE / 'server.log'}", fg="red", err=True)
            raise typer.Exit(1)
        typer.echo(f"Prefect is at http://127.0.0.1:{port} (Ctrl-C stops it). In another terminal:")
        typer.echo(f"  export PREFECT_API_URL={api_url}")
        typer.echo("  dashfusion pipeline")
        keeper.wait()
    except KeyboardInterrupt:
        typer.echo("stopped")
    finally:
        keeper.terminate()
        keeper.wait(timeout=20)


if __name__ == "__main__":
    app()
