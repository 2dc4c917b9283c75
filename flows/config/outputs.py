"""Checks that no stage's output takes the place of the user's own files: DVC deletes outputs before it runs a stage."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from corpora.files import atomic_file

if TYPE_CHECKING:
    from flows.config.params import Params, Paths

RECORD = Path(".dashfusion/outputs.json")
"""Output paths of the last check, all of which were free then or made by stages. dvc.lock lacks a failed stage's."""

DVC_FILES = ".gitignore"
"""Name of the files that DVC writes beside outputs."""

NOT_DELETED = ("studies", "metrics")
"""Keys of folders that are not outputs as a whole: Git may track files in them."""


def record_outputs(params: Params) -> None:
    """Check the output paths as `check_outputs` does, and record them as ours: stages are about to write there."""
    check_outputs(params)
    outputs = [path.as_posix() for path in _deleted(params.paths).values()]
    with atomic_file(RECORD) as temporary:
        temporary.write_text(json.dumps(outputs), encoding="utf-8")


def check_outputs(params: Params, source: str = "params.yaml") -> None:
    """Check that DVC would delete nothing but what stages have made.

    Raises:
        ValueError: Git tracks files at an output path, or no stage has made files there; `source` named the path.
    """
    if errors := output_errors(params):
        raise ValueError(f"{source}:\n  " + "\n  ".join(errors))


def output_errors(params: Params) -> list[str]:
    """Return a line for each output path at which DVC would delete what no stage has made."""
    deleted = _deleted(params.paths)
    tracked = _tracked(list(deleted.values()))
    ours = {_absolute(path) for path in (*_locked(), *_recorded())}
    errors = []
    for key, path in deleted.items():
        if file := next((file for file in tracked if _nested(file, path)), None):
            errors.append(f"{key}: {path} would be deleted, but Git tracks {file}; choose a path of its own")
        elif foreign := _foreign(_absolute(path), ours):
            errors.append(
                f"{key}: {path} would be deleted, but no stage has made {_relative(foreign)}; choose a new path, or "
                "move that away"
            )
    return errors


def _deleted(paths: Paths) -> dict[str, Path]:
    """Return the paths, by key, below which DVC deletes everything before a stage runs."""
    whole = {f"paths.{key}": path for key, path in _items(paths) if key not in NOT_DELETED}
    return whole | {f"paths.metrics ({name})": paths.metrics / name for name in ("training", "plots", "run.json")}


def _items(paths: Paths) -> Iterator[tuple[str, Path]]:
    return ((item.name, getattr(paths, item.name)) for item in fields(paths))


def _tracked(paths: list[Path]) -> list[Path]:
    """Return the files among and below the paths that Git tracks; none without a repository."""
    command = ["git", "--literal-pathspecs", "ls-files", "-z", "--", *map(str, paths)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return []
    files = [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else []
    return [file for file in files if file.name != DVC_FILES]


def _locked() -> list[Path]:
    """Return the outputs that dvc.lock lists: those of stages that succeeded, of older versions as well."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return []
    try:
        content = yaml.load(lock.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return [Path(out["path"]) for stage in content.get("stages", {}).values() for out in stage.get("outs", ())]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{lock}: not readable ({error}); restore it, such as with `git checkout {lock}`") from error


def _recorded() -> list[Path]:
    try:
        return [Path(path) for path in json.loads(RECORD.read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError):
        return []


def _foreign(path: Path, ours: set[Path]) -> Path | None:
    """Return the first file at or below `path` that is not ours."""
    if path in ours or not os.path.lexists(path) or path.name == DVC_FILES:
        return None
    if not path.is_dir():
        return path
    children = (_foreign(child, ours) for child in sorted(path.iterdir()))
    return next((child for child in children if child), None)


def _absolute(path: Path) -> Path:
    """Return the absolute path without `..`; links stay, since a project's data/ may be one to another disk."""
    return Path(os.path.normpath(Path(path).absolute()))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _nested(a: Path, b: Path) -> bool:
    """Return whether one path is the other or lies in it, as written or after following links."""
    pairs = (_absolute(a), _absolute(b)), (Path(a).resolve(), Path(b).resolve())
    return any(x.is_relative_to(y) or y.is_relative_to(x) for x, y in pairs)


def layout_errors(params: Params) -> list[str]:
    """Return a line for each output path that is outside of the project, or in another one or the corpus, or around it.

    These rules depend on the parameters alone, and not on the files that exist.
    """
    errors = []
    project = Path.cwd()
    items = list(_items(params.paths))
    for key, path in items:
        if _absolute(path) == project or not _absolute(path).is_relative_to(project):
            errors.append(f"paths.{key}: {path} is not in the project's folder {project}; give a path below it")
    for (key, path), (other, other_path) in combinations(items, 2):
        if _nested(path, other_path):
            errors.append(f"paths.{key}: {path} and paths.{other}: {other_path} overlap; give each a path of its own")
    if params.prepare.layout != "demo":
        root = Path(params.prepare.root).expanduser()
        errors += [
            f"paths.{key}: {path} overlaps with the corpus (prepare.root: {root}), whose files would be deleted; "
            "choose a path elsewhere"
            for key, path in items
            if _nested(path, root)
        ]
    return errors
