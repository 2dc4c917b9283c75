"""Folders and environment variables that the orchestration shares."""

from __future__ import annotations

import os
from pathlib import Path

REPORT_PAGE = "index.html"
REPORT_URL = "DASHFUSION_REPORT_URL"  # where the report's folder is served, if it is; pages may not link to files


def scratch_folder() -> Path:
    """Where finished clips lie between runs: `$DASHFUSION_SCRATCH`, or `.dashfusion/scratch` of the project.

    In a copy of the project that DVC makes for an experiment (in `.dvc/tmp/exps`) it is the project's own: what was
    extracted once is not extracted again, and does not go with the copy.
    """
    if named := os.environ.get("DASHFUSION_SCRATCH"):
        return Path(named).absolute()
    here = Path.cwd()
    copies = (folder for folder in here.parents if folder.parts[-3:] == (".dvc", "tmp", "exps"))
    project = next((folder.parents[2] for folder in copies), here)
    return project / ".dashfusion/scratch"


STATE = Path(".dashfusion")


# Neither telemetry nor a look for newer versions: nothing here may wait for a network.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # a server that loses task runs; an error is better
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # a stage prints its own errors; the pages keep the traces
}
