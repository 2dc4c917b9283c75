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


# dashfusion serve


@pytest.fixture
def serving_image() -> str:
    return (DEPLOY / "Dockerfile.serve").read_text(encoding="utf-8").replace("\\\n", "")


@pytest.fixture
def serving_services() -> dict:
    return yaml.safe_load((DEPLOY / "compose.serve.yaml").read_text(encoding="utf-8"))["services"]


@pytest.fixture
def deployment() -> dict:
    return next(one for one in kubernetes_objects() if one["kind"] == "Deployment")


def kubernetes_objects() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes-serve.yaml").read_text(encoding="utf-8")))


def instruction(dockerfile: str, name: str) -> str:
    """Argument of the last instruction of that name."""
    return re.findall(rf"^{name} (.+)$", dockerfile, re.MULTILINE)[-1]


def test_the_serving_image_copies_what_it_installs(serving_image):
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", serving_image, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert packages | files | {"deploy/requirements-serve.txt"} == names


def test_both_images_have_the_libraries_that_mediapipe_and_opencv_load(dockerfile, serving_image):
    for image in (dockerfile, serving_image):
        packages = re.search(r"apt-get install --yes --no-install-recommends ([^&]+)&&", image)[1].split()
        assert {"libegl1", "libgl1", "libgles2", "libglib2.0-0"} <= set(packages)


def test_the_serving_image_runs_a_command_that_there_is_as_a_user_without_rights(serving_image):
    from typer.main import get_command

    from flows.cli.app import app

    entry = json.loads(instruction(serving_image, "ENTRYPOINT"))
    command = get_command(app).commands[entry[1]]
    arguments = command.make_context("serve", [*entry[2:], *json.loads(instruction(serving_image, "CMD"))]).params
    assert arguments["host"] == "0.0.0.0" and arguments["log_format"] == "json"
    assert instruction(serving_image, "USER") == "10001:10001"
    settings = instruction(serving_image, "ENV")
    assert "HOME=/tmp" in settings and "NUMBA_CACHE_DIR=/tmp/" in settings, "nothing else is writable"
    assert f"EXPOSE {arguments['port']}\n" in serving_image


def test_checkpoint_port_and_probes_are_the_same_everywhere(serving_image, serving_services, deployment):
    from flows.serving.security import OPEN_PATHS

    checkpoint = json.loads(instruction(serving_image, "ENTRYPOINT"))[3]
    assert [volume.split(":")[-2:] for volume in serving_services["serve"]["volumes"]] == [[checkpoint, "ro"]]
    port = int(instruction(serving_image, "EXPOSE"))
    assert f"127.0.0.1:{port}/health" in serving_image
    assert f"serve:{port}" in (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in OPEN_PATHS and container[probe]["httpGet"]["port"] == "http"


def test_only_the_proxy_is_published_and_the_server_writes_to_tmp_alone(serving_services):
    serve, proxy = serving_services["serve"], serving_services["proxy"]
    assert "ports" not in serve and serve["networks"] == ["inside"] and "inside" in proxy["networks"]
    for one in (serve, proxy):
        assert one["read_only"] and one["cap_drop"] == ["ALL"] and "no-new-privileges:true" in one["security_opt"]
    assert serve["tmpfs"][0].startswith("/tmp:")
    assert ":?" in serve["environment"]["DASHFUSION_TOKEN"], "it does not start without a token"
    assert (ROOT / serve["build"]["dockerfile"]).is_file()


def test_the_pod_is_confined_and_has_time_to_stop(deployment):
    from flows.serving.server import SEND_SECONDS, SHUTDOWN_SECONDS, TOKEN_VARIABLE
    from flows.serving.worker_pool import Limits

    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    confined = container["securityContext"]
    assert confined["readOnlyRootFilesystem"] and not confined["allowPrivilegeEscalation"]
    assert confined["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert [one["name"] for one in container["env"] if "secretKeyRef" in one["valueFrom"]] == [TOKEN_VARIABLE]
    stop = int(container["lifecycle"]["preStop"]["exec"]["command"][1]) + SHUTDOWN_SECONDS + SEND_SECONDS
    assert pod["terminationGracePeriodSeconds"] > stop
    assert int(container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30 > Limits().memory


def test_the_service_selects_the_pods_of_the_deployment(deployment):
    service = next(one for one in kubernetes_objects() if one["kind"] == "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"http"}
