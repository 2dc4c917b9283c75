"""The deployments of prefect.yaml on a Prefect server: runs by a click, by API or on a schedule."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.orchestration import prefect_server, settings
from flows.orchestration.engine import GPU_LIMIT

FILE = Path("prefect.yaml")
NIGHTLY = "pipeline"
"""Deployment whose schedule the commands' options change."""

PROJECT = "DASHFUSION_PROJECT"
"""Environment variable of a worker with the folder in which it runs the deployments."""

TAIL = 20
"""Last lines of a failed `prefect deploy` that its error contains."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Changes to the nightly run's schedule in prefect.yaml; None keeps the file's value.

    Raises:
        ValueError: Invalid `cron` or `timezone`.
    """

    active: bool | None = None
    cron: str | None = None
    timezone: str | None = None

    def __post_init__(self) -> None:
        from prefect.client.schemas.schedules import CronSchedule

        try:
            CronSchedule(cron=self.cron or "0 3 * * *", timezone=self.timezone or "UTC")
        except ValueError as error:
            given = " ".join(filter(None, (self.cron, self.timezone)))
            raise ValueError(
                f"{given!r} is not a schedule: --cron takes five fields, such as '0 3 * * *' (every day at 3:00), "
                "--timezone a name such as Europe/Berlin"
            ) from error


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment on the server: its name, the address of its page, and its schedules, if any, as text."""

    name: str
    address: str
    schedule: str

    def __str__(self) -> str:
        return f"{self.name:<9} {self.address}  {self.schedule}".rstrip()


def find_server() -> str:
    """Return the address of the server that `PREFECT_API_URL` names, else of the one that `dashfusion ui` starts.

    Raises:
        ValueError: The server does not answer.
    """
    named = os.environ.get("PREFECT_API_URL")
    api_url = named or prefect_server.loopback(prefect_server.UI_PORT)
    if prefect_server.healthy(api_url):
        return api_url
    where = f"PREFECT_API_URL={named}" if named else f"{api_url} (where `dashfusion ui` serves one)"
    raise ValueError(
        f"no Prefect server answers at {where}: start one with `dashfusion ui`, or set PREFECT_API_URL to the address "
        "of one that runs, such as http://host:4200/api"
    )


def deploy(api_url: str, change: Schedule) -> list[Deployed]:
    """Create or update the deployments of prefect.yaml, their work pools and the GPU limit on the server at `api_url`.

    Raises:
        ValueError: `prefect deploy` failed, or a deployment is missing afterwards.
        OSError: No prefect.yaml in the current folder.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    names = [deployment["name"] for deployment in _file_deployments()]
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        _create_missing(client)
        _run_prefect_deploy(api_url)
        for deployment in _read(client, [NIGHTLY]):
            _change_schedules(client, deployment, change)
        return [_describe(api_url, deployment) for deployment in _read(client, names)]


def work_pools() -> list[str]:
    """Return the names of the work pools of prefect.yaml's deployments."""
    return sorted({deployment["work_pool"]["name"] for deployment in _file_deployments()})


def _file_deployments() -> list[dict[str, Any]]:
    deployments: list[dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]
    return deployments


def _create_missing(client: Any) -> None:
    """Create missing work pools and the limit of trainings; existing ones may have another type or size."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    for pool in work_pools():
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    try:
        client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1))


def _run_prefect_deploy(api_url: str) -> None:
    environment = os.environ | settings.QUIET | {"PREFECT_API_URL": api_url}
    environment.pop(PROJECT, None)  # each worker fills in its own folder
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-TAIL:])
        raise ValueError(f"`prefect deploy --all` failed. Its last lines:\n{tail}")


def _read(client: Any, names: list[str]) -> list[Any]:
    """Return the server's deployments with these names, in this order."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    found = client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)))
    by_name = {deployment.name: deployment for deployment in found}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"`prefect deploy --all` succeeded, but the server has no deployment {', '.join(missing)}")
    return [by_name[name] for name in names]


def _change_schedules(client: Any, deployment: Any, change: Schedule) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    for schedule in deployment.schedules:
        before = schedule.schedule
        new = None
        if change.cron or change.timezone:
            new = CronSchedule(cron=change.cron or before.cron, timezone=change.timezone or before.timezone)
        if new is not None or change.active is not None:
            client.update_deployment_schedule(deployment.id, schedule.id, active=change.active, schedule=new)


def _describe(api_url: str, deployment: Any) -> Deployed:
    schedules = [
        f"{schedule.schedule.cron} {schedule.schedule.timezone or 'UTC'}{'' if schedule.active else ' (off)'}"
        for schedule in deployment.schedules
    ]
    address = f"{prefect_server.pages(api_url)}/deployments/deployment/{deployment.id}"
    return Deployed(deployment.name, address, ", ".join(schedules))
