"""Prefect flows, one a stage, and the `dashfusion` command: order, retries, reporting; no computation."""

import os

from flows.orchestration.settings import QUIET

# Prefect and OpenMP read these when they are imported; this package's modules are imported after it. A user's own
# environment wins. OpenMP's threads spin while they wait for each other: beside other busy processes that takes the
# cores from those with work to do (an epoch took twice as long), while a short spin costs nothing on an idle machine.
for _name, _value in (QUIET | {"GOMP_SPINCOUNT": "1000"}).items():
    os.environ.setdefault(_name, _value)
