"""The Prefect door: deployments, runs, schedule and cancelling, on a real server with a worker."""

from __future__ import annotations

import json
import signal
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from flows.orchestration import prefect_server, supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.server

STAGED = ["evaluate", "extract", "pipeline", "train"]
NAMES = sorted([*STAGED, "compare", "predict", "study", "watch"])
EXTRACTIONS = ["extract@text", "extract@audio", "extract@vision"]
STAGES = ["check", "prepare", "transcribe", *EXTRACTIONS, "align", "train", "evaluate"]


@pytest.fixture(autouse=True)
def parameters_restored(small_project) -> Iterator[None]:
    """What a test changes in params.yaml is undone: other tests use the project as well."""
    file = small_project.folder / "params.yaml"
    before = file.read_text(encoding="utf-8")
    yield
    file.write_text(before, encoding="utf-8")


def test_ui_makes_the_deployments_and_says_where_they_are(house):
    found = house.deployments()
    assert sorted(found) == NAMES
    for name, one in found.items():
        assert f"{house.api_url.removesuffix('/api')}/deployments/deployment/{one['id']}" in house.said
        assert (one["work_pool_name"], one["global_concurrency_limit"]["limit"]) == ("dashfusion", 1)
        assert one["concurrency_options"]["collision_strategy"] == ("CANCEL_NEW" if name == "watch" else "ENQUEUE")
        if name in STAGED:
            assert one["parameters"] == {"targets": [] if name == "pipeline" else [name]}
        assert "dashfusion" in one["tags"] and one["description"]
    for name in ("pipeline", "watch"):
        assert [schedule["active"] for schedule in found[name]["schedules"]] == [False]
    assert house.api("work_pools/dashfusion")["type"] == "process"
    assert house.api("v2/concurrency_limits/gpu")["limit"] == 1


def test_parameters_are_described_and_checked(house):
    takes = {
        "pipeline": {"targets", "force", "time_limit"},
        "compare": {"models", "seeds", "trials", "workers"},
        "study": {"name", "seeds", "changes", "workers"},
        "predict": {"path", "level"},
        "watch": {"folder"},
    }
    for name, parameters in takes.items():
        schema = house.deployments()[name]["parameter_openapi_schema"]["properties"]
        assert parameters <= set(schema)
        assert all(one["description"] for one in schema.values()), name
    with pytest.raises(urllib.error.HTTPError) as refused:
        house.start("pipeline", targets=["trian"])
    assert "is not one of" in (said := refused.value.read().decode()) and "trian" in said


def test_prefects_own_command_deploys_the_same(house):
    before = house.deployments()
    for one in before.values():
        house.api(f"deployments/{one['id']}", method="DELETE")
    done = house.run("-m", "prefect", "--no-prompt", "deploy", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    after = house.deployments()
    same = ("name", "parameters", "tags", "entrypoint", "pull_steps", "work_pool_name", "concurrency_options")
    assert [{key: after[name][key] for key in same} for name in NAMES] == [
        {key: before[name][key] for key in same} for name in NAMES
    ]
    assert "DASHFUSION_PROJECT" in str(after["train"]["pull_steps"]), "a worker's own folder is to be filled in late"
    assert not after["pipeline"]["schedules"][0]["active"]


def test_a_server_that_does_not_answer_is_named_with_the_way_out(house):
    dead = prefect_server.loopback(prefect_server.free_port())
    done = house.run("-m", "flows.cli", "deploy", PREFECT_API_URL=dead)
    assert done.returncode == 1
    assert dead in done.stdout and "dashfusion ui" in done.stdout and "Traceback" not in done.stdout + done.stderr


def test_a_cron_expression_that_is_none_is_refused(house):
    done = house.run("-m", "flows.cli", "deploy", "--cron", "often")
    assert done.returncode == 1 and "'often' is not a schedule" in done.stdout, done.stdout + done.stderr


def test_a_failing_deploy_shows_its_last_lines(house):
    path = house.project.folder / "prefect.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("flows/pipeline.py:pipeline", "flows/pipeline.py:pipelin"), encoding="utf-8")
    try:
        done = house.run("-m", "flows.cli", "deploy")
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1 and "pipelin" in done.stdout and "Its last lines" in done.stdout, done.stdout


def test_a_run_shows_a_task_a_stage_and_the_stages_own_runs_below_it(house, first_run):
    assert house.stages(first_run["id"], len(STAGES)) == dict.fromkeys(STAGES, "Completed")
    assert first_run["name"] == "pipeline demo_en" and {"dashfusion", "corpus:demo_en"} <= set(first_run["tags"])
    children = house.children(first_run["id"])
    assert sorted(child["name"] for child in children) == sorted(
        f"{stage.replace('@', ' ')} demo_en"
        for stage in STAGES[1:]  # `check` is no flow
    )
    assert {child["state_type"] for child in children} == {"COMPLETED"}
    assert all("dvc" in child["tags"] for child in children)


def test_a_run_leaves_metrics_problems_and_a_link_to_its_report(house, first_run):
    runs = [first_run["id"], *(child["id"] for child in house.children(first_run["id"]))]
    artifacts = house.artifacts(*runs)
    assert "Mean absolute error" in artifacts["metrics"]["data"] == artifacts["pipeline-metrics"]["data"]
    assert [row["state"] for row in yaml.safe_load(artifacts["pipeline-stages"]["data"])] == ["run"] * len(STAGES)
    assert "problems" in " ".join(artifacts)
    link = next(one["data"] for one in artifacts.values() if "index.html" in str(one["data"]))
    address = link[link.index("http://127.0.0.1") : link.index("index.html") + len("index.html")]
    with urllib.request.urlopen(address, timeout=30) as page:
        assert b"demo_en" in page.read()
    for hidden in ("", "/..", "/../params.yaml", "/%2e%2e/params.yaml"):
        try:
            with urllib.request.urlopen(address.removesuffix("/index.html") + hidden, timeout=30) as answer:
                assert b"<title>Directory listing" not in (page := answer.read()) and b"prepare:" not in page
        except urllib.error.HTTPError as error:
            assert error.code == 404


def test_a_second_run_is_all_cached(house, first_run):
    run = house.finished("pipeline")
    assert run["state_type"] == "COMPLETED"
    assert house.stages(run["id"], len(STAGES)) == dict.fromkeys(STAGES, "Cached")
    assert house.children(run["id"]) == []


def test_a_stage_that_fails_says_why_on_the_runs_page(house, first_run):
    before = (house.project.folder / "params.yaml").read_text(encoding="utf-8")
    house.project.set("extract.audio.extractor", "audio.librosaa")
    try:
        run = house.finished("extract")
    finally:
        (house.project.folder / "params.yaml").write_text(before, encoding="utf-8")
    assert run["state_type"] == "FAILED"
    message = run["state"]["message"]
    assert "extract@audio" in message and "did you mean 'audio.librosa'?" in message, message


def test_the_clock_starts_a_run(house, first_run):
    house.api("v2/concurrency_limits/gpu", method="PATCH", limit=2)
    done = house.run("-m", "flows.cli", "deploy", "--schedule", "--cron", "* * * * *", "--timezone", "Europe/Berlin")
    assert done.returncode == 0 and "* * * * * Europe/Berlin" in done.stdout, done.stdout + done.stderr
    assert not house.deployments()["watch"]["schedules"][0]["active"], "the options are for the nightly run alone"
    assert house.api("v2/concurrency_limits/gpu")["limit"] == 2, "what the server has of its own is left alone"
    scheduled = {"deployment_id": {"any_": [house.deployments()["pipeline"]["id"]]}}

    def by_the_clock() -> list[str]:
        runs = house.api("flow_runs/filter", flow_runs=scheduled)
        return [one["id"] for one in runs if one["auto_scheduled"] and one["state_type"] == "COMPLETED"]

    try:
        house.wait(by_the_clock, "a run that the schedule has started")
    finally:
        done = house.run("-m", "flows.cli", "deploy", "--no-schedule")
    assert done.returncode == 0 and "0 3 * * * UTC (off)" in done.stdout, done.stdout + done.stderr
    left = house.api("flow_runs/filter", flow_runs=scheduled | {"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert left == []


def test_cancelling_a_run_ends_its_processes(house):
    # Two stages whose results are not there yet: the first cannot be the last thing that the run does
    run, idle, extracting = start_extraction(house, hop_seconds=0.05, fps=29)
    house.api(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    assert house.wait_for(run, "CANCELLED", "CRASHED", "COMPLETED")["state_name"] == "Cancelled"
    house.wait(lambda: not {p.pid for p in house.processes()} - idle, "the end of the run's processes", 60)
    assert not any(process.is_running() for process in extracting)
    assert running(house, run) == [], "its stages' runs seem to go on"


def test_cancelling_a_stages_own_run_ends_the_stage_and_the_run_names_it(house):
    run, idle, extracting = start_extraction(house, hop_seconds=0.045, fps=27)
    [stage] = [child for child in house.children(run) if child["name"] in running(house, run)]
    house.api(f"flow_runs/{stage['id']}/set_state", state={"type": "CANCELLING"})
    ended = house.wait_for(run, "CANCELLED", "FAILED", "CRASHED", "COMPLETED")
    name = stage["name"].removesuffix(" demo_en").replace(" ", "@")
    assert (ended["state_name"], ended["state"]["message"].partition(":")[0]) == (
        "Cancelled",
        f"stage {name} was cancelled",
    )
    assert house.wait_for(stage["id"], "CANCELLED")["state"]["message"].startswith("extract was cancelled")
    assert not any(process.is_running() for process in extracting)
    house.wait(lambda: not {p.pid for p in house.processes()} - idle, "the end of the run's processes", 60)
    rows = json.loads(house.artifacts(run)["pipeline-stages"]["data"])
    assert (rows[-1]["stage"], rows[-1]["state"]) == (name, "cancelled")


def test_a_worker_that_is_killed_is_replaced_and_its_run_has_crashed(house):
    run, idle, extracting = start_extraction(house, hop_seconds=0.04, fps=26)
    [worker] = workers(house)
    psutil.Process(worker).kill()
    house.wait(lambda: not any(map(supervisor.is_running, extracting)), "the end of the stage", 60)
    assert house.wait_for(run, "CRASHED", "COMPLETED", "FAILED", "CANCELLED")["state_type"] == "CRASHED"
    house.wait(lambda: {child["state_type"] for child in house.children(run)} <= {"CRASHED", "COMPLETED"}, "its stages")
    house.wait(lambda: workers(house) - idle, "another worker", 60)
    house.wait(lambda: not others(house) - idle, "the end of the run's processes", 60)
    run = house.finished("predict", path="nowhere.mp4")
    assert run["state_type"] == "FAILED", "nobody took the worker's place"


def test_ctrl_c_leaves_no_process_and_no_run_that_seems_to_go_on(new_house, tmp_path):
    house = new_house(tmp_path)
    idle = {process.pid for process in house.processes()}
    house.project.set("extract.audio.options.hop_seconds", 0.055)
    house.project.set("extract.vision.options.fps", 28)
    with house.ui() as process:
        house.read_until(process, "deployment run")
        run = house.start("extract")
        house.wait(lambda: running(house, run) and extractions(house), "an extraction")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 0
        assert "stopped" in process.stdout.read()
        assert not {p.pid for p in house.processes()} - idle
    assert not prefect_server.healthy(house.api_url)
    with closing(sqlite3.connect(house.home / "prefect.db")) as database:
        states = database.execute("select state_type from flow_run").fetchall()
    assert ("CANCELLED",) in states and ("RUNNING",) not in states, states


def test_a_worker_that_is_killed_with_its_terminal_leaves_no_process(new_house, tmp_path):
    house = new_house(tmp_path)
    idle = {process.pid for process in house.processes()}
    with house.ui() as process:
        house.read_until(process, "deployment run")
        process.kill()
        house.wait(lambda: not {p.pid for p in house.processes()} - idle, "the end of server and worker", 60)


def running(house, run: str) -> list[str]:
    """The run's extractions that run, by the server's account."""
    states = {child["name"]: child["state_type"] for child in house.children(run)}
    return [name for name, state in states.items() if name.startswith("extract ") and state == "RUNNING"]


def extractions(house) -> list[psutil.Process]:
    """Processes that extract in the house's project, workers aside."""
    found = []
    for process in house.processes():
        try:
            if "flows.extract" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def start_extraction(house, hop_seconds: float, fps: int) -> tuple[str, set[int], list[psutil.Process]]:
    """A run of `extract` at work: its id, the processes before it, and those that extract."""
    house.wait(lambda: house.api("work_pools/dashfusion/workers/filter"), "the worker")
    idle = {process.pid for process in house.processes()}
    house.project.set("extract.audio.options.hop_seconds", hop_seconds)
    house.project.set("extract.vision.options.fps", fps)
    run = house.start("extract")
    return run, idle, house.wait(lambda: running(house, run) and extractions(house), "an extraction")


def workers(house) -> set[int]:
    """PIDs of the house's Prefect workers."""
    found = set()
    for process in house.processes():
        with suppress(psutil.Error):
            if process.cmdline()[1:4] == ["-m", "prefect", "worker"]:
                found.add(process.pid)
    return found


def others(house) -> set[int]:
    """PIDs of the house's processes, without workers and those that supervise a service."""
    found = set()
    for process in house.processes():
        with suppress(psutil.Error):
            if "service" not in process.cmdline():
                found.add(process.pid)
    return found - workers(house)
