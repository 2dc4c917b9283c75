"""The `dashfusion` command, and the options that several of its commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

PANELS = {
    "Corpus and settings": ("doctor", "use"),
    "Pipeline": (
        "pipeline", "prepare", "transcribe", "extract", "align", "train", "evaluate", "results", "problems", "study",
        "compare", "zero-shot", "cache",
    ),
    "New videos": ("predict", "serve", "watch"),
    "Dataset and model for other tools": ("export",),
    "Prefect": ("ui", "deploy"),
}  # fmt: skip
"""Commands in the order and the groups of `dashfusion --help`."""


class _Commands(TyperGroup):
    """Commands in panels, of which some need packages that an installation for scoring lacks."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, by panel."""
        for panel, names in PANELS.items():
            for name in names:
                vars(self.commands[name])["rich_help_panel"] = panel
        ordered = [name for names in PANELS.values() for name in names]
        return ordered + [name for name in self.commands if name not in ordered]

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a package that is not installed is named in a line, with what to install."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if not is_missing_package(error):
                raise
            typer.echo(format_missing_package(error), err=True)
            raise typer.Exit(1) from error


def is_missing_package(error: ImportError) -> bool:
    """Return whether an import failed for want of a package of others, without a message of our own."""
    ours = ("media", "corpora", "extractors", "model", "flows")
    return bool(error.name) and str(error).startswith("No module named") and str(error.name).split(".")[0] not in ours


def format_missing_package(error: ImportError) -> str:
    """Return what to install if a package is missing."""
    return (
        f"{str(error.name).split('.')[0]} is not installed: predict, watch, doctor FILE and export model need the "
        "packages of deploy/requirements-predict.txt, serve those of deploy/requirements-serve.txt, and everything "
        "else needs DashFusion with its dependencies (pip install -c constraints.txt -e .)"
    )


app = typer.Typer(
    name="dashfusion",
    cls=_Commands,
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

Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint folder; by default the first seed's best.")]
Asr = Annotated[
    str | None,
    typer.Option(help="Speech recogniser where there is no transcript: tiny, folder or Hugging Face id; '': none."),
]
Language = Annotated[str | None, typer.Option(help="Spoken language, such as en; by default the training corpus's.")]
Level = Annotated[float, typer.Option(help="Interval level: 0.5, 0.8, 0.9 or 0.95.")]
Readers = Annotated[int, typer.Option(min=0, help="Processes that read videos; 0: one per core.")]
ReadMemory = Annotated[float, typer.Option(min=0.5, help="Memory limit of each of these processes, GiB.")]
ReadTimeout = Annotated[float, typer.Option(min=1, help="Time limit for reading one video, seconds.")]
Device = Annotated[str, typer.Option(help="Device of the network: auto, cpu, cuda.")]
AllowDownload = Annotated[
    bool, typer.Option("--allow-download", help="Download missing models from the Hugging Face hub.")
]
AllowDifferentFeatures = Annotated[
    bool,
    typer.Option(
        "--allow-different-features", help="Score even if the features of the reference clip differ from training's."
    ),
]
QuantiseText = Annotated[bool, typer.Option("--quantise-text", help="Text encoder in int8.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for another run in this folder.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dashfusion {version('dashfusion')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Hold the options of `dashfusion` itself."""


def require_project() -> None:
    """Check that the current folder is a project's.

    Raises:
        FileNotFoundError: There is no params.yaml.
    """
    if not Path("params.yaml").is_file():
        raise FileNotFoundError(
            f"no params.yaml in {Path.cwd()}: run from the project's folder, where dvc.yaml and params.yaml are"
        )


@contextmanager
def plain_errors(stderr: bool = False) -> Iterator[None]:
    """Print errors that a user can correct as a line, with exit code 1; other errors show a traceback.

    Args:
        stderr: Print to standard error, because standard output is for results.
    """
    from flows.display.console import console, error_console

    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
        if isinstance(error, ImportError) and is_missing_package(error):
            message = format_missing_package(error)
        (error_console if stderr else console).print(message, style="bold red", markup=False)
        raise typer.Exit(1) from error
