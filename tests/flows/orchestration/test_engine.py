"""Stages run with Prefect's engine, and without it where no server can be had."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.orchestration import engine, prefect_server, settings, supervisor


def test_prefects_server_can_be_imported_with_the_pinned_packages():
    import prefect.server.api.server

    assert prefect.server.api.server.create_app


def test_a_dead_address_is_answered_by_running_without_a_server(monkeypatch):
    monkeypatch.delenv("DASHFUSION_SERVER", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{prefect_server.free_port()}/api")
    address, said = prefect_server.find_or_start()
    assert address is None and "no Prefect server answers" in said and "PREFECT_API_URL" in said


STAGE = '''
import multiprocessing

from prefect import flow

from flows.orchestration import engine


@flow
def stage():
    """Spawn a process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("prefect" in pool.apply(eval, ("list(__import__('sys').modules)",)))


if __name__ == "__main__":
    engine.main(stage)
'''


def test_processes_that_a_stage_spawns_do_not_import_prefect(tmp_path):
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])}
    environment["DASHFUSION_SERVER"] = "off"
    command = [sys.executable, "-m", "stage"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_off_means_off(monkeypatch):
    monkeypatch.setenv("DASHFUSION_SERVER", "off")
    assert prefect_server.find_or_start()[0] is None


def test_the_stages_of_one_repro_do_not_repeat_where_they_report_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prefect_server, "healthy", lambda address: True)
    monkeypatch.delenv("DASHFUSION_SERVER", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", "http://named/api")
    assert prefect_server.find_or_start() == ("http://named/api", "reporting to the Prefect server at http://named/api")
    monkeypatch.setenv("DVC_STAGE", "prepare")
    assert prefect_server.find_or_start() == ("http://named/api", "")
    monkeypatch.delenv("PREFECT_API_URL")
    prefect_server.RECORD.parent.mkdir()
    owner = prefect_server._owner().pid
    prefect_server.RECORD.write_text(json.dumps({"api_url": "http://ours/api", "owner": owner}), encoding="utf-8")
    assert prefect_server.find_or_start() == ("http://ours/api", ""), "the first stage has started it, and said so"
    monkeypatch.setenv("DASHFUSION_SERVER", "off")
    assert prefect_server.find_or_start() == (None, "")


def test_the_server_of_another_run_is_not_used_since_it_stops_with_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prefect_server, "healthy", lambda address: True)
    settings.STATE.mkdir()
    for owner, found in ((os.getpid(), "http://127.0.0.1:1/api"), (os.getppid(), None), (2**22 + 1, None)):
        prefect_server.RECORD.write_text(json.dumps({"api_url": "http://127.0.0.1:1/api", "owner": owner}))
        assert prefect_server._recorded() == found


def test_the_database_is_the_projects_also_for_experiments_and_its_folder_names_prefects_version(tmp_path, monkeypatch):
    import prefect

    environments = []
    monkeypatch.setattr(prefect_server, "start_service", lambda *call, **options: environments.append(call[3]))
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    for folder in (tmp_path, copy):
        monkeypatch.chdir(folder)
        prefect_server.start(psutil.Process(), 4200)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "chosen"))
    prefect_server.start(psutil.Process(), 4200)
    home = str(tmp_path / ".dashfusion/prefect" / prefect.__version__)
    assert [environment.get("PREFECT_HOME") for environment in environments] == [home, home, None]
    assert Path(home).is_dir()


FLOW = """
from flows.orchestration import engine
from prefect import flow, task

@task
def double(n, *, by):
    return n * by

@task
def one():
    return 1

@flow
def add(items):
    return sum(engine.map_tasks(double, items, workers=2, by=10)) + engine.call(one)

print("result", engine.run_flow(add, items=[1, 2, 3]))
"""


def run_flow(**environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "DASHFUSION_SERVER")}
    path = os.pathsep.join([str(Path(prefect_server.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        env=clean | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_without_a_server_the_same_functions_run_plainly():
    out = run_flow(DASHFUSION_SERVER="off")
    assert "result 61" in out and len(out.splitlines()) == 2, out


@pytest.mark.server
def test_a_run_reports_to_a_server_of_its_own_and_leaves_no_process(tmp_path, monkeypatch, running_server):
    monkeypatch.chdir(tmp_path)
    out = run_flow(PREFECT_HOME=str(tmp_path), DASHFUSION_SERVER="own")
    assert "result 61" in out and "started for this run" in out
    assert "Traceback" not in out and len(out.splitlines()) == 2, out
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and leftovers():
        time.sleep(0.2)
    assert not leftovers()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with running_server() as api_url:
        assert count_task_runs(api_url, wanted=4) == 4, "task runs were lost"


def leftovers() -> list[str]:
    """Servers of ours whose run is over."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[2:4] == [supervisor.__file__, "service"] and not psutil.pid_exists(int(words[5])):
            found.append(" ".join(words))
    return found


@pytest.mark.server
def test_stages_share_the_server_and_task_runs_are_stored(tmp_path, monkeypatch, running_server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with running_server() as api_url:
        out = run_flow(PREFECT_API_URL=api_url)
        assert f"reporting to the Prefect server at {api_url}" in out and "result 61" in out
        assert count_task_runs(api_url, wanted=4) == 4
    assert not prefect_server.healthy(api_url), "the server outlived its supervisor"


def count_task_runs(api_url: str, wanted: int) -> int:
    """Task runs stored, given a few seconds: the server records them after the flow has ended."""
    import urllib.request

    for _ in range(50):
        request = urllib.request.Request(
            f"{api_url}/task_runs/count", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            count = json.load(answer)
        if count == wanted:
            break
        time.sleep(0.2)
    return count


@pytest.mark.parametrize("stage", ["check", "prepare", "transcribe", "extract", "align", "train", "evaluate", "study"])
def test_a_stages_script_takes_its_own_arguments_and_help_alone(stage, monkeypatch, capsys):
    import runpy

    for arguments, code, words in ((["--help"], 0, "usage: python -m flows."), (["--epochs", "3"], 2, "error: ")):
        monkeypatch.setattr(sys, "argv", [f"{stage}.py", *arguments])
        monkeypatch.setattr(engine, "run_flow", lambda *_, **__: pytest.fail("the stage ran"))
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"flows.{stage}", run_name="__main__")
        said = capsys.readouterr()
        assert ended.value.code == code and words in said.out + said.err


def fill_the_disk() -> None:
    with Path("/dev/full").open("w") as file:
        file.write("x")


def write_with_a_library() -> None:
    try:
        fill_the_disk()
    except OSError as error:
        raise RuntimeError("PytorchStreamWriter failed writing file") from error


def name_a_file() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/videos/x.parquet")


@pytest.mark.parametrize(
    ("write", "place"),
    [(fill_the_disk, "(.+)"), (write_with_a_library, "(.+)"), (name_a_file, "/videos/x.parquet")],
)
def test_a_full_disk_is_one_line_with_what_can_be_freed(write, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DASHFUSION_SCRATCH", raising=False)
    monkeypatch.delenv("DASHFUSION_TRACEBACK", raising=False)
    (tmp_path / ".dashfusion/scratch").mkdir(parents=True)
    with (tmp_path / ".dashfusion/scratch/clip.npz").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(SystemExit), engine.plain_exit("extract"):
        write()
    line, hint = capsys.readouterr().out.splitlines()
    assert re.match(f"extract stopped: no space left on the disk of {place}; finished work is kept", line)
    assert f"{tmp_path}/.dashfusion/scratch holds 3.0 GiB" in line and "TRACEBACK" in hint
    assert "`dashfusion cache prune`" in line and "`dvc gc --workspace`" in line


def test_runs_are_tagged_with_corpus_stage_and_who_runs_them(monkeypatch):
    from contextlib import nullcontext
    from types import SimpleNamespace

    tagged = {}
    client = SimpleNamespace(update_flow_run=lambda run_id, tags: tagged.update({run_id: tags}))
    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda sync_client: nullcontext(client))
    monkeypatch.chdir(Path(prefect_server.__file__).parents[2])
    runs = [SimpleNamespace(id=n, parameters={}, tags=["mine"]) for n in range(2)]
    monkeypatch.delenv("DVC_STAGE", raising=False)
    engine.add_tags(SimpleNamespace(name="pipeline"), runs[0], None)
    monkeypatch.setenv("DVC_STAGE", "train")
    engine.add_tags(SimpleNamespace(name="train"), runs[1], None)
    assert tagged == {0: ["corpus:demo_en", "mine"], 1: ["corpus:demo_en", "dvc", "mine", "stage:train"]}


def test_a_long_table_is_cut_and_says_so(monkeypatch):
    published = {}
    monkeypatch.setattr(engine, "engine_active", lambda: True)
    monkeypatch.setattr("prefect.artifacts.create_table_artifact", lambda **given: published.update(given))
    engine.publish_table("problems", ({"clip": i} for i in range(2000)), "Problems")
    assert published["table"] == [{"clip": i} for i in range(engine.MAX_TABLE_ROWS)]
    assert published["description"] == "Problems (the first 500 of 2,000)"
    engine.publish_table("problems", [{"clip": 0}], "Problems")
    assert published["description"] == "Problems"


def test_without_the_engine_the_gpu_is_nobodys_and_cached_results_are_plain():
    with engine.gpu_slot():
        assert engine.cached_state("result", "why") == "result"
