"""Results of studies: one tidy Parquet table each, `<study>.parquet`; a folder of them is one dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.tables import check_version, versioned_schema, write_table
from flows.display.baselines import baseline_verdict, is_better
from flows.display.metrics import Interval, Verdict, direction

SCHEMA_VERSION = 1

COMPARISON = "compare"
"""Name of the comparison of networks among the studies."""

VALID_MAE = "valid_mae"
"""Metric of a training's best epoch, by which settings are chosen, on the validation split."""

SEARCH = "settings"
"""Condition of the validation error of each of a network's settings; the level is their number, from 0."""

ALL_CLIPS = "all"
CLEAN = ""
"""The condition of a split that is evaluated unchanged."""

COSTS = {
    "madds": ("Multiply-adds", "M"),
    "fusion_madds": ("of the fusion", "M"),
    "parameters": ("Parameters", ""),
    "step_seconds": ("A step", "s"),
    "clip_seconds": ("A clip", "s"),
    "epochs": ("Epochs", ""),
    "train_seconds": ("Training", "s"),
}
"""Metrics of cost: key -> (column header, unit). Multiply-adds, in millions, are of a clip of median length."""

NO_VERDICT = "no verdict"

ALPHA = 0.05
"""Level of the verdicts: intervals are of 95 %."""

STUDY_SCHEMA = pa.schema(
    [
        pa.field("study", pa.string(), nullable=False),
        pa.field("variant", pa.string(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("condition", pa.string(), nullable=False),
        pa.field("level", pa.float64()),
        pa.field("clips", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("statistic", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("cost", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("p_adjusted", pa.float64()),
        pa.field("reference", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Row:
    """One number of a study.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the training; None for statistics over all seeds.
        condition: How the clips were changed, such as `audio noise`; `CLEAN`.
        level: Level of the condition, such as 10 (dB); None where it has none.
        clips: Clips of the split: `ALL_CLIPS`, or a slice such as `text misleads`.
        metric: A key of metrics/<split>.json or of `COSTS`; `VALID_MAE`.
        statistic: `value` of one seed; over all seeds `mean`, `std` and `difference` (of the mean, to the reference);
            `area`, the mean over a condition's levels (trapezoidal rule), and `area_difference`.
        value: None where undefined.
        low: Lower end of the 95 % interval over seeds and speakers (`model.evaluation.crossed`); None without one. In a
            comparison of networks, intervals of differences are adjusted for all comparisons by this metric (Holm).
        high: Its upper end.
        cost: Millions of multiply-adds of the variant.
        p: Two-sided p value of a difference; None where there is no interval.
        p_adjusted: The same, adjusted for all comparisons of the study by this metric; None for single levels.
        reference: Network that a difference is to, in a comparison of networks; None: the study's reference.
    """

    variant: str
    seed: int | None
    condition: str
    level: float | None
    clips: str
    metric: str
    statistic: str
    value: float | None
    low: float | None = None
    high: float | None = None
    cost: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    reference: str | None = None

    @property
    def interval(self) -> Interval:
        """The 95 % interval, if any."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def p_text(self) -> str:
        """The p value and the adjusted one as `p 0.012, adjusted 0.048`; empty without them."""
        if self.p is None:
            return ""
        adjusted = "" if self.p_adjusted is None else f", adjusted {_format_p(self.p_adjusted)}"
        return f"p {_format_p(self.p)}{adjusted}"

    @property
    def verdict(self) -> Verdict:
        """Whether a difference is for the better or for the worse.

        Undecided unless its interval excludes 0, and its adjusted p value is at most `ALPHA`. Results of earlier
        versions have intervals over the clips alone and no p values: undecided.
        """
        if self.p_adjusted is None or self.p_adjusted > ALPHA:
            return "undecided"
        return direction(self.metric, self.interval)


def _format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


@dataclass(frozen=True)
class NetworkComparison:
    """What a study of networks has beside the numbers: `dashfusion compare`.

    Attributes:
        references: Networks that the others are compared with: the best by validation, and `text` if it was compared.
        budget: Keys of the block `compare` that each network was given alike: trials, epochs, patience.
        settings: Network -> the settings that were tried, each as dotted key -> value; the published ones first.
        chosen: Network -> number of the settings that were measured.
        baselines: Network -> its comparison with the baselines, as in metrics/<split>.json.
        left_out: Network -> why it was not compared.
    """

    references: Sequence[str]
    budget: Mapping[str, int]
    settings: Mapping[str, Sequence[Mapping[str, Any]]]
    chosen: Mapping[str, int]
    baselines: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]

    def refusal(self, network: str) -> str:
        """Return why a network gets no verdicts: it is not better than the baselines; empty where it is."""
        found = self.baselines[network]
        return "" if is_better(found) else baseline_verdict(found, f"the network {network}", brief=True)


@dataclass(frozen=True)
class StudyResult:
    """The results of a study.

    Attributes:
        study: Its name.
        title: Its title.
        question: What it investigates.
        corpus: Name of the corpus.
        split: Evaluated split.
        clips: Number of its labelled clips.
        reference: Variant that the others are compared with.
        variants: Variants in display order -> what each changes, dotted key -> value.
        seeds: Seeds of each variant.
        metrics: Metrics to show, the most important first.
        conditions: Conditions in display order -> unit of the level, such as dB; empty where there is none.
        pareto: Cost and metric of a plot of the best trade-offs, such as (fusion_madds, f1_np), if wanted.
        notes: What could not be measured, and why.
        provenance: As in metrics/run.json: code, parameters, data, versions, machine.
        rows: The numbers.
        baselines: Comparison of the reference with the baselines, on the clean split: as in metrics/<split>.json. Empty
            in results of earlier versions, and in comparisons of networks.
        comparison: What a comparison of networks adds; None for other studies.
    """

    study: str
    title: str
    question: str
    corpus: str
    split: str
    clips: int
    reference: str
    variants: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    metrics: Sequence[str]
    conditions: Mapping[str, str] = field(default_factory=dict)
    pareto: tuple[str, str] | None = None
    notes: Sequence[str] = field(default_factory=list)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    baselines: Mapping[str, Any] = field(default_factory=dict)
    comparison: NetworkComparison | None = None

    @property
    def refusal(self) -> str:
        """Why there are no verdicts: the reference is not better than the baselines; empty where there are.

        What changes in a model that has learned nothing says nothing about its parts.
        """
        if not self.baselines or is_better(self.baselines):
            return ""
        return f"No verdicts. {baseline_verdict(self.baselines, f'the reference, {self.reference},')}"

    def verdict(self, difference: Row) -> str:
        """Return the verdict on a difference to the reference, or that none is given."""
        refusal = self.comparison.refusal(difference.variant) if self.comparison else self.refusal
        return NO_VERDICT if refusal else difference.verdict

    @cached_property
    def _over_seeds(self) -> dict[tuple[Any, ...], Row]:
        return {
            (
                r.variant,
                r.metric,
                r.statistic,
                r.condition,
                r.level,
                r.clips,
                self._reference(r.statistic, r.reference),
            ): r
            for r in self.rows
            if r.seed is None
        }

    def _reference(self, statistic: str, reference: str | None) -> str | None:
        return (reference or self.reference) if statistic.endswith("difference") else None

    def get(
        self,
        variant: str,
        metric: str,
        statistic: str = "mean",
        condition: str = CLEAN,
        level: float | None = None,
        clips: str = ALL_CLIPS,
        reference: str | None = None,
    ) -> Row | None:
        """Return a row over all seeds; None if there is none, or its value is undefined.

        Differences are those to `reference`, by default the study's.
        """
        place = condition, level, clips, self._reference(statistic, reference)
        row = self._over_seeds.get((variant, metric, statistic, *place))
        return None if row is None or row.value is None else row

    def find(self, **attributes: Any) -> Iterator[Row]:
        """Return the rows that have these attributes."""
        return (row for row in self.rows if all(getattr(row, name) == value for name, value in attributes.items()))

    def levels(self, condition: str) -> list[float]:
        """Return the condition's levels in the order of the study; empty if it has none."""
        rows = self.find(condition=condition, statistic="mean")
        return list(dict.fromkeys(row.level for row in rows if row.level is not None))

    @cached_property
    def slices(self) -> list[str]:
        """The slices that were measured."""
        return list(dict.fromkeys(row.clips for row in self.rows if row.clips != ALL_CLIPS))


def write_study(result: StudyResult, folder: Path) -> Path:
    """Write `folder`/<study>.parquet atomically and return its path."""
    metadata = asdict(result)
    del metadata["rows"]
    metadata["record"] = metadata.pop("provenance")
    path = Path(folder) / f"{result.study}.parquet"
    rows = [{"study": result.study, **asdict(row)} for row in result.rows]
    write_table(rows, versioned_schema(STUDY_SCHEMA, SCHEMA_VERSION, metadata), path)
    return path


def read_study(path: Path) -> StudyResult:
    """Read one table; metadata that earlier versions wrote and this one does not use are ignored.

    Raises:
        ValueError: the file has another schema version, or is not a study.
    """
    table = pq.read_table(path)
    remedy = "run the study again, or remove the file"
    metadata = check_version(table.schema, SCHEMA_VERSION, path, kind="study result", remedy=remedy)
    metadata["provenance"] = metadata.pop("record")
    metadata["pareto"] = tuple(metadata["pareto"]) if metadata["pareto"] else None
    metadata.setdefault("baselines", {})
    comparison = metadata.get("comparison")
    metadata["comparison"] = NetworkComparison(**comparison) if comparison else None
    known = {item.name: metadata[item.name] for item in fields(StudyResult) if item.name != "rows"}
    rows = [Row(**{name: value for name, value in row.items() if name != "study"}) for row in table.to_pylist()]
    return StudyResult(**known, rows=rows)


def read_studies(folder: Path) -> list[StudyResult]:
    """Read all studies of a folder, by name; raises as `read_study` does."""
    return [read_study(path) for path in sorted(Path(folder).glob("*.parquet"))]
