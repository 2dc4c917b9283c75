"""The `dashfusion` command."""

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

Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint folder; if left out, the first seed's best.")]


@contextmanager
def plain_errors(stderr: bool = False) -> Iterator[None]:
    """Print what a user can mend as a line and end with exit code 1; a traceback is for mistakes of ours."""
    from flows.display.console import console

    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if stderr:
            typer.secho(str(error), err=True, fg="red", bold=True)
        else:
            console.print(str(error), style="bold red", markup=False)
        raise typer.Exit(1) from error
