"""Study files: the variants to train, the conditions to evaluate them under, and the metrics to compare."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from pydantic import TypeAdapter, ValidationError

from extractors.corruption.conditions import CORRUPTIONS
from extractors.corruption.conditions import Condition as Corruption
from flows.config.params import MIN_SEEDS, Params, ParamsError, check_params
from flows.studies.results import COMPARISON, COSTS
from model.config import Modality
from model.evaluation.metrics import WIDE, evaluate_metrics
from model.evaluation.subgroups import SLICES

FOLDER = Path("studies")
SPLIT = "valid"
"""Split that studies measure. Variants are choices, and the test split is for the model that was chosen."""
STRICT: dict[str, str] = {"extra": "forbid"}

WIDE_NAMES = {"acc2": "acc2_np", "f1": "f1_np"}
"""Metrics that have two forms for labels in [-3, 3]: name in a study's file -> the form it stands for."""

REMOVED = ("checks", "questions")
"""Keys of earlier versions."""


@dataclass(frozen=True)
class Condition:
    """How the evaluated clips are changed: only some modalities shown, one dropped from some clips, or a corruption.

    Attributes:
        show: Modalities that the network sees.
        drop: A modality that some clips lose; the levels are the share of these clips.
        corrupt: A corruption of `extractors.corruption.conditions`; the levels are its own.
        levels: Levels of `drop` or `corrupt`.
        unit: Unit of the levels, for plots; a corruption has its own.
    """

    __pydantic_config__: ClassVar = STRICT

    show: tuple[Modality, ...] = ()
    drop: Modality | None = None
    corrupt: str | None = None
    levels: tuple[float, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if [bool(self.show), self.drop is not None, self.corrupt is not None].count(True) != 1:
            raise ValueError(
                "a condition has exactly one of show (modalities), drop (a modality), corrupt (a corruption)"
            )
        if bool(self.levels) == bool(self.show):
            raise ValueError("drop and corrupt need levels, such as [0.25, 0.5], and show takes none")
        if self.drop and not all(0 <= level <= 1 for level in self.levels):
            raise ValueError("levels of drop are shares of the clips, from 0 to 1")
        if self.corrupt is not None:
            for level in self.levels:
                Corruption(self.corrupt, level)  # raises for an unknown corruption or level
            object.__setattr__(self, "unit", self.unit or CORRUPTIONS[self.corrupt].unit)


@dataclass(frozen=True)
class Pareto:
    """A plot of the best trade-offs between a cost and a metric."""

    __pydantic_config__: ClassVar = STRICT

    cost: str
    metric: str


@dataclass(frozen=True)
class StudySpec:
    """The content of a study's file.

    Attributes:
        name: Name of the file.
        title: Title for people.
        question: What the study investigates, for people.
        variants: Name -> changes to params.yaml and `base`: dotted keys of the blocks model and train.
        reference: Variant that the others are compared with.
        metrics: Keys of metrics/<split>.json; acc2 and f1 stand for acc2_np and f1_np where the labels are in [-3, 3].
        seeds: Seeds that each variant is trained with, at least `MIN_SEEDS`.
        base: Changes to params.yaml for all variants.
        conditions: Name -> condition under which the variants are evaluated too.
        slices: Slices of the split that are measured too, see `model.evaluation.subgroups`.
        pareto: Plot of cost against a metric.
    """

    __pydantic_config__: ClassVar = STRICT

    name: str
    title: str
    question: str
    variants: dict[str, dict[str, Any]]
    reference: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    base: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    pareto: Pareto | None = None

    def __post_init__(self) -> None:
        _check_name("reference", self.reference, self.variants)
        for name in self.slices:
            _check_name("slices", name, SLICES)
        if self.pareto:
            _check_name("cost", self.pareto.cost, COSTS)
            _check_name("pareto.metric", self.pareto.metric, self.metrics)
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < MIN_SEEDS:
            raise ValueError(
                f"seeds: {list(self.seeds)}; name each seed once, and at least {MIN_SEEDS}: a difference is compared "
                "with the spread over the seeds"
            )


def read_spec(name: str) -> StudySpec:
    """Read the study called `name` in studies/, or the file at that path.

    Raises:
        ValueError: there is no such study (the message lists the existing ones), or its file is invalid.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.stem == COMPARISON:
        raise ValueError(f"no study {path}: `dashfusion {COMPARISON}` has this name; choose another for a study")
    if not path.is_file():
        known = available()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"{FOLDER}/ has {', '.join(known) or 'none'}"
        raise ValueError(f"no study {path}: {hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from error
    for key in REMOVED:
        if key in values:
            raise ValueError(
                f"{path}: `{key}` was removed; delete it. Every variant is now compared with the reference under every "
                "condition: the tables and the report show the paired difference with its 95 % interval and a verdict "
                "(better, worse or undecided)"
            )
    try:
        return TypeAdapter(StudySpec).validate_python({"name": path.stem, **values})
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)
        ]
        raise ValueError(f"{path}:\n  " + "\n  ".join(lines)) from error


def available() -> list[str]:
    """Return the names of the studies in studies/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def variant_params(params: Params, spec: StudySpec, variant: str) -> Params:
    """Return the validated parameters of a variant's trainings.

    Raises:
        ParamsError: a key is unknown or outside the blocks model and train, or a value is invalid.
    """
    changes = {**spec.base, **spec.variants[variant]}
    for key in changes:
        block, _, path = key.partition(".")
        if block not in ("model", "train") or key == "train.seeds" or not path:
            raise ParamsError(
                f"study {spec.name}, variant {variant!r}: {key} cannot be changed by a study; change keys inside the "
                "blocks model and train, and set the seeds with the study's own key `seeds`"
            )
    return changed_params(params, changes, f"study {spec.name}, variant {variant!r}")


def changed_params(params: Params, changes: Mapping[str, Any], source: str) -> Params:
    """Return the validated parameters with other values of dotted keys of the blocks model and train.

    Raises:
        ParamsError: a key is unknown or a value invalid; the message starts with `source`.
    """
    values = TypeAdapter(Params).dump_python(params, mode="json")
    for key, value in changes.items():
        *path, last = key.split(".")
        parent = values
        for part in path:
            parent = parent.setdefault(part, {})
        parent[last] = value
    checked = check_params(values, source)
    return replace(params, model=checked.model, train=checked.train)


def metric_keys(names: Sequence[str], label_range: tuple[float, float]) -> list[str]:
    """Return the names' keys in metrics/<split>.json, without those that this label range does not have."""
    known = evaluate_metrics(np.zeros(0), np.zeros(0), label_range)
    keys = [WIDE_NAMES.get(name, name) if tuple(label_range) == WIDE else name for name in names]
    return [key for key in keys if key in known]


def _check_name(key: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, [*known], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(repr, known))}"
        raise ValueError(f"{key}: there is no {name!r}; {hint}")
