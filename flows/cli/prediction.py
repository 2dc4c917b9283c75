"""Prediction commands: predict, serve and watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import Checkpoint, app, plain_errors


@app.command()
def predict(
    paths: Annotated[list[str], typer.Argument(help="Video or sound files, folders of them, or patterns.")],
    text: Annotated[str | None, typer.Option(help="What is said, of a single file.")] = None,
    transcript: Annotated[
        Path | None,
        typer.Option(help=".srt, .vtt or .txt of a single file; or a folder of them, named like the files."),
    ] = None,
    asr: Annotated[
        str | None, typer.Option(help="Recognise speech with this model: a folder or Hugging Face id; '': never.")
    ] = None,
    model: Checkpoint = None,
    language: Annotated[str | None, typer.Option(help="What is spoken, such as en; the corpus's if left out.")] = None,
    level: Annotated[float, typer.Option(help="Of the intervals: 0.5, 0.8, 0.9 or 0.95.")] = 0.9,
    window: Annotated[
        float | None, typer.Option(help="Seconds of the time line's windows; if left out, as long as training clips.")
    ] = None,
    hop: Annotated[float | None, typer.Option(help="Seconds from window to window; half a window if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the results as Parquet.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the results as an HTML page.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read videos; 0: one a core.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that reading one video may take.")] = 300.0,
    device: Annotated[str, typer.Option(help="Of the network: auto, cpu, cuda.")] = "auto",
    quantise_text: Annotated[bool, typer.Option("--quantise-text", help="Text encoder in int8.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if any file cannot be scored.")] = False,
) -> None:
    """Score your own videos: sentiment, how sure it is, from which modalities, and over time.

    Features are made as the checkpoint says that its training's were. A file that cannot be scored is a row with the
    reason, and the others go on; the exit status is 1 if no file could be scored. See docs/predict.md.
    """
    from flows.prediction import inputs
    from flows.prediction import score as scoring

    with plain_errors(
        stderr=as_json
    ):  # it loads flows.orchestration.engine before torch is loaded, whose threads then spin less
        from model.predict import Predictor

        predictor = Predictor(
            model or inputs.default_model(),
            device=device,
            language=language,
            recogniser=asr,
            quantise_text=quantise_text,
        )
        videos = inputs.to_videos(inputs.find_media(paths), text, transcript)
        output = scoring.OutputOptions(as_json, out, report, strict)
        fit = scoring.predict(predictor, videos, level, workers, output, window=window, hop=hop, timeout=timeout)
    if not fit:
        raise typer.Exit(1)


@app.command()
def serve(
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder; if left out, the first seed's best.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; another than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8000,
    token: Annotated[
        str, typer.Option(envvar="DASHFUSION_TOKEN", show_envvar=True, help="Ask for this token.", show_default=False)
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name by which a proxy knows the server; may be given again.")
    ] = None,
    asr: Annotated[
        str | None, typer.Option(help="Recognise speech with this model: a folder or Hugging Face id; '': never.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="What is spoken, such as en; the corpus's if left out.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that score, each with all models; 0: one for two cores, up to 4.")
    ] = 0,
    queue: Annotated[int, typer.Option(min=0, help="Uploads that may wait for one of them.")] = 8,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of an upload.")] = 200,
    max_seconds: Annotated[float, typer.Option(min=1, help="Of a clip.")] = 300.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that scoring one clip may take.")] = 120.0,
    memory: Annotated[float, typer.Option(min=0.5, help="GiB that a worker may take.")] = 4.0,
    device: Annotated[str, typer.Option(help="Of the network: auto, cpu, cuda.")] = "auto",
    quantise_text: Annotated[bool, typer.Option("--quantise-text", help="Text encoder in int8.")] = False,
) -> None:
    """Score clips on a page and by HTTP: [bold]http://127.0.0.1:8000[/bold], for this machine alone.

    Clips are dropped on the page or recorded there, or sent with POST /predict; the answer is that of
    [bold]dashfusion predict --json[/bold]. Nothing is kept of them. See docs/serve.md.
    """
    with plain_errors():
        from flows.prediction.inputs import default_model
        from flows.serving import server as server
        from flows.serving.worker import Model
        from flows.serving.worker_pool import Limits

        chosen = Model(model or default_model(), device, language, asr, quantise_text)
        limits = Limits(
            size=max_megabytes << 20,
            length=max_seconds,
            scoring_seconds=timeout,
            memory=int(memory * 2**30),
            waiting=queue,
        )
        try:
            server.serve(server.Settings(chosen, host, port, token, tuple(allow_host or ()), workers, limits))
        except KeyboardInterrupt:
            typer.echo("stopped")


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Where files come to lie.")],
    out: Annotated[
        Path | None, typer.Option(help="Parquet of the predictions; if left out, predictions.parquet in the folder.")
    ] = None,
    pattern: Annotated[str, typer.Option(help="Of the files that are meant.")] = "**/*",
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder; if left out, the first seed's best.")] = None,
    asr: Annotated[
        str | None, typer.Option(help="Recognise speech with this model: a folder or Hugging Face id; '': never.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="What is spoken, such as en; the corpus's if left out.")] = None,
    level: Annotated[float, typer.Option(help="Of the intervals: 0.5, 0.8, 0.9 or 0.95.")] = 0.9,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds from look to look.")] = 10.0,
    settle: Annotated[float, typer.Option(min=0, help="Seconds in which a file must not change to be whole.")] = 10.0,
    attempts: Annotated[int, typer.Option(min=1, help="At a file that cannot be scored, unless it changes.")] = 2,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read videos; 0: one a core.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that reading one video may take.")] = 300.0,
    device: Annotated[str, typer.Option(help="Of the network: auto, cpu, cuda.")] = "auto",
    once: Annotated[bool, typer.Option("--once", help="Look once, wait for what is new to settle, and end.")] = False,
) -> None:
    """Score what comes into a folder, each file once, until Ctrl-C.

    A transcript that lies beside a file under its name (.srt, .vtt, .txt) is taken. A ledger beside the predictions
    says what was done; it outlives this command. As a deployment of Prefect's, see docs/serve.md.
    """
    from flows.display.console import console
    from flows.prediction import watched_folder as watching

    def say(line: str) -> None:
        console.print(line, markup=False)

    with plain_errors():
        from flows.prediction.inputs import default_model
        from model.predict import Predictor

        chosen = watching.Watch(folder, out or folder / watching.DEFAULT_OUT, pattern, settle, attempts)
        predictor = Predictor(model or default_model(), device=device, language=language, recogniser=asr)
        options = {"level": level, "workers": workers, "timeout": timeout}
        try:
            if once:
                report = watching.score_new(
                    chosen, lambda: predictor, on_result=lambda result: say(watching.format_result(result)), **options
                )
                say(f"{len(report.results)} new, {len(report.failed)} of them failed")
            else:
                say(f"watching {folder} (Ctrl-C ends it); predictions go to {chosen.out}")
                watching.watch_forever(chosen, predictor, interval, say, **options)
        except watching.FolderBusyError as busy:
            raise ValueError(str(busy)) from busy
        except KeyboardInterrupt:
            say("stopped")
