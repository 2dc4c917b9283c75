"""Prediction commands: predict, serve and watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import (
    AllowDifferentFeatures,
    AllowDownload,
    Asr,
    Checkpoint,
    Device,
    Language,
    Level,
    QuantiseText,
    Readers,
    ReadMemory,
    ReadTimeout,
    app,
    plain_errors,
)
from flows.serving.logs import LogFormat


@app.command()
def predict(
    paths: Annotated[list[str], typer.Argument(help="Video or audio files, folders of them, or patterns.")],
    text: Annotated[str | None, typer.Option(help="Transcript of a single file.")] = None,
    transcript: Annotated[
        Path | None, typer.Option(help="Transcript file (.srt, .vtt, .txt) of a single file; or a folder of them.")
    ] = None,
    asr: Asr = None,
    model: Checkpoint = None,
    language: Language = None,
    level: Level = 0.9,
    window: Annotated[
        float | None, typer.Option(help="Window length of the time line, seconds; by default that of a training clip.")
    ] = None,
    hop: Annotated[
        float | None, typer.Option(help="Distance between windows, seconds; by default half a window.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, and nothing else, on standard output.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the results: .csv for CSV, any other name for Parquet.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page for the results.")] = None,
    workers: Readers = 0,
    timeout: ReadTimeout = 300.0,
    memory: ReadMemory = 4.0,
    device: Device = "auto",
    allow_download: AllowDownload = False,
    allow_different_features: AllowDifferentFeatures = False,
    quantise_text: QuantiseText = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 if any file cannot be scored.")] = False,
) -> None:
    """Score your own videos: sentiment, its uncertainty, the contribution of each modality, and the score over time.

    Features are extracted as for the checkpoint's training. A file that cannot be scored becomes a row with the
    reason, and does not stop the others; the exit status is 1 if no file could be scored. See docs/predict.md.
    """
    from flows.prediction import inputs
    from flows.prediction import score as scoring

    with plain_errors(stderr=as_json):
        from model.predict import Predictor

        predictor = Predictor(
            model or inputs.default_model(),
            device=device,
            language=language,
            recogniser=asr,
            quantise_text=quantise_text,
            allow_download=allow_download,
            allow_different_features=allow_different_features,
        )
        videos = inputs.to_videos(inputs.find_media(paths), text, transcript)
        output = scoring.OutputOptions(as_json, out, report, strict)
        options = {"workers": workers, "timeout": timeout, "memory": memory, "window": window, "hop": hop}
        fit = scoring.predict(predictor, videos, level, output, **options)
    if not fit:
        raise typer.Exit(1)


@app.command()
def serve(
    model: Checkpoint = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    token: Annotated[
        str, typer.Option(envvar="DASHFUSION_TOKEN", show_default=False, help="Token that clients must send.")
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name under which a proxy forwards requests; may be repeated.")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let --allow-host's clients in without a token: the proxy checks them.")
    ] = False,
    asr: Asr = None,
    language: Language = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Scoring processes, each with all models; 0: one per two cores, up to 4.")
    ] = 0,
    queue: Annotated[int, typer.Option(min=0, help="Maximum number of waiting uploads.")] = 8,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Maximum upload size, MiB.")] = 200,
    max_seconds: Annotated[float, typer.Option(min=1, help="Maximum clip length, seconds.")] = 300.0,
    timeout: Annotated[float, typer.Option(min=1, help="Time limit for scoring one clip, seconds.")] = 120.0,
    memory: Annotated[float, typer.Option(min=0.5, help="Memory limit of a scoring process, GiB.")] = 4.0,
    device: Device = "auto",
    allow_download: AllowDownload = False,
    allow_different_features: AllowDifferentFeatures = False,
    quantise_text: QuantiseText = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="Format of the log on standard output: text, or JSON objects, one a line.")
    ] = LogFormat.TEXT,
) -> None:
    """Score clips on a web page and by HTTP: [bold]http://127.0.0.1:8000[/bold], for this machine only.

    Clips are dropped on the page, recorded there, or sent with POST /predict; the response is that of
    [bold]dashfusion predict --json[/bold]. Clips are not stored. See docs/serve.md.
    """
    with plain_errors(stderr=log_format is LogFormat.JSON):
        from flows.prediction.inputs import default_model
        from flows.serving import server
        from flows.serving.worker import Model
        from flows.serving.worker_pool import Limits

        chosen = Model(
            model or default_model(), device, language, asr, quantise_text, allow_download, allow_different_features
        )
        limits = Limits(
            size=max_megabytes << 20,
            length=max_seconds,
            scoring_seconds=timeout,
            memory=int(memory * 2**30),
            waiting=queue,
        )
        names = tuple(allow_host or ())
        server.serve(server.Settings(chosen, host, port, token, names, workers, limits, no_token, log_format))


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder to watch.")],
    out: Annotated[
        Path | None, typer.Option(help="Parquet file for the results; by default predictions.parquet in the folder.")
    ] = None,
    pattern: Annotated[str, typer.Option(help="Pattern of file names.")] = "**/*",
    model: Checkpoint = None,
    asr: Asr = None,
    language: Language = None,
    level: Level = 0.9,
    interval: Annotated[float, typer.Option(min=0.1, help="Polling interval, seconds.")] = 10.0,
    settle: Annotated[
        float, typer.Option(min=0, help="Time without changes after which a file is complete, seconds.")
    ] = 10.0,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts at a failing file, until it changes.")] = 2,
    workers: Readers = 0,
    timeout: ReadTimeout = 300.0,
    memory: ReadMemory = 4.0,
    device: Device = "auto",
    allow_download: AllowDownload = False,
    allow_different_features: AllowDifferentFeatures = False,
    once: Annotated[bool, typer.Option("--once", help="Score the new files once they are complete, and end.")] = False,
) -> None:
    """Score new files in a folder, each once, until Ctrl-C.

    A transcript beside a file, with its name and .srt, .vtt or .txt, is used. A ledger beside the predictions records
    what was scored, also for later runs. docs/serve.md describes the same as a Prefect deployment.
    """
    from flows.display.console import console
    from flows.prediction import watched_folder as watching

    def say(line: str) -> None:
        console.print(line, markup=False)

    with plain_errors():
        from flows.prediction.inputs import default_model
        from model.checkpoint.description import first_notice
        from model.predict import Predictor

        chosen = watching.Watch(folder, out or folder / watching.DEFAULT_OUT, pattern, settle, attempts)
        predictor = Predictor(
            model or default_model(),
            device=device,
            language=language,
            recogniser=asr,
            allow_download=allow_download,
            allow_different_features=allow_different_features,
        )
        if notice := first_notice(predictor.description):
            say(notice)
        options: dict[str, Any] = {"level": level, "workers": workers, "timeout": timeout, "memory": memory}
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
