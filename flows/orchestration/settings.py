"""Folders and environment variables that the orchestration shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from corpora.files import tag_scratch

STATE = Path(".dashfusion")
"""Folder of logs, locks and the scratch folder, in the project."""

REPORT_PAGE = "index.html"

REPORT_URL = "DASHFUSION_REPORT_URL"
"""Environment variable with the address that serves the report folder: Prefect's pages may not link to files."""

FORCE = "DASHFUSION_FORCE"
"""Environment variable that tells a stage run by DVC that it was forced: it reuses nothing of an earlier run."""

QUIET = {
    # No telemetry and no check for newer versions: nothing here may wait for a network
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # a temporary server loses task runs; an error is better
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # a stage prints its own errors; the pages keep tracebacks
}
"""Environment of every process that uses Prefect."""


def forced() -> bool:
    """Return whether the stage that runs in this process was forced."""
    return os.environ.get(FORCE) == "1"


def python_path() -> str:
    """Return a PATH on which `python` is this interpreter, whether its environment is activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def project_folder() -> Path:
    """Return the project's folder: the current one, or for a copy that DVC makes for an experiment the original."""
    here = Path.cwd()
    copies = (folder for folder in here.parents if folder.parts[-3:] == (".dvc", "tmp", "exps"))
    return next((folder.parents[2] for folder in copies), here)


def scratch_folder() -> Path:
    """Return the folder of per-clip results: `$DASHFUSION_SCRATCH`, or `.dashfusion/scratch` of the project.

    Experiments share the results of extraction, since `project_folder` is the same for all of them.
    """
    if named := os.environ.get("DASHFUSION_SCRATCH"):
        return Path(named).absolute()
    return project_folder() / STATE / "scratch"


def open_scratch() -> Path:
    """Return the scratch folder, created and marked as such."""
    scratch = scratch_folder()
    tag_scratch(scratch)
    return scratch
