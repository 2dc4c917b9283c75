"""The `dashfusion` command line."""

from flows.cli import export, prediction, problems, project, stages, zero_shot  # each adds its commands to `app`
from flows.cli.app import app

__all__ = ["app", "export", "prediction", "problems", "project", "stages", "zero_shot"]
