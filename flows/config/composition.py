"""Composition of conf/: presets, choices over them, and the words of a command, through Hydra."""

from __future__ import annotations

import difflib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from flows.config.choices import WITH_OPTIONS, differences, merge

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


OPTION = re.compile("|".join(rf"{re.escape('.'.join(place))}\.options\." for place in WITH_OPTIONS))
"""Start of a setting of one option of an extractor or a network."""


class _Dumper(yaml.SafeDumper):
    """Writes lists in one line: `[a, b]`."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


@dataclass(frozen=True)
class Named:
    """What a command names.

    Attributes:
        groups: Presets by group: a name, a list of names, or None.
        overrides: Everything else, as Hydra reads it.
        values: Dotted key of these -> value; None where it is removed.
    """

    groups: dict[str, Any]
    overrides: list[str]
    values: dict[str, Any]

    def names(self, key: str) -> bool:
        """Return whether a key, or a block that it is in, is named."""
        return any(f"{key}.".startswith(f"{named}.") for named in self.values)


class DefaultConf:
    """A temporary copy of conf/ without choices."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.values = compose_conf((), folder)

    def presets(self, groups: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of presets, by group; those of other groups are the default's."""
        return self._compose(groups, {}, {})

    def stored(self, conf: Path) -> dict[str, Any]:
        """Return what `conf` composes to with its choices."""
        chosen_values = read_yaml(conf / CHOSEN)
        chosen_values.pop("defaults", None)
        values: dict[str, Any] = merge(merge(self.presets(chosen(conf)[0]), read_yaml(conf / EMPTIED)), chosen_values)
        return values

    def override(self, groups: Mapping[str, Any], values: Mapping[str, Any], overrides: Sequence[str]) -> Any:
        """Return `values`, which start from presets, with Hydra's overrides."""
        added, emptied = _overlay(self.presets(groups), values)
        return self._compose(groups, added, emptied, overrides, whole=True)

    def chosen_files(self, groups: Mapping[str, Any], values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the contents of `CHOSEN` and `EMPTIED` with which conf/ composes to `values`.

        Raises:
            ValueError: A block of the presets is missing in `values`, which cannot be written.
        """
        if values == self.values:
            return {CHOSEN: {}, EMPTIED: {}}
        added, emptied = _overlay(self.presets(groups), values)
        rest = differences(self._compose(groups, added, emptied), values)
        if rest:
            keys = ", ".join(rest)
            raise ValueError(f"{keys}: conf/ has a value for this, which cannot be removed; give another one")
        return {CHOSEN: _defaults_list(groups) | added, EMPTIED: emptied}

    def _compose(
        self,
        groups: Mapping[str, Any],
        added: Mapping[str, Any],
        emptied: Mapping[str, Any],
        overrides: Sequence[str] = (),
        whole: bool = False,
    ) -> dict[str, Any]:
        for name, content in as_bytes({CHOSEN: _defaults_list(groups) | dict(added), EMPTIED: emptied}).items():
            (self._folder / name).write_bytes(content)
        return compose_conf(overrides, self._folder, whole)


def chosen(conf: Path = CONF) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the stored choices: presets by group, and values by dotted key."""
    values = read_yaml(conf / CHOSEN)
    entries = [entry for entry in values.pop("defaults", []) if isinstance(entry, Mapping)]
    groups = {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}
    return groups, {key: after for key, (_, after) in differences({}, values).items()}


def presets(conf: Path = CONF) -> dict[str, dict[str, str]]:
    """Return the presets as group -> preset -> first phrase of its comment."""
    descriptions: dict[str, dict[str, str]] = {}
    for file in sorted(conf.glob("*/*.yaml")):
        lines = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        comment = " ".join(line for line in lines if not line.startswith("@"))
        descriptions.setdefault(file.parent.name, {})[file.stem] = re.split(r"[.:;](?:\s|$)", comment)[0]
    return descriptions


@dataclass(frozen=True)
class _Conf:
    """The files of a conf/ with their contents; a copy of the folder elsewhere equals it."""

    files: tuple[tuple[str, bytes], ...]
    folder: Path = field(compare=False)


def compose_conf(choices: Sequence[str], conf: Path, whole: bool = False) -> dict[str, Any]:
    """Return Hydra's composition as plain values, unchecked except, if `whole`, for missing values (`???`)."""
    check_exists(conf)
    # Options are any that an extractor or a network has, so a new one needs no `+`
    choices = [f"++{choice}" if OPTION.match(choice) else choice for choice in choices]
    files = tuple((path.relative_to(conf).as_posix(), path.read_bytes()) for path in sorted(conf.rglob("*.yaml")))
    return deepcopy(_compose(tuple(choices), _Conf(files, conf), whole))


@lru_cache(maxsize=64)  # one change composes several times, a tenth of a second and more each
def _compose(choices: tuple[str, ...], files: _Conf, whole: bool) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    conf = files.folder
    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            composed = hydra_compose("config", overrides=list(choices))
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=whole)
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).partition("Config search path")[0].strip()
        raise ValueError((_unknown_key(choices, conf) if choices else None) or f"conf/: {message}") from error
    return dict(values)


def check_exists(conf: Path) -> None:
    """Raise FileNotFoundError if there is no conf/."""
    if not conf.is_dir():
        raise FileNotFoundError(f"no {conf} in {Path.cwd()}: run from the project's folder, where dvc.yaml is")


@contextmanager
def default_conf(conf: Path) -> Iterator[DefaultConf]:
    """Provide a temporary copy of conf/ without choices. Raises FileNotFoundError if there is no conf/."""
    check_exists(conf)
    with tempfile.TemporaryDirectory() as folder:
        default = Path(folder) / "conf"
        shutil.copytree(conf, default)
        for name, content in as_bytes({CHOSEN: {}, EMPTIED: {}}).items():
            (default / name).write_bytes(content)
        yield DefaultConf(default)


def parse_names(names: Sequence[str], conf: Path) -> Named:
    """Read the words of a command.

    Raises:
        ValueError: A word is neither `group=preset` nor `key=value`, has several values, or names no preset.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    check_exists(conf)
    try:
        overrides = OverridesParser.create().parse_overrides(list(names))
    except HydraException as error:
        raise ValueError(f"expected group=preset or key=value: {error}") from error
    sweeps = [override.input_line for override in overrides if override.is_sweep_override()]
    if sweeps:
        raise ValueError(f"{sweeps[0]}: params.yaml holds one value; dvc exp run --queue -S {sweeps[0]} tries several")
    named = Named({}, [], {})
    for override in overrides:
        key, value = override.key_or_group, None if override.is_delete() else override.value()
        if not (conf / key).is_dir():
            named.overrides.append(str(override.input_line))
            named.values[key] = value
            continue
        known = presets(conf)[key]
        for name in value if isinstance(value, list) else [value] if value else []:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ValueError(f"{key}={name}: no such preset; {hint}there are {', '.join(known)}")
        named.groups[key] = value
    return named


def _defaults_list(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block of `CHOSEN` that selects presets."""
    return {"defaults": [{f"override /{group}": name} for group, name in groups.items()]} if groups else {}


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


def as_bytes(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the content of YAML files by name, each with its head."""
    files = {}
    for name, values in contents.items():
        text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True) if values else ""
        files[name] = (HEADS[name] + text).encode()
    return files


def read_yaml(path: Path, invalid: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of a YAML file; empty if there is none, and `invalid`, if given, for what cannot be read.

    Raises:
        ValueError: Not YAML in UTF-8, or not keys with values.
    """
    try:
        values = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = f"no YAML: {error}"
    else:
        if isinstance(values, dict):
            return values
        reason = f"expected keys with values, found {type(values).__name__}"
    if invalid is not None:
        return invalid
    raise ValueError(f"{path}: {reason}; correct it, or go back with dashfusion use --undo or --reset")


def _unknown_key(choices: Sequence[str], conf: Path) -> str | None:
    """Explain the first choice that names a block, or neither a group nor a key; None if every choice names a key."""
    keys = differences({}, compose_conf((), conf))
    groups = list(presets(conf))
    for choice in choices:
        name = choice.partition("=")[0].lstrip("+~")
        if any(key.startswith(f"{name}.") for key in keys) and not choice.startswith(("+", "~")):
            return f"{name} is a block: name a key of it, or replace it: '~{name}' '+{name}={{...}}'"
        if name not in groups and name not in keys:
            near = difflib.get_close_matches(name, [*groups, *keys], n=1)
            return f"{name}: no such key or group; " + (f"did you mean {near[0]!r}?" if near else f"groups: {groups}")
    return None
