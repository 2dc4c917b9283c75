"""`dashfusion zero-shot`: ask a chat model about the clips of a split."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import app, plain_errors, require_project

if TYPE_CHECKING:
    from flows.zero_shot.ask import AskSummary

KEY_VARIABLE = "DASHFUSION_CHAT_KEY"


@app.command("zero-shot")
def zero_shot(
    url: Annotated[
        str,
        typer.Argument(help="Base URL of an OpenAI-compatible chat endpoint, such as http://localhost:11434/v1."),
    ],
    model: Annotated[str, typer.Option(help="Name of the model at the endpoint.")],
    split: Annotated[str, typer.Option(help="Split to ask about; by default that of evaluate.split.")] = "",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Time limit for one request, seconds.")] = 60.0,
    tries: Annotated[int, typer.Option(min=1, max=20, help="Requests for one clip before it fails.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 64,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the API key, if one is set.")] = (
        KEY_VARIABLE
    ),
) -> None:
    """Ask a chat model for the sentiment of every transcript of a split, and keep its answers.

    The transcripts are sent to the endpoint. A clip that has an answer is never asked again, so that an interrupted run
    goes on where it stopped. The next [bold]dashfusion evaluate[/bold] compares the model with the answers, in a row
    beside the baselines.
    """
    from corpora.manifest import SPLITS, read_manifest
    from extractors.transcripts.table import read_transcripts
    from flows.config.params import load_params
    from flows.display.console import console
    from flows.display.progress import StageProgress
    from flows.zero_shot.answers import FOLDER, Request
    from flows.zero_shot.ask import TEMPERATURE, ask_clips, make_prompt
    from flows.zero_shot.client import ChatClient

    with plain_errors():
        require_project()
        params = load_params()
        split = split or params.evaluate.split
        if split not in SPLITS:
            raise ValueError(f"--split {split}: choose one of {', '.join(SPLITS)}")
        manifest, transcripts = read_manifest(params.paths.manifest), read_transcripts(params.paths.transcripts)
        texts = {clip.clip_id: transcripts[clip.clip_id].text for clip in manifest.clips if clip.split == split}
        if not texts:
            raise ValueError(f"the {split} split has no clips; name another with --split")
        client = ChatClient(url, os.environ.get(key_variable, ""), timeout, tries)
        asked = params.prepare.corpus, split, manifest.label_range
        request = Request(model, client.url, make_prompt(manifest.label_range), TEMPERATURE, max_tokens, *asked)
        path = params.paths.studies / FOLDER / request.file_name
        try:
            with StageProgress() as bar:
                row = bar.add_task(f"{model}, {split} split", total=len(texts))
                summary = ask_clips(client, request, texts, path, workers, lambda count: bar.advance(row, count))
        except KeyboardInterrupt:
            console.print("interrupted: the answers so far are kept, and the next run goes on from there")
            raise typer.Exit(130) from None
    _show(summary)
    if summary.failed:
        raise typer.Exit(1)


def _show(summary: AskSummary) -> None:
    from flows.display.console import console
    from flows.zero_shot.answers import NOT_ANSWERED

    counts = summary.counts
    parts = [f"{counts['answered']:,} scores"]
    parts += [f"{counts[status]:,} {name}" for status, name in NOT_ANSWERED.items() if counts[status]]
    parts += [f"{summary.no_text:,} without a transcript"] * bool(summary.no_text)
    console.print(f"{', '.join(parts)}; {summary.asked:,} asked now -> {summary.path}", markup=False)
    tokens = [(a.prompt_tokens, a.completion_tokens) for a in summary.answers.values()]
    counted = [pair for pair in tokens if None not in pair]
    if counted:
        sums = [sum(pair[i] or 0 for pair in counted) for i in (0, 1)]
        uncounted = f"; not counted for {len(tokens) - len(counted):,} clips" if len(counted) < len(tokens) else ""
        console.print(f"cost: {sums[0]:,} tokens of prompts, {sums[1]:,} of answers{uncounted}")
    elif tokens:
        console.print("cost: the endpoint does not count tokens")
    if summary.failed:
        clip, reason = next(iter(summary.failed.items()))
        stop = "; the other clips were not asked, because so many failed in a row" if summary.stopped else ""
        line = f"{len(summary.failed):,} clips got no answer, {clip} the first: {reason}{stop}; run the command again"
        console.print(line, style="bold red", markup=False)
    else:
        console.print("the next `dashfusion evaluate` shows them beside the baselines")
