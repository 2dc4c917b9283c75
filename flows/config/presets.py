"""Presets: compose the groups of conf/ into params.yaml.

`dvc repro` reads params.yaml as it is, whereas `dvc exp run` composes it from conf/ each time. Choices are therefore
stored in conf/ as well, in two files that are composed last: both commands then start from the same parameters.

A change starts from the choices in params.yaml, whether a command or an editor has made them: `flows.config.choices`.
params.yaml is written first, so that a killed command leaves what an edit by hand leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config.choices import (
    OF_CORPUS,
    OF_LANGUAGE,
    WITH_OPTIONS,
    Changes,
    Choices,
    Key,
    differences,
    look_up,
    set_keys,
)
from flows.config.composition import (
    CHOSEN,
    CONF,
    EMPTIED,
    HEADS,
    PARAMS,
    DefaultConf,
    Named,
    as_bytes,
    check_exists,
    chosen,
    compose_conf,
    default_conf,
    parse_names,
    read_yaml,
)
from flows.config.outputs import check_outputs
from flows.config.params import Params, ParamsError, check_params, load_params
from flows.config.undo import restore, write_recorded


@dataclass(frozen=True)
class Applied:
    """Result of `apply`.

    Attributes:
        changes: What changed in params.yaml.
        edits: Edits of params.yaml by hand that were kept, and are stored in conf/ now.
        overruling: Earlier choices that were kept in place of a named corpus's values -> (the choice, that value).
        dropped: Earlier choices, or presets by group, that were not kept -> (the choice, the reason).
        comments: Whether params.yaml had comments, which are not kept.
    """

    changes: Changes
    edits: Changes
    overruling: Changes
    dropped: dict[str, tuple[Any, str]]
    comments: bool


def compose(choices: Sequence[str] = (), conf: Path = CONF) -> dict[str, Any]:
    """Return the parameters that conf/ and `choices` (`corpus=mmsa`, `train.epochs=5`) compose to.

    Raises:
        ValueError: Unknown group, preset or key.
        flows.config.params.ParamsError: The composition is not a valid set of parameters.
    """
    values = compose_conf(choices, conf, whole=True)
    check_params(values, "conf/ with " + (" ".join(choices) or "no choices"))
    return values


def apply(
    names: Sequence[str],
    path: Path = PARAMS,
    conf: Path = CONF,
    *,
    reset: bool = False,
    check: Callable[[Params], None] = lambda params: None,
) -> Applied:
    """Change what is named in params.yaml, keep the other choices, and store them all in conf/; see `undo`.

    Args:
        names: Presets and values as Hydra writes them: `corpus=mmsa`, `train.epochs=5`, `~extract.audio.options`.
        path: The parameter file. If there is none, the change starts from conf/.
        conf: Folder of the presets.
        reset: Start from the defaults, and keep nothing.
        check: Called with the new parameters before anything is written; raises what refuses the change.

    Raises:
        ValueError: Unknown group, preset or key; or a file cannot be read.
        flows.config.params.ParamsError: The result is not a valid set of parameters.
    """
    named = parse_names(names, conf)
    on_disk = read_yaml(path, invalid={} if reset else None)
    with default_conf(conf) as default:
        before, stored = ({}, default.values) if reset else (chosen(conf)[0], default.stored(conf))
        current = on_disk if on_disk and not reset else stored
        change = _Change(default, conf, before, current, named)
        values = change.compose()
        check(check_params(values, f"{path.name} with {' '.join(names)}" if names else "the defaults"))
        chosen_files = default.chosen_files(change.groups, values)
    edits = {key: edit for key, edit in differences(stored, current).items() if look_up(values, key) == edit[1]}
    comments = _has_comments(path)
    contents = {path: as_bytes({PARAMS.name: values})[PARAMS.name]}
    write_recorded(path.parent, contents | {conf / name: text for name, text in as_bytes(chosen_files).items()})
    return Applied(differences(on_disk, values), edits, change.overruling(values), change.dropped(values), comments)


def undo(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Restore params.yaml and the choices as they were before the last change, and return what this changes.

    Bytes are restored, comments and edits by hand included. A second call takes the first one back.

    Raises:
        FileNotFoundError: There is no conf/.
        ValueError: There is no change to take back, or its record cannot be read.
    """
    check_exists(conf)
    before = read_yaml(path, invalid={})
    restore(path.parent, [path, conf / EMPTIED, conf / CHOSEN])
    return differences(before, read_yaml(path, invalid={}))


def hand_edits(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Return where params.yaml differs from conf/, which `dvc exp run` composes: (value in conf/, in params.yaml)."""
    return differences(compose_conf((), conf), read_yaml(path))


def save(path: Path = PARAMS, conf: Path = CONF) -> Changes:
    """Store the hand edits of params.yaml in conf/, so that `dvc exp run` starts from them, and return them.

    Raises:
        flows.config.params.ParamsError: Invalid params.yaml.
        ValueError: It lacks a block that the defaults have, or see `check_outputs`.
    """
    check_outputs(load_params(path), str(path))
    edits = hand_edits(path, conf)
    with default_conf(conf) as default:
        chosen_files = default.chosen_files(chosen(conf)[0], read_yaml(path))
    files = {conf / name: content for name, content in as_bytes(chosen_files).items()}
    write_recorded(path.parent, {path: path.read_bytes()} | files)
    return edits


class _Change:
    """A change of params.yaml: the presets and choices that it keeps, and those that it drops.

    Of the earlier choices are dropped

    - those of the blocks `OF_CORPUS`, if another corpus is named: another preset, or the same with another root; and
      those of the keys `OF_LANGUAGE`, if its language is another one;
    - keys that a named preset of another group sets;
    - options of an extractor, if presets or the command name another one;
    - those with which the new presets are not a valid set of parameters.

    Args:
        default: Conf/ without choices.
        conf: Conf/ itself.
        before: Presets so far, by group.
        current: Values of params.yaml.
        named: What the command names.

    Attributes:
        groups: Presets of the result, by group.
    """

    def __init__(
        self, default: DefaultConf, conf: Path, before: Mapping[str, Any], current: Mapping[str, Any], named: Named
    ) -> None:
        self._default, self._conf, self._current, self._named = default, conf, current, named
        self.groups = {**before, **named.groups}
        self._dropped_groups: dict[str, tuple[Any, str]] = {}
        self._choices = Choices(default.presets(before), current)
        self._presets = default.presets(self.groups)
        self._other_corpus = "corpus" in named.groups and self._is_other_corpus(before)
        if self._other_corpus:
            self._choices.drop(OF_CORPUS, "of the earlier corpus")
            self._drop_language()
        for group in [group for group in named.groups if group != "corpus"]:
            self._choices.drop(self._preset_keys(group), f"set by {group}={named.groups[group]}")
        self._choices.drop_options(self._presets)

    def compose(self) -> dict[str, Any]:
        """Return the values of the result, which may be an invalid set of parameters if the command makes it so."""
        values = self._compose()
        if self._named.groups and self._choices and _first_error(values):
            self._choices.drop_unfit(lambda: _first_error(self._compose()))
            values = self._compose()
        return values

    def dropped(self, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """Return earlier choices that `values` does not have, and presets by group: -> (the choice, the reason)."""
        earlier = {key: (look_up(self._current, key), reason) for key, reason in self._choices.dropped.items()}
        return self._dropped_groups | {
            key: choice
            for key, choice in earlier.items()
            if choice[0] is not None and choice[0] != look_up(values, key) and not self._named.names(key)
        }

    def overruling(self, values: Mapping[str, Any]) -> Changes:
        """Return kept choices in place of the values that the new corpus's preset sets: (the choice, that value)."""
        if not self._other_corpus:
            return {}
        keys = [".".join(key) for key in self._preset_keys("corpus")]
        pairs = {key: (look_up(values, key), look_up(self._presets, key)) for key in keys}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and not self._named.names(key)}

    def _compose(self) -> dict[str, Any]:
        values = self._choices.over(self._presets)
        for place, key in WITH_OPTIONS.items():
            dotted = ".".join(place)
            name, block = self._named.values.get(f"{dotted}.{key}"), look_up(values, dotted)
            named_options = any(named.startswith(f"{dotted}.options") for named in self._named.values)
            if name is not None and isinstance(block, dict) and name != block.get(key) and not named_options:
                block["options"] = {}
        return self._default.override(self.groups, values, self._named.overrides)

    def _is_other_corpus(self, before: Mapping[str, Any]) -> bool:
        defaults = [entry for entry in read_yaml(self._conf / "config.yaml")["defaults"] if isinstance(entry, Mapping)]
        preset = before.get("corpus", next(entry["corpus"] for entry in defaults if "corpus" in entry))
        root, layout = "prepare.root", "prepare.layout"
        return bool(
            self._named.groups["corpus"] != preset
            or self._named.values.get(root) not in (None, look_up(self._current, root))
            or look_up(self._presets, layout) != look_up(self._current, layout)
        )

    def _drop_language(self) -> None:
        key = "prepare.language"
        earlier, language = look_up(self._current, key), self._named.values.get(key, look_up(self._presets, key))
        if language == earlier:
            return
        reason = f"chosen for language {earlier}, not {language}"
        self._choices.drop(OF_LANGUAGE, reason)
        if "text" in self.groups and "text" not in self._named.groups:
            self._dropped_groups["text"] = self.groups.pop("text"), reason
            self._presets = self._default.presets(self.groups)

    def _preset_keys(self, group: str) -> list[Key]:
        """Return the keys that the named presets of a group set."""
        names, keys = self._named.groups[group], []
        waiting = list(names) if isinstance(names, list) else [names] if names else []
        while waiting:
            values = read_yaml(self._conf / group / f"{waiting.pop()}.yaml")
            parents = [entry for entry in values.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
            waiting += parents
            keys += set_keys(values)
        return keys


def _first_error(values: Mapping[str, Any]) -> str:
    """Return why values are not a valid set of parameters, as a line; empty if they are."""
    try:
        check_params(values, "")
    except ParamsError as error:
        return str(error).splitlines()[1].strip()
    return ""


def _has_comments(path: Path) -> bool:
    """Return whether a YAML file that `apply` is about to replace has comments below its head."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return any(re.search(r"(^|\s)#", line) for line in lines if f"{line}\n" != HEADS[PARAMS.name])
