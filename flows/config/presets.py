"""Presets: the groups of conf/ composed into params.yaml, for `dvc repro`, which composes nothing itself.

`dvc exp run` composes by itself, from conf/ alone. So what is chosen here is kept in conf/ too, in files that are
composed last: both ways of running then begin with the same parameters.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from corpora.files import atomic_file
from flows.config.params import check_params, load_params

CONF = Path("conf")
PARAMS = Path("params.yaml")
CHOSEN = "chosen.yaml"  # presets and values over the defaults
EMPTIED = "emptied.yaml"  # blocks that CHOSEN replaces: what is merged into a block takes no key out of it

HEADS = {
    CHOSEN: "What was chosen over the defaults: written by `dashfusion use`, composed last.",
    EMPTIED: "Blocks that chosen.yaml replaces whole: written by `dashfusion use`, composed before it.",
}

Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> its value before and after; None where there is none."""


def compose(choices: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """The parameters that conf/ and `choices` (`corpus=mmsa`, `train.epochs=5`) give, as plain values.

    Raises:
        ValueError: no such group or preset, or a key that conf/ does not have (Hydra's own words).
        flows.config.params.ParamsError: the composition is not a valid set of parameters.
    """
    values = _compose(choices, conf, whole=True)
    check_params(values, "conf/ with " + (" ".join(choices) or "no choices"))
    return values


def apply(choices: Sequence[str], path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Write what the defaults and `choices` compose to into params.yaml, whose comments stay, and keep them in conf/.

    What was chosen before is forgotten. Returns what changed in params.yaml. Raises as `compose` does.
    """
    groups = _groups(choices, conf)
    with _nothing_chosen(conf) as plain:
        values = compose(choices, plain)
        texts = _chosen_texts(groups, values, plain)
    changed = dict(_differences(_read(path), values))
    _write_chosen(texts, conf)
    _write_params(path, values)
    return changed


def hand_edits(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """What params.yaml says otherwise than conf/, from which `dvc exp run` starts: (in conf/, in params.yaml)."""
    return dict(_differences(_compose((), conf), _read(path)))


def save(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Keep what params.yaml says otherwise than conf/ in conf/, so that `dvc exp run` starts from it; what that was.

    Raises:
        flows.config.params.ParamsError: params.yaml is not valid.
        ValueError: it lacks a whole block that the defaults have.
    """
    load_params(path)
    edits = hand_edits(path, conf)
    with _nothing_chosen(conf) as plain:
        texts = _chosen_texts(chosen(conf)[0], _read(path), plain)
    _write_chosen(texts, conf)
    return edits


def chosen(conf: Path = CONF) -> tuple[dict[str, Any], dict[str, Any]]:
    """What conf/ keeps as chosen: presets by their group, and values by their dotted key."""
    values = _read(conf / CHOSEN)
    entries = [entry for entry in values.pop("defaults", []) if isinstance(entry, Mapping)]
    groups = {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}
    return groups, {key: after for key, (_, after) in _differences({}, values)}


def presets(conf: Path = CONF) -> dict[str, dict[str, str]]:
    """Group -> preset -> the first words of its comment."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(conf.glob("*/*.yaml")):
        lines = [line[2:] for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        comment = " ".join(line for line in lines if not line.startswith("@"))
        found.setdefault(file.parent.name, {})[file.stem] = re.split(r"[.:;](?:\s|$)", comment)[0]
    return found


def _compose(choices: Sequence[str], conf: Path, whole: bool = False) -> dict[str, Any]:
    """Hydra's composition as plain values, unchecked but, if `whole`, for values that a preset must give (`???`)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _must_be_here(conf)
    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            composed = hydra_compose("config", overrides=list(choices))
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=whole)
    except (HydraException, OmegaConfBaseException) as error:
        said = str(error).partition("Config search path")[0].strip()
        raise ValueError((_unknown_key(choices, conf) if choices else None) or f"conf/: {said}") from error
    return values


def _must_be_here(conf: Path) -> None:
    if not conf.is_dir():
        raise FileNotFoundError(f"no {conf} in {Path.cwd()}: run from the project's folder, where dvc.yaml is")


@contextmanager
def _nothing_chosen(conf: Path) -> Iterator[Path]:
    """A copy of conf/ in which nothing is chosen. Raises FileNotFoundError where there is no conf/."""
    _must_be_here(conf)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "conf"
        shutil.copytree(conf, plain)
        _write_chosen(_texts({}, {}), plain)
        yield plain


def _groups(choices: Sequence[str], conf: Path) -> dict[str, Any]:
    """Those of the choices that name presets: group -> preset, or presets, or None."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(list(choices))
    except HydraException as error:
        raise ValueError(f"group=preset or key=value is wanted: {error}") from error
    sweeps = [choice.input_line for choice in parsed if choice.is_sweep_override()]
    if sweeps:
        raise ValueError(f"{sweeps[0]}: params.yaml holds one value; dvc exp run --queue -S {sweeps[0]} tries several")
    return {
        choice.key_or_group: None if choice.is_delete() else choice.value()
        for choice in parsed
        if (conf / choice.key_or_group).is_dir()
    }


def _chosen_texts(groups: Mapping[str, Any], values: Mapping[str, Any], plain: Path) -> dict[str, str]:
    """The files that make `plain`, a copy of conf/ where nothing is chosen, compose to `values`."""
    if _compose((), plain) == values:  # the defaults, which need no naming
        return _texts({}, {})
    defaults = {"defaults": [{f"override /{group}": name} for group, name in groups.items()]} if groups else {}
    _write_chosen(_texts(defaults, {}), plain)
    added, emptied = _over(_compose((), plain), values)
    texts = _texts(defaults | added, emptied)
    _write_chosen(texts, plain)
    left = dict(_differences(_compose((), plain), values))
    if left:
        raise ValueError(f"{', '.join(left)}: conf/ has a value for this and cannot be told to have none; give one")
    return texts


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to merge into `base` to get `values`, and the blocks to empty before, as they lose keys."""
    added: dict[str, Any] = {}
    emptied: dict[str, Any] = {}
    for key, value in values.items():
        known = base.get(key)
        if key in base and known == value:
            continue
        if not (isinstance(value, Mapping) and isinstance(known, Mapping)):
            added[key] = value
        elif known.keys() <= value.keys():
            added[key], below = _over(known, value)
            if below:
                emptied[key] = below
        else:
            added[key], emptied[key] = value, None
    return added, emptied


def _texts(added: Mapping[str, Any], emptied: Mapping[str, Any]) -> dict[str, str]:
    """The files of conf/ that keep what is chosen, by name."""
    return {
        name: f"# @package _global_\n# {HEADS[name]}\n"
        + (yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True) if values else "")
        for name, values in ((CHOSEN, added), (EMPTIED, emptied))
    }


def _write_chosen(texts: Mapping[str, str], conf: Path) -> None:
    for name, text in texts.items():
        with atomic_file(conf / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _write_params(path: Path, values: Mapping[str, Any]) -> None:
    """Make params.yaml hold `values`, and keep its comments."""
    from ruamel.yaml import YAML

    parser = YAML()
    parser.preserve_quotes = True
    tag = "tag:yaml.org,2002:"
    represent = parser.representer.add_representer
    represent(type(None), lambda to, _: to.represent_scalar(tag + "null", "null"))  # where ruamel leaves nothing
    represent(float, lambda to, x: to.represent_scalar(tag + "float", yaml.safe_dump(x).split()[0]))  # not 2e-05: a str
    text, committed = path.read_text(encoding="utf-8") if path.is_file() else "", _committed(path)
    document = parser.load(text if "#" in text else committed or text) or {}  # `dvc exp run` leaves the comments out
    _merge(document, values)
    back = yaml.safe_load(committed) == values  # then also to the places that the comments had
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        if back:
            handle.write(committed)
        else:
            parser.dump(document, handle)


def _committed(path: Path) -> str:
    """The file's text in the last commit; empty where there is none."""
    if not shutil.which("git"):
        return ""
    command = ["git", "show", f"HEAD:./{path.name}"]
    return subprocess.run(command, cwd=path.absolute().parent, capture_output=True, text=True).stdout


def _read(path: Path) -> dict[str, Any]:
    """A YAML file's values; none where there is no such file. Raises ValueError for what is no YAML."""
    try:
        return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from error


def _unknown_key(choices: Sequence[str], conf: Path) -> str | None:
    """What to say of the first choice that names neither a group nor a key, or a block; None where all name a key."""
    defaults = _compose((), conf)
    keys = [key for key, _ in _differences({}, defaults)]
    groups = list(presets(conf))
    for choice in choices:
        name = choice.partition("=")[0].lstrip("+~")
        if any(key.startswith(f"{name}.") for key in keys) and not choice.startswith(("+", "~")):
            return f"{name} is a block: name a key of it, or replace it: '~{name}' '+{name}={{...}}'"
        if name not in groups and name not in keys:
            near = difflib.get_close_matches(name, [*groups, *keys], n=1)
            return f"{name}: no such key or group; " + (f"did you mean {near[0]!r}?" if near else f"groups: {groups}")
    return None


def _merge(target: MutableMapping[str, Any], values: Mapping[str, Any]) -> None:
    """Make `target` equal to `values`, touching only what differs, so that its comments survive."""
    for key in [key for key in target if key not in values]:
        del target[key]
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), MutableMapping):
            _merge(target[key], value)
        elif key not in target or target[key] != value:
            target[key] = _in_one_line(value) if isinstance(value, list) else value


def _in_one_line(values: list[Any]) -> Any:
    """The list as YAML's `[a, b]`, as params.yaml writes them."""
    from ruamel.yaml.comments import CommentedSeq

    sequence = CommentedSeq(values)
    sequence.fa.set_flow_style()
    return sequence


def _differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, tuple[Any, Any]]]:
    if isinstance(after, Mapping) and isinstance(before or {}, Mapping):
        before = before or {}
        keys = [*before, *(key for key in after if key not in before)]
        return [
            item
            for key in keys
            for item in _differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [] if before == after else [(prefix, (before, after))]
