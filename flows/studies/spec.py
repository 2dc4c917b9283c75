"""A study as its file has it: what is trained, how it is shown the evaluated clips, what is asked of the numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import TypeAdapter, ValidationError

from extractors.corruption.conditions import CORRUPTIONS
from extractors.corruption.conditions import Condition as Corrupted
from flows.config.params import Params, ParamsError, check_params
from flows.studies.results import ALL_CLIPS, CLEAN
from model.config import Modality
from model.evaluation.subgroups import SLICES

FOLDER = Path("studies")
STRICT: dict[str, str] = {"extra": "forbid"}

COSTS = ("madds", "fusion_madds", "step_seconds", "train_seconds", "parameters")

WIDE_NAMES = {"acc2": "acc2_np", "f1": "f1_np"}
"""What a study calls the metrics that labels in [-3, 3] have in two forms."""


@dataclass(frozen=True)
class Condition:
    """How the evaluated clips are shown: with some modalities only, without one in part of the clips, or corrupted.

    Attributes:
        show: modalities that the network is shown.
        drop: a modality that some clips lose; the levels are their share.
        corrupt: a corruption of `extractors.corruption.conditions`; the levels are its own.
        levels: of `drop` and `corrupt`.
        unit: of the levels, for plots; a corruption has its own.
    """

    __pydantic_config__: ClassVar = STRICT

    show: tuple[Modality, ...] = ()
    drop: Modality | None = None
    corrupt: str | None = None
    levels: tuple[float, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if [bool(self.show), self.drop is not None, self.corrupt is not None].count(True) != 1:
            raise ValueError("a condition says one of show (modalities), drop (a modality) and corrupt (a corruption)")
        if bool(self.levels) == bool(self.show):
            raise ValueError("drop and corrupt want levels, such as [0.25, 0.5], and show takes none")
        if self.drop and not all(0 <= level <= 1 for level in self.levels):
            raise ValueError("levels of drop are shares of the clips, from 0 to 1")
        for level in self.levels if self.corrupt else ():
            Corrupted(self.corrupt, level)  # which knows what there is
        if self.corrupt and not self.unit:
            object.__setattr__(self, "unit", CORRUPTIONS[self.corrupt].unit)


@dataclass(frozen=True)
class Place:
    """Which number: of a variant (None: the study's reference), in a condition, at a level, of which clips."""

    __pydantic_config__: ClassVar = STRICT

    variant: str | None = None
    condition: str = CLEAN
    level: float | None = None
    clips: str = ALL_CLIPS


@dataclass(frozen=True)
class Knee:
    """Variants along which cost grows: where does the metric stop to grow with it?"""

    __pydantic_config__: ClassVar = STRICT

    variants: tuple[str, ...]
    cost: str = "fusion_madds"


@dataclass(frozen=True)
class Check:
    """A question: does a metric at `of` differ from that at `against` by so much? Or: where is the knee?

    Attributes:
        at_least, at_most: of the difference, `of` minus `against`.
        relative: the difference is taken as a part of the number at `against`.
    """

    __pydantic_config__: ClassVar = STRICT

    question: str
    metric: str
    of: Place = field(default_factory=Place)
    against: Place = field(default_factory=Place)
    at_least: float | None = None
    at_most: float | None = None
    relative: bool = False
    knee: Knee | None = None

    def __post_init__(self) -> None:
        if [self.at_least is not None, self.at_most is not None, self.knee is not None].count(True) != 1:
            raise ValueError("a check says one of at_least, at_most and knee")
        if self.of.clips != self.against.clips:
            raise ValueError("a difference is taken on the same clips: of.clips and against.clips must be the same")


@dataclass(frozen=True)
class Pareto:
    """A plot of the best trade-offs between a cost and a metric."""

    __pydantic_config__: ClassVar = STRICT

    cost: str
    metric: str


@dataclass(frozen=True)
class StudySpec:
    """A study's file.

    Attributes:
        name: of the file.
        variants: name -> what it changes over params.yaml and `base`: dotted keys of the blocks model and train.
        reference: the variant that the others are compared with.
        metrics: keys of metrics/test.json; acc2 and f1 stand for acc2_np and f1_np where the labels are in [-3, 3].
        slices: parts of the split that are measured too, see `model.evaluation.subgroups`.
    """

    __pydantic_config__: ClassVar = STRICT

    name: str
    title: str
    question: str
    variants: dict[str, dict[str, Any]]
    reference: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    base: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)
    slices: tuple[str, ...] = ()
    pareto: Pareto | None = None
    checks: tuple[Check, ...] = ()

    def __post_init__(self) -> None:
        _among("reference", self.reference, self.variants)
        for name in self.slices:
            _among("slices", name, SLICES)
        for place in (place for check in self.checks for place in (check.of, check.against)):
            _among("variant of a check", place.variant or self.reference, self.variants)
            _among("condition of a check", place.condition, (CLEAN, *self.conditions))
            _among("clips of a check", place.clips, (ALL_CLIPS, *self.slices))
            levels = self.conditions[place.condition].levels if place.condition else ()
            if (place.level is None) == bool(levels) or (levels and place.level not in levels):
                raise ValueError(
                    f"level of a check: {place.level} is none of condition {place.condition or 'as it is'!r}"
                    f" ({', '.join(f'{level:g}' for level in levels) or 'it has none'})"
                )
        for check in self.checks:
            for name in check.knee.variants if check.knee else ():
                _among("variants of a knee", name, self.variants)
        for cost in (self.pareto.cost if self.pareto else None, *(c.knee.cost for c in self.checks if c.knee)):
            if cost is not None:
                _among("cost", cost, COSTS)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: name each seed once, and one at least")


def read_spec(name: str) -> StudySpec:
    """The study called `name` in studies/, or that of a file with this path.

    Raises:
        ValueError: there is none (the message lists those there are), or its file says what none can say.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = available()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"{FOLDER}/ has {', '.join(known) or 'none'}"
        raise ValueError(f"no study {path}: {hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(StudySpec).validate_python({"name": path.stem, **(values or {})})
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_url=False)
        ]
        raise ValueError(f"{path}:\n  " + "\n  ".join(lines)) from error


def available() -> list[str]:
    """Names of the studies in studies/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def variant_params(params: Params, spec: StudySpec, variant: str) -> Params:
    """The parameters of one of the study's trainings, checked.

    Raises:
        ParamsError: a key that there is not, of another block than model and train, or a value that cannot be.
    """
    changes = {**spec.base, **spec.variants[variant]}
    values = TypeAdapter(Params).dump_python(params, mode="json")
    for key, value in changes.items():
        block, *path = key.split(".")
        if block not in ("model", "train") or key == "train.seeds" or not path:
            raise ParamsError(
                f"study {spec.name}, variant {variant!r}: {key} is no key of the blocks model and train that a study "
                "can change (seeds are named by its own `seeds`)"
            )
        place = values[block]
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    checked = check_params(values, f"study {spec.name}, variant {variant!r}")
    return replace(params, model=checked.model, train=checked.train)


def metric_keys(names: Sequence[str], known: Mapping[str, Any], label_range: tuple[float, float]) -> list[str]:
    """The names as metrics/<split>.json has them; those that this label range does not have are left out."""
    wide = tuple(label_range) == (-3.0, 3.0)
    keys = [WIDE_NAMES.get(name, name) if wide else name for name in names]
    return [key for key in keys if key in known]


def slug(name: str) -> str:
    """A name as part of a file's, or of an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _among(what: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, [*known], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(repr, known))}"
        raise ValueError(f"{what}: there is no {name!r}; {hint}")
