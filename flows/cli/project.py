"""Project commands: doctor, use, cache, deploy and ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import app, plain_errors, require_project
from flows.cli.completion import complete_choice
from model.checkpoint.description import DESCRIPTION


@app.command()
def doctor(
    path: Annotated[
        Path,
        typer.Argument(
            help="Corpus: a folder with label.csv and Raw/<video_id>/<clip_id>.mp4; or a file or checkpoint."
        ),
    ],
    sample: Annotated[int, typer.Option(min=0, help="Clips to extract for the estimated time; 0: none.")] = 3,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint whose extractors read a media file; by default the project's.")
    ] = None,
) -> None:
    """Inspect a corpus: clips, durations, formats, labels, problems, and the estimated time of extraction.

    Language, label range and extractors are those of [bold]params.yaml[/bold]. Nothing is written. The exit status is
    1 if the share of unusable rows exceeds [bold]extract.max_failed_fraction[/bold].

    Of a media file: its streams, whether they can be decoded, and with a checkpoint what its extractors find. This
    needs no [bold]params.yaml[/bold]. The exit status is 1 if the file cannot be used.

    Of a checkpoint: the versions of the libraries in training and here, and whether the extractors here give the same
    features of its reference clip.
    """
    from flows.cli.doctor import doctor as examine
    from flows.cli.doctor_file import doctor_checkpoint, doctor_file
    from flows.config.params import load_params
    from flows.prediction.inputs import project_model

    with plain_errors():
        if path.is_file():
            fit = doctor_file(path, model or project_model())
        elif (path / DESCRIPTION).is_file():
            fit = doctor_checkpoint(path)
        else:
            fit = examine(path, load_params(), sample=sample)
    if not fit:
        raise typer.Exit(1)


cache = typer.Typer(no_args_is_help=True, help="Results that are kept between runs, in .dashfusion/scratch.")
app.add_typer(cache, name="cache")


@cache.command()
def prune(
    studies: Annotated[
        bool, typer.Option("--studies", help="Trainings of studies as well; their tables are kept.")
    ] = False,
) -> None:
    """Remove results, training states and tracebacks that belong to other settings than [bold]params.yaml[/bold]'s."""
    from corpora.manifest import MODALITIES
    from corpora.problems import read_problems
    from extractors.corruption.dataset import corrupted_folders
    from extractors.execution import cache, units
    from extractors.transcripts.transcribe import model_identities
    from flows.config.params import load_params
    from flows.orchestration.settings import scratch_folder
    from flows.studies.trial import TRIALS
    from model.train import MAPPED, runs_folder

    with plain_errors():
        params, scratch = load_params(), scratch_folder()
        chosen = [getattr(params.extract, modality) for modality in MODALITIES]
        for item in chosen:
            units.adopt_results(item.extractor, item.options, scratch)
        keep = {units.describe(item.extractor, item.options).signature for item in chosen}
        for identity in model_identities(params.transcribe):
            cache.adopt_results(scratch, identity)
            keep.add(identity.signature)
        corrupted = corrupted_folders(scratch, keep)
        problems = read_problems(sorted(params.paths.problems.glob("*.parquet")))
        training = {MAPPED} if studies else {MAPPED, TRIALS}
        if (params.paths.dataset / "dataset.json").exists():
            training.add(runs_folder(scratch, params.paths.dataset, params.model, params.train).name)
        traces = {problem.traceback for problem in problems}
        folders, freed = cache.prune(scratch, keep | corrupted | training | traces)
    typer.echo(f"{folders} folders removed, {freed / 2**20:.1f} MiB freed; kept: {', '.join(sorted(keep))}")


@app.command()
def use(
    choices: Annotated[
        list[str] | None,
        typer.Argument(
            help="group=preset or key=value, such as corpus=mmsa.", show_default=False, autocompletion=complete_choice
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Store edits of params.yaml in conf/.")] = False,
) -> None:
    """Compose [bold]params.yaml[/bold] from the presets in conf/; everything else returns to its default.

    For example: dashfusion use corpus=mmsa prepare.root=/videos/mosi prepare.corpus=mosi. The choices are stored in
    conf/chosen.yaml, from which [bold]dvc exp run[/bold] starts. Without arguments: the current choices, edits of
    params.yaml, and all presets.
    """
    from flows.config import presets

    if choices and save:
        raise typer.BadParameter("--save stores the values of params.yaml and takes no choices")
    with plain_errors():
        changed = presets.apply(choices) if choices else presets.save() if save else presets.hand_edits()
        groups, values = presets.chosen()
        known = presets.presets()
    for key, (before, after) in changed.items():
        typer.echo(f"{key}: {before} -> {after}")
    if choices:
        typer.echo(f"params.yaml: {len(changed)} values changed")
        return
    if save:
        typer.echo(f"conf/chosen.yaml: {len(changed)} values kept")
        return
    if changed:
        typer.echo(
            "dvc repro and dashfusion pipeline use these edits of params.yaml; dvc exp run starts from conf/ and drops "
            "them, unless dashfusion use --save stores them there."
        )
    else:
        typer.echo("params.yaml is what conf/ composes to: dvc repro and dvc exp run start alike.")
    choice = " ".join(f"{key}={value}" for key, value in [*groups.items(), *values.items()])
    typer.echo(f"chosen: {choice or 'nothing, these are the defaults'}")
    table = {f"{group}={name}": text for group, names in known.items() for name, text in names.items()}
    for preset, description in table.items():
        typer.echo(f"  {preset:<{max(map(len, table))}}  {description}")


ScheduleSwitch = Annotated[
    bool | None, typer.Option("--schedule/--no-schedule", help="Nightly run; by default as in prefect.yaml.")
]


@app.command()
def deploy(
    schedule: ScheduleSwitch = None,
    cron: Annotated[str | None, typer.Option(help="Cron expression in place of prefect.yaml's: '0 3 * * *'.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Time zone of the cron expression: Europe/Berlin.")] = None,
) -> None:
    """Create the deployments of [bold]prefect.yaml[/bold] on a Prefect server: runs by a click, by API, on a schedule.

    The server is the one that [bold]PREFECT_API_URL[/bold] names, else that of [bold]dashfusion ui[/bold].
    """
    from flows.orchestration import deployments

    with plain_errors():
        require_project()
        change = deployments.Schedule(schedule, cron, timezone)
        for deployed in deployments.deploy(deployments.find_server(), change):
            typer.echo(deployed)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on loopback; the report is served on the next one.")] = 4200,
    schedule: ScheduleSwitch = None,
    worker: Annotated[bool, typer.Option(help="Worker for the runs that are started on the pages.")] = True,
) -> None:
    """Serve Prefect's pages on loopback until Ctrl-C: every run on this machine, and deployments to start new ones."""
    from flows.orchestration.deployments import Schedule
    from flows.orchestration.ui import serve

    with plain_errors():
        require_project()
        try:
            serve(port, Schedule(schedule), worker)
        except KeyboardInterrupt:
            typer.echo("stopped")
