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

Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint folder; if left out, the first seed's best.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Run also what has not changed.")]


@contextmanager
def _plain_errors(stderr: bool = False) -> Iterator[None]:
    """Print what a user can mend as a line and end with exit code 1; a traceback is for mistakes of ours."""
    from flows.runtime import console

    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if stderr:
            typer.secho(str(error), err=True, fg="red", bold=True)
        else:
            console.print(str(error), style="bold red", markup=False)
        raise typer.Exit(1) from error


def _run(targets: list[str], force: bool, time_limit: float = 0.0, wait: bool = True) -> None:
    from flows import runtime
    from flows.params import load_params
    from flows.pipeline import StageFailed, WorkspaceBusy, pipeline

    with _plain_errors():
        load_params()  # all of it is checked before the first stage runs
        try:
            results = runtime.run_stage(pipeline, targets=targets, force=force, time_limit=time_limit, wait=wait)
        except (StageFailed, WorkspaceBusy) as error:
            message = str(error).splitlines()[0]  # the rest was on the screen already
            runtime.console.print(message, style="bold red", markup=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            runtime.console.print("interrupted: what was finished is kept, and the next run goes on from there")
            raise typer.Exit(130) from None
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
def pipeline(
    force: Force = False,
    time_limit: Annotated[float, typer.Option(min=0, help="Minutes that one stage may take; 0: no limit.")] = 0.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for another run in this folder.")] = True,
) -> None:
    """All stages, as one Prefect run with a task a stage; cached stages show as cached."""
    _run([], force, time_limit, wait)


@app.command()
def results() -> None:
    """Print the metrics of the last evaluation, their change since the one before, and where the report is."""
    from flows.evaluate import metrics_before, metrics_table
    from flows.params import load_params
    from flows.runtime import console

    with _plain_errors():
        params = load_params()
    path = params.paths.metrics / f"{params.evaluate.split}.json"
    if not path.is_file():
        console.print(f"no {path} yet: `dashfusion evaluate` (or `dvc repro`) makes it")
        raise typer.Exit(1)
    metrics = json.loads(path.read_text(encoding="utf-8"))
    console.print(metrics_table(params, metrics, metrics_before(params, metrics)))
    console.print(f"report: {(params.paths.report / 'index.html').resolve()}")


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
    from flows import predict as scoring

    with _plain_errors(stderr=as_json):  # it loads flows.runtime before torch is loaded, whose threads then spin less
        from model.predict import Predictor

        predictor = Predictor(
            model or scoring.default_model(),
            device=device,
            language=language,
            recogniser=asr,
            quantise_text=quantise_text,
        )
        videos = scoring.to_videos(scoring.find_media(paths), text, transcript)
        wishes = scoring.Wishes(as_json, out, report, strict)
        fit = scoring.predict(predictor, videos, level, workers, wishes, window=window, hop=hop, timeout=timeout)
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
    with _plain_errors():
        from flows import serve as server
        from flows.predict import default_model
        from flows.scorers import Limits
        from flows.scoring import Model

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
    from flows import watch as watching
    from flows.runtime import console

    def say(line: str) -> None:
        console.print(line, markup=False)

    with _plain_errors():
        from flows.predict import default_model
        from model.predict import Predictor

        chosen = watching.Watch(folder, out or folder / watching.DEFAULT_OUT, pattern, settle, attempts)
        predictor = Predictor(model or default_model(), device=device, language=language, recogniser=asr)
        options = {"level": level, "workers": workers, "timeout": timeout}
        try:
            if once:
                report = watching.score_new(
                    chosen, lambda: predictor, each=lambda result: say(watching.told(result)), **options
                )
                say(f"{len(report.results)} new, {len(report.failed)} of them failed")
            else:
                say(f"watching {folder} (Ctrl-C ends it); predictions go to {chosen.out}")
                watching.watch_for_ever(chosen, predictor, interval, say, **options)
        except watching.FolderBusy as busy:
            raise ValueError(str(busy)) from busy
        except KeyboardInterrupt:
            say("stopped")


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


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(help="A file of studies/, or a path; without it they are listed.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="In place of the file's, such as 0,1,2.")] = "",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="For all variants: key=value, such as train.epochs=8.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: one a core, or one a GPU.")] = 0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for another run in this folder.")] = True,
) -> None:
    """Train variants of the model over several seeds, compare them, and add the table to the report.

    A study is a small file of [bold]studies/[/bold]: ablation, bottleneck, anchor, missing, noise, ... or one of your
    own. Trainings that were done before, for whichever study, are not done again.
    """
    import yaml

    from flows import runtime
    from flows.pipeline import StageFailed, WorkspaceBusy
    from flows.study import TrialFailed
    from flows.study import study as run
    from flows.study_spec import available, read_spec

    with _plain_errors():
        if name is None:
            for known in available():
                typer.echo(f"{known:<14} {read_spec(known).question}")
            return
        if any(not seed.strip().isdigit() for seed in filter(None, seeds.split(","))):
            raise ValueError(f"--seeds {seeds}: give whole numbers with commas between them, such as 0,1,2")
        changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in change or ())}
        numbers = [int(seed) for seed in filter(None, seeds.split(","))]
        try:
            runtime.run_stage(run, name=name, seeds=numbers, changes=changes, workers=workers, wait=wait)
        except (StageFailed, WorkspaceBusy, TrialFailed) as error:
            runtime.console.print(str(error).splitlines()[0], style="bold red", markup=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            runtime.console.print("interrupted: trainings that ended are kept, and the next run goes on from there")
            raise typer.Exit(130) from None


export = typer.Typer(no_args_is_help=True, help="The dataset and the model for other tools.")
app.add_typer(export, name="export")


@export.command()
def mmsa(path: Annotated[Path, typer.Argument(help="The .pkl file to write.")]) -> None:
    """Write [bold]data/dataset/[/bold] as a pickle in MMSA's format, which MMSA trains on.

    Clips without a label are left out. What MMSA is to be told beside the path is in docs/mmsa.md.
    """
    from extractors.export import export_mmsa
    from flows.params import load_params

    with _plain_errors():
        written = export_mmsa(load_params().paths.dataset, path)
    shapes = ", ".join(f"{m} {steps} x {width}" for m, (steps, width) in written.shapes.items())
    clips = ", ".join(f"{count} {split}" for split, count in written.clips.items())
    typer.echo(f"{path}: {clips}; {shapes}; {'with' if written.tokens else 'without'} text_bert")
    if written.unlabelled:
        typer.echo(f"{written.unlabelled} clips without a label were left out")


@export.command()
def datasets(path: Annotated[Path, typer.Argument(help="The folder to write.")]) -> None:
    """Write [bold]data/dataset/[/bold] as a folder that Hugging Face [bold]datasets.load_dataset(path)[/bold] reads."""
    from extractors.export import export_datasets
    from flows.params import load_params

    with _plain_errors():
        clips = export_datasets(load_params().paths.dataset, path)
    typer.echo(f"{path}: {', '.join(f'{count} {split}' for split, count in clips.items())}")


@export.command("model")
def export_model(
    folder: Annotated[Path, typer.Argument(help="The folder to write.")], model: Checkpoint = None
) -> None:
    """Copy a checkpoint, all that predicting needs, with the test metrics in its model card (README.md)."""
    from flows.params import load_params
    from flows.predict import default_model
    from model.card import export_checkpoint

    with _plain_errors():
        params = load_params()
        split = params.evaluate.split
        path = params.paths.metrics / f"{split}.json"
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        export_checkpoint(model or default_model(), folder, metrics, split)
    told = f"metrics of {path}" if metrics else f"no {path} yet: its card has the validation metrics"
    typer.echo(f"{folder}: {told}")


@export.command()
def onnx(path: Annotated[Path, typer.Argument(help="The .onnx file to write.")], model: Checkpoint = None) -> None:
    """Write the network as ONNX, from features to the score, for any number of clips and steps; masks are inputs.

    Its predictions are compared with PyTorch's, alone and in padded batches, missing modalities included; a difference
    over 1e-4 is refused. Needs pip install -e '.[onnx]'.
    """
    from flows.predict import default_model

    with _plain_errors():
        from model.export import export_onnx

        written = export_onnx(model or default_model(), path)
    for name, shape in written.inputs.items():
        typer.echo(f"{name:<12} [{', '.join(map(str, shape))}]")
    typer.echo(f"{path}: differs from PyTorch by {written.difference:.1e} at most, over {written.clips} clips")


cache = typer.Typer(no_args_is_help=True, help="What extraction keeps between runs, in .dashfusion/scratch.")
app.add_typer(cache, name="cache")


@cache.command()
def prune(
    studies: Annotated[
        bool, typer.Option("--studies", help="Also what studies have trained; their tables stay.")
    ] = False,
) -> None:
    """Remove what [bold]params.yaml[/bold]'s settings do not need: results, states of stopped trainings, tracebacks."""
    from corpora.manifest import MODALITIES
    from corpora.problems import read_problems
    from extractors import run
    from extractors.corrupt_split import folders_of
    from extractors.transcribe import signatures
    from flows.extract import scratch_folder
    from flows.params import load_params
    from model.train import MAPPED, runs_folder
    from model.trial import TRIALS

    with _plain_errors():
        params, scratch = load_params(), scratch_folder()
        chosen = [getattr(params.extract, modality) for modality in MODALITIES]
        keep = {run.describe(item.extractor, item.options).signature for item in chosen}
        keep |= signatures(params.transcribe)
        corrupted = folders_of(scratch, keep)
        problems = read_problems(sorted(params.paths.problems.glob("*.parquet")))
        training = {MAPPED} if studies else {MAPPED, TRIALS}
        if (params.paths.dataset / "dataset.json").exists():
            training.add(runs_folder(scratch, params.paths.dataset, params.model, params.train).name)
        traces = {problem.traceback for problem in problems}
        folders, freed = run.prune(scratch, keep | corrupted | training | traces)
    typer.echo(f"{folders} folders removed, {freed / 2**20:.1f} MiB freed; kept: {', '.join(sorted(keep))}")


@app.command()
def use(
    choices: Annotated[
        list[str] | None, typer.Argument(help="group=preset or key=value, such as corpus=mmsa.", show_default=False)
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep in conf/ what was edited in params.yaml.")] = False,
) -> None:
    """Compose [bold]params.yaml[/bold] from the presets in conf/: what is not named goes back to the default.

    For example: dashfusion use corpus=mmsa prepare.root=/videos/mosi prepare.corpus=mosi. It is kept in
    conf/chosen.yaml, from which [bold]dvc exp run[/bold] starts. Without arguments: what is chosen, what was edited in
    params.yaml, and which presets there are.
    """
    from flows import presets

    if choices and save:
        raise typer.BadParameter("--save keeps what params.yaml says and takes no choices")
    with _plain_errors():
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
            "These edits of params.yaml are followed by dvc repro and dashfusion pipeline; dvc exp run starts from "
            "conf/ and drops them, unless dashfusion use --save keeps them there."
        )
    else:
        typer.echo("params.yaml is what conf/ composes to: dvc repro and dvc exp run start alike.")
    told = " ".join(f"{key}={value}" for key, value in [*groups.items(), *values.items()])
    typer.echo(f"chosen: {told or 'nothing, these are the defaults'}")
    table = {f"{group}={name}": meaning for group, names in known.items() for name, meaning in names.items()}
    for choice, meaning in table.items():
        typer.echo(f"  {choice:<{max(map(len, table))}}  {meaning}")


OnOff = Annotated[
    bool | None, typer.Option("--schedule/--no-schedule", help="The nightly run; if left out, as prefect.yaml says.")
]


@app.command()
def deploy(
    schedule: OnOff = None,
    cron: Annotated[str | None, typer.Option(help="When, instead of prefect.yaml's: '0 3 * * *'.")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of the cron expression: Europe/Berlin.")] = None,
) -> None:
    """Bring the deployments of [bold]prefect.yaml[/bold] to a Prefect server: runs by a click, by the clock, by API.

    The server is the one that [bold]PREFECT_API_URL[/bold] names, else that of [bold]dashfusion ui[/bold].
    """
    from flows import deploy as deployments

    with _plain_errors():
        change = deployments.Schedule(schedule, cron, timezone)
        for deployed in deployments.deploy(deployments.find_server(), change):
            typer.echo(deployed)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on loopback; the report is served on the next one.")] = 4200,
    schedule: OnOff = None,
    worker: Annotated[bool, typer.Option(help="Run here what is started on the pages.")] = True,
) -> None:
    """Serve Prefect's pages on loopback until Ctrl-C: every run on this machine, and deployments to start new ones."""
    from flows import ui as pages
    from flows.deploy import Schedule

    with _plain_errors():
        try:
            pages.serve(port, Schedule(schedule), worker)
        except KeyboardInterrupt:
            typer.echo("stopped")


if __name__ == "__main__":
    app()
