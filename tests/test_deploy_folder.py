"""The files of deploy/ name what there is: no container engine is needed to find out that they do not."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from flows.orchestration.deployments import PROJECT

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")


@pytest.fixture
def services() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]


def pool(kind: str) -> dict:
    return json.loads((DEPLOY / f"{kind}-pool.json").read_text(encoding="utf-8"))


def test_the_image_copies_every_package_and_what_its_installation_reads(dockerfile):
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"]} <= set(copied)


def test_the_project_lies_at_one_place_in_all_of_them(dockerfile, services):
    place = re.search(rf"{PROJECT}=(\S+)", dockerfile)[1]
    assert f"WORKDIR {place}\n" in dockerfile and f"safe.directory {place}" in dockerfile
    assert all(f"..:{place}" in one["volumes"] for name, one in services.items() if name != "database")
    assert pool("docker")["variables"]["properties"]["volumes"]["default"] == [f".:{place}"]
    container = pool("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [place]


def test_services_build_from_our_file_and_wait_for_services_that_there_are(services):
    for one in services.values():
        assert set(one.get("depends_on", ())) <= set(services)
        if build := one.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_services_run_commands_and_reach_addresses_that_there_are(services):
    from typer.main import get_command

    from flows.cli.app import app
    from flows.orchestration.settings import REPORT_URL

    assert services["deployments"]["command"][1] in get_command(app).commands
    pools = {
        one["work_pool"]["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    }
    worker = services["worker"]
    assert {worker["command"][worker["command"].index("--pool") + 1]} == pools
    port = services["server"]["command"][-1]
    assert worker["environment"]["PREFECT_API_URL"] == f"http://server:{port}/api"
    assert worker["environment"][REPORT_URL].rpartition(":")[2] == services["report"]["command"][3]


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_fills_in_the_variables_that_it_has_and_no_other(kind):
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(pool(kind)["job_configuration"])))
    assert used == set(pool(kind)["variables"]["properties"])


def test_the_jobs_volume_is_the_one_that_is_claimed():
    claim = yaml.safe_load((DEPLOY / "kubernetes-volume.yaml").read_text(encoding="utf-8"))
    default = pool("kubernetes")["variables"]["properties"]["volume_claim"]["default"]
    assert claim["kind"] == "PersistentVolumeClaim" and claim["metadata"]["name"] == default
