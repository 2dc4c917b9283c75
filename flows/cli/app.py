"""The `dashfusion` command, and the options that several of its commands share."""

from __future__ import annotations

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
        (error_console if stderr else console).print(str(error), style="bold red", markup=False)
        raise typer.Exit(1) from error
