"""The `pipeline` flow: what a stage's run says, how it ends, and that two runs do not get into each other's way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import psutil
import pytest

from flows import pipeline
from flows.orchestration import dvc, supervisor, workspace

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds, for what takes a few


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A DVC repository with one stage, `prepare`, which runs stage.py."""
    folder = tmp_path_factory.mktemp("template")
    stage = {"cmd": f"{sys.executable} stage.py", "deps": ["stage.py"], "outs": ["made.txt"]}
    (folder / "dvc.yaml").write_text(json.dumps({"stages": {"prepare": stage}}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def repository(template, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Sets what the stage does, in a repository that is the working directory, and returns that."""
    folder = tmp_path / "repository"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)

    def do(script: str) -> Path:
        (folder / "stage.py").write_text("from pathlib import Path\n" + script, encoding="utf-8")
        return folder

    return do


MAKE = "Path('made.txt').write_text('whole')\nprint('made it')\n"
MAKE_SLOWLY = "import time\nPath('begun').touch()\ntime.sleep(3)\n" + MAKE
NEVER_ENDS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("pids.tmp").write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
Path("pids.tmp").rename("pids")
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("prepare interrupted: finished work is kept", flush=True)
    sys.exit(130)
"""


def run(stage: str = "prepare", **options: Any) -> Any:
    """One stage through DVC, as the flow runs it without Prefect's engine."""
    return pipeline.run_stage_through_dvc.fn(stage, **options)


def start(code: str) -> subprocess.Popen[str]:
    """Another process in the working directory that runs `code`, as a user's terminal would."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a process that a script put aside ignores it
    return subprocess.Popen(
        [sys.executable, "-c", f"from flows import pipeline\n{code}"],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def appears(path: Path) -> Path:
    """Wait for a file."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)
    return path


def gone(pids: list[int]) -> bool:
    """Whether all of these processes end soon."""
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    deadline = time.monotonic() + PATIENCE
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in alive):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_stages_that_can_be_asked_for_are_those_of_dvc_yaml(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = dvc.stage_order()
    assert set(get_args(pipeline.Stage)) == {*stages, *(stage.split("@")[0] for stage in stages)}


def test_every_parameter_is_described_and_checked():
    properties = pipeline.pipeline.parameters.properties
    assert all(item["description"] for item in properties.values())
    assert "extract@audio" in properties["targets"]["items"]["enum"] and properties["time_limit"]["minimum"] == 0
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match=r"targets\.0[^$]*time_limit"):
        pipeline.pipeline.validate_parameters({"targets": ["extrac"], "time_limit": -1})


def test_a_stage_is_run_then_cached_and_its_lines_are_passed_on(repository, capsys):
    repository(MAKE)
    assert run().state == "run"
    assert "made it" in capsys.readouterr().out
    assert run().state == "cached"
    assert run(force=True).state == "run"
    repository(MAKE + "print('and more')")
    assert run().state == "run"
    repository(MAKE)
    assert run().state == "cached", "DVC still has what this made"
    said = capsys.readouterr().out
    assert "git add" not in said and "dvc push" not in said


def test_what_dvc_would_skip_is_asked_once_and_starts_no_process(repository, monkeypatch):
    folder = repository(MAKE)
    assert [result.state for result in pipeline.pipeline.fn()] == ["run"]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "dvc_repro", lambda *_: pytest.fail("DVC was started"))
        assert [result.state for result in pipeline.pipeline.fn()] == ["cached"]
    (folder / "made.txt").unlink()
    assert dvc.up_to_date() == set()
    pipeline.pipeline.fn()
    assert (folder / "made.txt").read_text() == "whole"
    repository(MAKE + "print('and more')")
    assert dvc.up_to_date() == set()


def test_only_the_targets_are_forced_and_what_follows_them_is_checked_again(repository, monkeypatch):
    """Of prepare -> extract -> align, extract is forced: prepare is cached, align is asked for again."""
    folder = repository(MAKE)
    stages = {
        name: {"cmd": f"cp {source} {name}", "deps": [source], "outs": [name]}
        for name, source in (("extract", "made.txt"), ("align", "extract"))
    }
    dvc_yaml = json.loads((folder / "dvc.yaml").read_text(encoding="utf-8"))
    dvc_yaml["stages"] |= stages
    (folder / "dvc.yaml").write_text(json.dumps(dvc_yaml), encoding="utf-8")
    pipeline.pipeline.fn()
    asked = {}

    def forced(stage: str, force: bool, time_limit: float) -> dvc.Output:
        asked[stage] = force
        return dvc.dvc_repro(stage, force, time_limit)

    monkeypatch.setattr(pipeline, "dvc_repro", forced)
    assert [(r.stage, r.state) for r in pipeline.run_stages(["extract"], force=True)] == [
        ("prepare", "cached"), ("extract", "run"),
    ]  # fmt: skip
    assert asked == {"extract": True}
    monkeypatch.setattr(pipeline, "stage_order", lambda targets: ["prepare", "extract", "align"])
    states = [(r.stage, r.state) for r in pipeline.run_stages(["extract"], force=True)]
    assert states == [("prepare", "cached"), ("extract", "run"), ("align", "cached")]
    assert asked == {"extract": True, "align": False}


def test_a_failed_stage_speaks_first_and_dvc_not_at_all(repository):
    repository("print('reading')\nprint('prepare stopped: ValueError: row 7 [0, 1]: no such clip')\n"
               "print('  look there')\nprint('(DASHFUSION_TRACEBACK=1 shows where)')\nraise SystemExit(1)")  # fmt: skip
    with pytest.raises(dvc.StageFailedError) as failed:
        run()
    first, *rest = str(failed.value).splitlines()
    assert first == "stage prepare failed: ValueError: row 7 [0, 1]: no such clip"
    assert rest[0] == "  look there" and "reading" in rest
    assert "failed to reproduce" not in str(failed.value) and "Running stage" not in str(failed.value)


def test_a_stage_that_crashes_is_named_with_its_error(repository):
    repository("raise TypeError('no number')")
    with pytest.raises(dvc.StageFailedError, match=r"^stage prepare failed: TypeError: no number\n"):
        run()


def test_a_stage_whose_own_run_was_cancelled_makes_its_task_cancelled_with_its_name(repository):
    repository("print('prepare was cancelled on the Prefect server')\nraise SystemExit(130)")
    state = run()
    assert state.is_cancelled() and state.message.startswith("stage prepare was cancelled: finished work is kept")


def test_dvcs_own_complaint_is_kept(repository):
    repository(MAKE).joinpath("stage.py").unlink()
    with pytest.raises(dvc.StageFailedError, match=r"stage prepare failed: .*stage\.py"):
        run()


@pytest.mark.e2e
def test_a_stage_is_ended_at_its_time_limit_with_all_that_it_started(repository):
    folder = repository(NEVER_ENDS)
    with pytest.raises(dvc.StageFailedError, match=r"time limit of 0\.1 minutes\..*--time-limit") as failed:
        run(time_limit=0.1)
    assert "prepare" in str(failed.value)
    assert gone([int(pid) for pid in (folder / "pids").read_text().split()])


@pytest.mark.e2e
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_the_process_that_runs_the_pipeline(repository, sign):
    folder = repository(NEVER_ENDS)
    process = start("pipeline.run_stage_through_dvc.fn('prepare')")
    pids = [int(pid) for pid in appears(folder / "pids").read_text().split()]
    pids += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(sign)
    said, _ = process.communicate(timeout=PATIENCE)
    assert gone(pids)
    if sign == signal.SIGINT:  # the user sees the stage's last lines
        assert "finished work is kept" in said


def test_who_does_not_stop_when_asked_is_killed():
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None and process.stdout.readline()
        supervisor.end_group(process.pid, grace=0.2)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.e2e
def test_what_a_killed_command_leaves_behind_is_ended_too(repository):
    folder = repository(NEVER_ENDS)
    process = start("pipeline.run_stage_through_dvc.fn('prepare')")
    stage, dvc, child = (int(pid) for pid in appears(folder / "pids").read_text().split())
    os.kill(dvc, signal.SIGKILL)
    assert gone([stage, child])
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1


HOLD = "with pipeline.workspace():\n    print('in', flush=True); input()\nprint('out', flush=True)"


def test_a_second_run_waits_in_one_line_until_the_first_has_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = start(HOLD)
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    second = start("with pipeline.workspace():\n    print('in')")
    assert second.stdout is not None
    said = second.stdout.readline()
    assert f"another pipeline run (PID {first.pid}, since " in said and "waiting until it has ended" in said
    first.communicate("\n", timeout=PATIENCE)
    assert second.communicate(timeout=PATIENCE)[0] == "in\n" and second.returncode == 0


def test_a_run_that_must_not_wait_is_refused_and_a_dead_one_refuses_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = start(HOLD)
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    with pytest.raises(workspace.WorkspaceBusyError, match=rf"PID {first.pid}, since .* works in this folder"):
        workspace.workspace(wait=False).__enter__()
    first.kill()
    first.communicate(timeout=PATIENCE)
    with workspace.workspace(wait=False):
        pass


@pytest.mark.e2e
def test_who_has_the_folder_is_named_although_it_says_so_a_moment_later_than_it_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace.HOLDER.parent.mkdir()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    workspace.HOLDER.write_text(json.dumps({"pid": int(dead.stdout), "since": 0.0}), encoding="utf-8")
    mine = json.dumps({"pid": os.getpid(), "since": 0.0})
    later = threading.Timer(0.3, lambda: workspace.HOLDER.write_text(mine, encoding="utf-8"))
    later.start()
    assert f"PID {os.getpid()}" in workspace._holder()
    later.join()


def test_a_dvc_repro_by_hand_is_waited_for(repository, capsys):
    folder = repository(MAKE_SLOWLY)
    by_hand = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], stdout=subprocess.DEVNULL)
    appears(folder / "begun")
    assert run().state == "cached"
    assert by_hand.wait(PATIENCE) == 0
    said = capsys.readouterr().out
    assert said.count("works on its files, waiting") == 1 and f"(PID {by_hand.pid})" in said
    assert "you can manually remove" not in said and "ERROR" not in said


@pytest.mark.e2e
def test_a_dvc_repro_by_hand_is_named_to_a_run_that_must_not_wait(repository):
    folder = repository(MAKE_SLOWLY)
    by_hand = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], stdout=subprocess.DEVNULL)
    appears(folder / "begun")
    with pytest.raises(dvc.StageFailedError, match=rf"`.*repro` \(PID {by_hand.pid}\) works on its files"):
        run(wait=False)
    assert by_hand.wait(PATIENCE) == 0


RUN = "from flows.orchestration import engine\nengine.main(pipeline.pipeline, targets=['prepare'])"


def ask(api_url: str, what: str, question: dict[str, Any] | None = None) -> Any:
    """An answer of the server's API."""
    request = urllib.request.Request(
        f"{api_url}/{what}", json.dumps(question or {}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def waited_for(look: Callable[[], Any]) -> Any:
    """What `look` finds, once it finds something: the server stores task runs and logs some time after they ended."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.server
def test_prefect_shows_run_cached_and_failed_stages_with_their_words(repository, tmp_path, monkeypatch, api_url):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    folder = repository(MAKE)
    shutil.copy(ROOT / "params.yaml", folder)

    def flow_run() -> dict[str, Any]:
        process = start(RUN)
        said = process.communicate(timeout=PATIENCE)[0]
        return ask(api_url, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0] | {"said": said}

    def stage(run: dict[str, Any]) -> dict[str, Any]:
        of = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        ended = {"task_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}}
        return waited_for(lambda: ask(api_url, "task_runs/filter", of | ended))[0]

    monkeypatch.setenv("PREFECT_API_URL", api_url)
    first, second = flow_run(), flow_run()
    repository("print('prepare stopped: ValueError: row 7: no such clip')\nraise SystemExit(1)")
    third = flow_run()
    assert [run["name"] for run in (first, second, third)] == ["pipeline demo_en"] * 3, first["said"]
    assert all("corpus:demo_en" in run["tags"] for run in (first, second, third))
    assert [stage(run)["state_name"] for run in (first, second, third)] == ["Completed", "Cached", "Failed"]
    assert stage(first)["name"] == "prepare" and stage(first)["total_run_time"] > 0
    assert third["state"]["type"] == "FAILED"
    words = "StageFailedError: stage prepare failed: ValueError: row 7: no such clip"
    assert words in third["state"]["message"].splitlines()[0] and words in stage(third)["state"]["message"]
    logged = waited_for(
        lambda: [
            log["message"]
            for log in ask(api_url, "logs/filter", {"logs": {"flow_run_id": {"any_": [first["id"]]}}})
            if "made it" in log["message"]
        ]
    )
    assert logged == ["made it"]
    tables = ask(api_url, "artifacts/filter", {"artifacts": {"key": {"any_": ["pipeline-stages"]}}})
    states = {table["flow_run_id"]: json.loads(table["data"])[0]["state"] for table in tables}
    assert states == {first["id"]: "run", second["id"]: "cached", third["id"]: "failed"}
    for run in (first, second, third):
        assert "Traceback" not in run["said"], run["said"]


TRAIN = """
import sys, time
from pathlib import Path
from flows.orchestration import engine
from prefect import flow

@flow
def training(name):
    with engine.gpu_slot():
        begun = time.monotonic()
        time.sleep(2)
        Path(name).write_text(f"{begun} {time.monotonic()}")

engine.run_flow(training, name='NAME')
"""


@pytest.mark.server
def test_two_trainings_never_share_the_gpu(tmp_path, monkeypatch, api_url):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)

    def train(*names: str) -> list[list[float]]:
        runs = [start(TRAIN.replace("NAME", name)) for name in names]
        said = [run.communicate(timeout=2 * PATIENCE)[0] for run in runs]
        assert [run.returncode for run in runs] == [0] * len(runs), said
        return sorted([float(time) for time in (tmp_path / name).read_text().split()] for name in names)

    monkeypatch.setenv("PREFECT_API_URL", api_url)
    assert train("without-a-limit")
    ask(api_url, "v2/concurrency_limits/", {"name": "gpu", "limit": 1})
    (_, first_end), (second_begin, _) = train("one", "other")
    assert first_end <= second_begin
