"""Project commands: doctor, use, cache, deploy and ui."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import app, plain_errors, require_project
from flows.cli.completion import complete_choice
from model.checkpoint.description import DESCRIPTION

if TYPE_CHECKING:
    from flows.config.choices import Changes
    from flows.config.params import Params


@app.command()
def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Corpus: a folder, a pickle or .csd of features, or a table beside videos; or a media file or a "
            "checkpoint; without one, the project itself.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Clips to extract for the estimated time; 0: none.")] = 3,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint whose extractors read a media file; by default the project's.")
    ] = None,
) -> None:
    """Inspect a corpus: clips, durations, formats, labels, problems, and the estimated time of extraction.

    Layout, table, columns, separator, encoding, splits, label range and language are found out, and the
    [bold]dashfusion use[/bold] line that selects the corpus is printed. Extractors are those of
    [bold]params.yaml[/bold]. Nothing is written. The exit status is 1 if the share of unusable rows exceeds
    [bold]extract.max_failed_fraction[/bold].

    Of a media file: its streams, whether they can be decoded, and with a checkpoint what its extractors find. This
    needs no [bold]params.yaml[/bold]. The exit status is 1 if the file cannot be used.

    Of a checkpoint: the versions of the libraries in training and here, and whether the extractors here give the same
    features of its reference clip.

    Without an argument: what in [bold]params.yaml[/bold] would stop a stage, or is likely meant otherwise. The exit
    status is 1 if a stage would stop.
    """
    from corpora.detection import is_corpus_file
    from flows.cli.doctor import doctor as examine
    from flows.cli.doctor import doctor_project
    from flows.cli.doctor_file import doctor_checkpoint, doctor_file
    from flows.config.params import load_params
    from flows.prediction.inputs import project_model

    with plain_errors():
        if path is None:
            fit = doctor_project(load_params())
        elif path.is_file() and not is_corpus_file(path):
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
    from flows.display.metrics import format_count
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
    removed = format_count(folders, "folder")
    typer.echo(f"{removed} removed, {freed / 2**20:.1f} MiB freed; kept: {', '.join(sorted(keep))}")


@app.command()
def use(
    choices: Annotated[
        list[str] | None,
        typer.Argument(
            help="group=preset or key=value, such as corpus=mmsa.", show_default=False, autocompletion=complete_choice
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Start from the defaults in conf/, and keep nothing.")] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the last change back, byte by byte; twice: take that back.")
    ] = False,
    save: Annotated[bool, typer.Option("--save", help="Store edits of params.yaml in conf/.")] = False,
) -> None:
    """Change settings in [bold]params.yaml[/bold]: what is named changes, everything else stays.

    For example: dashfusion use corpus=mmsa prepare.root=/videos/mosi prepare.corpus=mosi. The change is checked first,
    as [bold]dashfusion doctor[/bold] does, and refused with every error that would stop a stage later; then it is shown
    key by key, before and after. Another corpus drops the choices of [bold]prepare[/bold] and [bold]transcribe[/bold],
    and others that do not fit it, and lists them. Edits of params.yaml by hand are kept. The choices are stored in
    conf/chosen.yaml, from which [bold]dvc exp run[/bold] starts.

    Without arguments nothing changes: the current choices, edits by hand, and all presets are shown.
    """
    from flows.config import presets
    from flows.display.metrics import format_count

    if sum([bool(choices) or reset, undo, save]) > 1:
        raise typer.BadParameter("--undo and --save stand alone, and take no choices")
    with plain_errors():
        if undo:
            changes = presets.undo()
            _print_changes(changes)
            restored = format_count(len(changes), "value")
            _echo(f"params.yaml: restored, {restored} changed; the same command again takes this back")
        elif save:
            edits = presets.save()
            _print_changes(edits)
            _echo(f"conf/chosen.yaml: {format_count(len(edits), 'value')} kept")
        elif choices or reset:
            _change(choices or [], reset)
        else:
            _show_choices()


def _change(choices: list[str], reset: bool) -> None:
    """Apply choices, and print what changed and what became of earlier choices."""
    from flows.config import presets
    from flows.config.checks import require_usable
    from flows.config.params import load_params
    from flows.display.metrics import format_count

    warnings: list[str] = []

    def check(params: Params) -> None:
        try:
            before = load_params()
        except (FileNotFoundError, ValueError):  # nothing to compare with
            before = None
        warnings.extend(require_usable(params, before))

    done = presets.apply(choices, reset=reset, check=check)
    _print_changes(done.changes)
    for key, (value, reason) in done.dropped.items():
        _echo(f"dropped: {key}={_format(value)} ({reason})")
    for key, (value, preset) in done.overruling.items():
        _echo(f"kept: {key}={_format(value)} (the preset has {_format(preset)})")
    for key, (before, value) in done.edits.items():
        _echo(f"kept: {key}={_format(value)} (edited by hand, was {_format(before)})")
    if done.comments:
        _echo("comments in params.yaml were dropped")
    if done.changes or done.edits or done.comments:
        changed = format_count(len(done.changes), "value")
        _echo(f"params.yaml: {changed} changed; dashfusion use --undo takes this back")
    else:
        _echo("params.yaml: nothing changed")
    for warning in warnings:
        _echo(f"warning: {warning}")


def _show_choices() -> None:
    """Print edits by hand, choices and presets."""
    from flows.config import composition, presets

    edits = presets.hand_edits()
    _print_changes(edits)
    if edits:
        _echo(
            "dvc repro and dashfusion pipeline use these edits of params.yaml; dvc exp run starts from conf/ and drops "
            "them, unless dashfusion use --save stores them there."
        )
    else:
        _echo("params.yaml is what conf/ composes to: dvc repro and dvc exp run start alike.")
    groups, values = composition.chosen()
    pairs = [*groups.items(), *values.items()]
    choice = " ".join(shlex.quote(f"{key}={'null' if value is None else _format(value)}") for key, value in pairs)
    _echo(f"chosen: {choice or 'nothing, these are the defaults'}")
    table = {f"{group}={name}": text for group, names in composition.presets().items() for name, text in names.items()}
    for preset, description in table.items():
        _echo(f"  {preset:<{max(map(len, table))}}  {description}")


def _print_changes(changes: Changes) -> None:
    for key, (before, after) in changes.items():
        _echo(f"{key}: {_format(before)} -> {_format(after)}")


def _format(value: object) -> str:
    """Return a value of params.yaml as YAML writes it, in one line."""
    import yaml

    if value is None:
        return "none"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _echo(line: str) -> None:
    """Print a line; values and ids of a corpus may hold control characters."""
    from flows.display.console import printable

    typer.echo(printable(line))


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
