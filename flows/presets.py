"""Presets: the groups of conf/ composed into params.yaml, for `dvc repro`, which composes nothing itself."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from flows.params import check_params

CONF = Path("conf")


def compose(choices: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """The parameters that conf/ and `choices` (`corpus=mmsa`, `train.epochs=5`) give, as plain values.

    Raises:
        ValueError: no such group or preset, or a key that conf/ does not have (Hydra's own words).
        flows.params.ParamsError: the composition is not a valid set of parameters.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(str(conf.resolve()), version_base=None):
            composed = hydra_compose("config", overrides=list(choices))
    except HydraException as error:
        raise ValueError(_unknown_key(choices, conf) or f"conf/: {error}") from error
    values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    check_params(values, "conf/ with " + (" ".join(choices) or "no choices"))
    return values


def apply(choices: Sequence[str], path: Path = Path("params.yaml"), conf: Path = CONF) -> dict[str, tuple[Any, Any]]:
    """Write the composition into params.yaml, whose comments stay; returns key -> (before, after) of what changed."""
    from ruamel.yaml import YAML

    values = compose(choices, conf)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.representer.add_representer(  # a word, where ruamel leaves nothing
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changed = dict(_differences(document, values))
    _merge(document, values)
    from corpora.files import atomic_path

    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        yaml.dump(document, handle)
    return changed


def _unknown_key(choices: Sequence[str], conf: Path) -> str | None:
    """What to say of the first choice that names neither a group nor a key; None where all do."""
    keys = [key for key, _ in _differences({}, compose((), conf))] if choices else []
    groups = [folder.name for folder in conf.iterdir() if folder.is_dir()]
    for choice in choices:
        name = choice.partition("=")[0].lstrip("+~")
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
