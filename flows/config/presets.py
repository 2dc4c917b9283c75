"""Presets: compose the groups of conf/ into params.yaml.

`dvc repro` reads params.yaml as it is, whereas `dvc exp run` composes it from conf/ each time. Choices are therefore
stored in conf/ as well, in two files that are composed last: both commands then start from the same parameters.
"""

from __future__ import annotations

import difflib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from corpora.files import atomic_file
from flows.config.encoder import check_encoder
from flows.config.outputs import check_outputs
from flows.config.params import check_params, load_params

CONF = Path("conf")
PARAMS = Path("params.yaml")

CHOSEN = "chosen.yaml"
"""File of conf/ with the presets and values that differ from the defaults."""

EMPTIED = "emptied.yaml"
"""File of conf/ that empties the blocks which `CHOSEN` replaces: merging a block never removes keys."""

HEADS = {
    PARAMS.name: "# Written by `dashfusion use` from conf/; conf/config.yaml describes every key.\n",
    CHOSEN: "# @package _global_\n# Choices over the defaults: written by `dashfusion use`, composed last.\n",
    EMPTIED: "# @package _global_\n# Blocks emptied for chosen.yaml: written by `dashfusion use`, composed first.\n",
}

Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> its value before and after; None for an absent one."""


class _Dumper(yaml.SafeDumper):
    """Writes lists in one line: `[a, b]`."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def compose(choices: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """Return the parameters that conf/ and `choices` (`corpus=mmsa`, `train.epochs=5`) compose to.

    Raises:
        ValueError: Unknown group, preset or key.
        flows.config.params.ParamsError: The composition is not a valid set of parameters.
    """
    values = _compose(choices, conf, whole=True)
    check_params(values, "conf/ with " + (" ".join(choices) or "no choices"))
    return values


def apply(choices: Sequence[str], path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Write the composition of the defaults and `choices` to params.yaml, and store the choices in conf/.

    Earlier choices are discarded. Returns what changed in params.yaml. Raises as `compose`, `check_outputs` and
    `check_encoder` do.
    """
    groups = _groups(choices, conf)
    with _default_conf(conf) as default:
        values = compose(choices, default)
        params, source = check_params(values, "conf/"), " ".join(choices)
        check_outputs(params, source)
        check_encoder(params, source)
        chosen_files = _chosen_files(groups, values, default)
    changes = _differences(_read(path), values)
    _write_files(chosen_files, conf)
    _write_files({path.name: values}, path.parent)
    return changes


def hand_edits(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Return where params.yaml differs from conf/, which `dvc exp run` composes: (value in conf/, in params.yaml)."""
    return _differences(_compose((), conf), _read(path))


def save(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Store the hand edits of params.yaml in conf/, so that `dvc exp run` starts from them, and return them.

    Raises:
        flows.config.params.ParamsError: Invalid params.yaml.
        ValueError: It lacks a block that the defaults have, or see `check_outputs`.
    """
    check_outputs(load_params(path), str(path))
    edits = hand_edits(path, conf)
    with _default_conf(conf) as default:
        chosen_files = _chosen_files(chosen(conf)[0], _read(path), default)
    _write_files(chosen_files, conf)
    return edits


def chosen(conf: Path = CONF) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the stored choices: presets by group, and values by dotted key."""
    values = _read(conf / CHOSEN)
    entries = [entry for entry in values.pop("defaults", []) if isinstance(entry, Mapping)]
    groups = {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}
    return groups, {key: after for key, (_, after) in _differences({}, values).items()}


def presets(conf: Path = CONF) -> dict[str, dict[str, str]]:
    """Return the presets as group -> preset -> first phrase of its comment."""
    descriptions: dict[str, dict[str, str]] = {}
    for file in sorted(conf.glob("*/*.yaml")):
        lines = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        comment = " ".join(line for line in lines if not line.startswith("@"))
        descriptions.setdefault(file.parent.name, {})[file.stem] = re.split(r"[.:;](?:\s|$)", comment)[0]
    return descriptions


def _compose(choices: Sequence[str], conf: Path, whole: bool = False) -> dict[str, Any]:
    """Return Hydra's composition as plain values, unchecked except, if `whole`, for missing values (`???`)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_exists(conf)
    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            composed = hydra_compose("config", overrides=list(choices))
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=whole)
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).partition("Config search path")[0].strip()
        raise ValueError((_unknown_key(choices, conf) if choices else None) or f"conf/: {message}") from error
    return dict(values)


def _check_exists(conf: Path) -> None:
    if not conf.is_dir():
        raise FileNotFoundError(f"no {conf} in {Path.cwd()}: run from the project's folder, where dvc.yaml is")


@contextmanager
def _default_conf(conf: Path) -> Iterator[Path]:
    """Provide a temporary copy of conf/ without choices. Raises FileNotFoundError if there is no conf/."""
    _check_exists(conf)
    with tempfile.TemporaryDirectory() as folder:
        default = Path(folder) / "conf"
        shutil.copytree(conf, default)
        _write_files({CHOSEN: {}, EMPTIED: {}}, default)
        yield default


def _groups(choices: Sequence[str], conf: Path) -> dict[str, Any]:
    """Return the choices that name presets: group -> preset, list of presets, or None."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        overrides = OverridesParser.create().parse_overrides(list(choices))
    except HydraException as error:
        raise ValueError(f"expected group=preset or key=value: {error}") from error
    sweeps = [override.input_line for override in overrides if override.is_sweep_override()]
    if sweeps:
        raise ValueError(f"{sweeps[0]}: params.yaml holds one value; dvc exp run --queue -S {sweeps[0]} tries several")
    return {
        override.key_or_group: None if override.is_delete() else override.value()
        for override in overrides
        if (conf / override.key_or_group).is_dir()
    }


def _chosen_files(groups: Mapping[str, Any], values: Mapping[str, Any], default: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of `CHOSEN` and `EMPTIED` with which `default`, a conf/ without choices, gives `values`."""
    if _compose((), default) == values:
        return {CHOSEN: {}, EMPTIED: {}}
    defaults = {"defaults": [{f"override /{group}": name} for group, name in groups.items()]} if groups else {}
    _write_files({CHOSEN: defaults}, default)
    added, emptied = _overlay(_compose((), default), values)
    files = {CHOSEN: defaults | added, EMPTIED: emptied}
    _write_files(files, default)
    rest = _differences(_compose((), default), values)
    if rest:
        raise ValueError(f"{', '.join(rest)}: conf/ has a value for this, which cannot be removed; give another one")
    return files


def _overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what must be merged into `base` to get `values`, and the blocks that lose keys, to be emptied before."""
    added: dict[str, Any] = {}
    emptied: dict[str, Any] = {}
    for key, value in values.items():
        known = base.get(key)
        if key in base and known == value:
            continue
        if not (isinstance(value, Mapping) and isinstance(known, Mapping)):
            added[key] = value
        elif known.keys() <= value.keys():
            added[key], below = _overlay(known, value)
            if below:
                emptied[key] = below
        else:
            added[key], emptied[key] = value, None
    return added, emptied


def _write_files(contents: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write YAML files by name, each under its head."""
    for name, values in contents.items():
        text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True) if values else ""
        with atomic_file(folder / name) as temporary:
            temporary.write_text(HEADS[name] + text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file; empty if there is none. Raises ValueError for invalid YAML."""
    try:
        return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from error


def _unknown_key(choices: Sequence[str], conf: Path) -> str | None:
    """Explain the first choice that names a block, or neither a group nor a key; None if every choice names a key."""
    keys = _differences({}, _compose((), conf))
    groups = list(presets(conf))
    for choice in choices:
        name = choice.partition("=")[0].lstrip("+~")
        if any(key.startswith(f"{name}.") for key in keys) and not choice.startswith(("+", "~")):
            return f"{name} is a block: name a key of it, or replace it: '~{name}' '+{name}={{...}}'"
        if name not in groups and name not in keys:
            near = difflib.get_close_matches(name, [*groups, *keys], n=1)
            return f"{name}: no such key or group; " + (f"did you mean {near[0]!r}?" if near else f"groups: {groups}")
    return None


def _differences(before: Any, after: Any, prefix: str = "") -> Changes:
    if isinstance(after, Mapping) and isinstance(before or {}, Mapping):
        before = before or {}
        changes: Changes = {}
        for key in [*before, *(key for key in after if key not in before)]:
            changes |= _differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
        return changes
    return {} if before == after else {prefix: (before, after)}
