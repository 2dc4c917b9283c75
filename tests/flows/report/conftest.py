"""Reports of made-up corpora, and what is read from their pages."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from corpora.manifest import Clip
from corpora.problems import Problem
from flows.report import CalibrationInput, ExplorerInput, ReportInput, SubgroupAnalysis, write_report
from flows.report.corpus_card import CorpusCard, _histogram
from flows.studies.results import ALL_CLIPS, CLEAN, NetworkComparison, Row, StudyResult
from model.evaluation.calibration import Bin, Coverage
from model.evaluation.explain import Attention, ClipView, Explanation, Feature, Track
from model.evaluation.subgroups import Subgroup, SubgroupMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)
WIDE_METRICS = {
    "n": 12,
    "mae": 0.5074,
    "corr": 0.9104,
    "acc2_nn": 0.9,
    "f1_nn": 0.89,
    "acc2_np": 0.9168,
    "f1_np": 0.915,
    "acc3": 0.8,
    "acc5": 0.6,
    "acc7": 0.5,
}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, the text of the page, and the text of each table cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], f"elements left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] in ("style", "script"):
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def svgs(self) -> list[str | None]:
        """Titles of the plots."""
        return [attrs["aria-label"] for tag, attrs in self.elements if tag == "svg" and "aria-label" in attrs]

    def clips(self) -> list[list[str]]:
        """The rows of the table of clips."""
        heads = [i for i, row in enumerate(self.rows) if row[:2] == ["Clip", "Seconds"]]
        return [row for row in self.rows[heads[0] + 1 :] if len(row) == 6] if heads else []


def make_clips(count: int = 12, text: str = "It was fine.", high: float = 3.0) -> dict[str, Clip]:
    labels = np.linspace(-high, high, count)
    return {
        f"v{i}/0001": Clip(f"v{i}/0001", f"v{i}", "test", "en", "", text, float(labels[i]), duration=3.0)
        for i in range(count)
    }


def make_predictions(clips: dict[str, Clip], offsets: dict[int, float]) -> pa.Table:
    """Each seed predicts every label plus its own offset."""
    rows = [
        {
            "clip_id": clip.clip_id,
            "split": "test",
            "seed": seed,
            "label": clip.label,
            "prediction": (clip.label or 0.0) + offset,
        }
        for seed, offset in offsets.items()
        for clip in clips.values()
    ]
    types = {"clip_id": pa.string(), "split": pa.string(), "seed": pa.int64()}
    types |= {"label": pa.float32(), "prediction": pa.float32()}
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def make_curves(epochs: dict[int, int]) -> list[dict[str, float]]:
    return [
        {
            "seed": seed,
            "epoch": epoch,
            "train_loss": 3 / epoch,
            "train_regression": 1 / epoch,
            "train_semantic": 1.5 / epoch,
            "train_supervised": 2 / epoch,
            "valid_mae": 1 / epoch + seed * 0.1,
            "valid_corr": 1 - 1 / epoch,
        }
        for seed, count in epochs.items()
        for epoch in range(1, count + 1)
    ]


def make_record(**changes: Any) -> dict[str, Any]:
    """What a run on a CPU at a clean revision records of itself."""
    return {
        "started": "2026-11-24T02:57:14+00:00",
        "code": {"revision": "0123456789abcdef", "dirty": False, "changed": []},
        "params": {
            "extract": {"workers": 0, "text": {"options": {"model": "minilm"}}},
            "train": {"seeds": [0, 1]},
        },
        "data": {"dataset": "da7a" * 16},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {
            "device": "cpu", "processes": 1, "cpu": "AMD EPYC", "cores": 16, "threads": 8, "platform": "Linux-6.1",
        },
        "seconds": 12.5,
    } | changes  # fmt: skip


def make_report(**changes: object) -> ReportInput:
    clips = make_clips()
    whole = ReportInput(
        corpus="demo_en",
        split="test",
        label_range=WIDE,
        metrics=WIDE_METRICS,
        predictions=make_predictions(clips, {0: 0.25}),
        clips=clips,
        problems=[Problem("v3/0001", "extract", "vision", "NoFace", "no face in 38 frames")],
        word_times={
            "methods": {
                "ctc": {"clips": 3, "words": 20},
                "proportional": {
                    "clips": 77,
                    "words": 1300,
                    "error": {
                        "clips": 70,
                        "words": 1234,
                        "clips_with_other_words": 7,
                        "overlap": 0.934,
                        "start": {"mean": 0.0712, "median": 0.0642, "p90": 0.2},
                        "end": {"mean": 0.1, "median": 0.1, "p90": 0.1},
                    },
                },
            }
        },
        provenance=make_record(train=[make_record(seed=0), make_record(seed=1)]),
    )
    return replace(whole, **changes)


def make_card() -> CorpusCard:
    """Of a corpus as large as they come, with everything that a card can hold."""
    names = [str(value) for value in range(-3, 4)]
    counts = {split: np.arange(1, 8) for split in ("train", "valid", "test")}
    return CorpusCard(
        groups=["train", "valid", "test", "all"],
        rows=[
            ("Clips", ["16,326", "1,871", "4,659", "22,856"]),
            ("Valid vision", ["100.0%"] * 4),
            ("Length unknown", ["0", "0", "1", "1"]),
        ],
        absent=2,
        reasons=[(("extract", "vision", "NoFace"), 1), (("align", "", "NoModality"), 2)],
        histogram=_histogram(counts, names),
        classes=[(name, [16_326, 1_871, 4_659, 22_856]) for name in names],
        by_modality=[("text", 22_856, 0.75), ("audio", 1, None)],
        signatures=[(m, f"{m}.extractor-v2-0123456789ab") for m in ("text", "audio", "vision")],
    )


def make_problem(clip_id: str) -> Problem:
    return Problem(clip_id, "prepare", "", "Bad<b>", clip_id)


def make_page(html: str) -> Page:
    return Page(html)


def make_explorer(clips: Mapping[str, Clip], words: int = 4, steps: int = 20, **changes: Any) -> ExplorerInput:
    """Every clip with its words spread over its time, a louder end, a face that leaves, and attention that moves on."""

    def view(clip: Clip) -> ClipView:
        edges = np.linspace(0, clip.duration or 3.0, words + 1)
        times = np.linspace(0, clip.duration or 3.0, steps + 1)
        values = np.linspace(-1, 1, steps)[:, None] * [1.0, -1.0]
        tracks = {m: Track(times[:-1], times[1:], np.arange(steps) < 15, values) for m in ("audio", "vision")}
        looks = np.full((words, steps), 0.02)
        looks[np.arange(words), np.arange(words) * steps // words] = 0.5
        attention = {m: Attention(looks, np.full(words, 0.1)) for m in tracks}
        return ClipView(np.column_stack([edges[:-1], edges[1:]]), tracks, attention)

    features = {
        "audio": [Feature(0, "log_f0", 0.52), Feature(3, "mfcc_2", -0.4)],
        "vision": [Feature(1, "mouth_width", 0.69), Feature(2, "jaw_open", None)],
    }
    return replace(
        ExplorerInput(
            explanation=Explanation({clip_id: view(clip) for clip_id, clip in clips.items()}, features, "text"),
            words={clip_id: clip.text.split() for clip_id, clip in clips.items()},
            valid={"audio": {clip_id: np.arange(steps) >= 5 for clip_id in clips}},
            missing={clip_id: ["vision"] for clip_id in list(clips)[:2]},
            subgroups=[
                Subgroup("Polarity", "positive", np.array([(clip.label or 0) > 0 for clip in clips.values()])),
                Subgroup("Conflict", "text misleads", np.arange(len(clips)) % 4 == 0),
            ],
        ),
        **changes,
    )


def make_subgroup(group: str, name: str, clips: int, accuracy: float | None, mae: float | None) -> SubgroupMetrics:
    interval = None if accuracy is None else (accuracy - 0.08, min(accuracy + 0.06, 1.0))
    return SubgroupMetrics(group, name, clips, accuracy, interval, mae, None if mae is None else (mae - 0.1, mae + 0.1))


def make_subgroups(**changes: Any) -> SubgroupAnalysis:
    return replace(
        SubgroupAnalysis(
            whole=make_subgroup("", "all clips", 80, 0.9, 0.5),
            subgroups=[
                make_subgroup("Length", "up to 3.2 s", 27, 0.85, 0.6),
                make_subgroup("Length", "more than 3.2 s", 53, 0.93, 0.45),
                make_subgroup("Polarity", "neutral (0)", 4, None, 0.84),
            ],
            speakers=[make_subgroup("Speaker", "v3", 8, 0.75, 0.9), make_subgroup("Speaker", "v1", 8, 1.0, 0.2)],
            speakers_measured=2,
            accuracy="acc2_np",
        ),
        **changes,
    )


def make_calibration() -> CalibrationInput:
    levels = (0.5, 0.8, 0.9, 0.95)
    return CalibrationInput(
        bins=[Bin(8, x, x + 0.2, (x - 0.3, x + 0.6)) for x in (-2.0, 0.0, 1.5)],
        coverage=[Coverage(level, 80, level - 0.05, (level - 0.1, level)) for level in levels],
        widths={"text+audio+vision": {"n": 48, "0.5": 0.3, "0.8": 0.7, "0.9": 0.8, "0.95": None}},
    )


def make_study(**changes: Any) -> StudyResult:
    """Three variants of two seeds, as they are, for a slice, under a condition with levels and one without."""
    variants = {"full": {}, "no alignment": {"model.alignment": False}, "<b>wide</b>": {"model.dim": 256}}
    rows = []
    for number, variant in enumerate(variants):
        cost = 20.0 + 10 * number

        def put(metric, statistic, value, low=None, high=None, condition=CLEAN, level=None, clips=ALL_CLIPS):
            tested = (0.01, 0.04) if low and low * high > 0 else (0.2, 0.6)
            p, adjusted = tested if "difference" in statistic else (None, None)
            place = variant, None, condition, level, clips, metric, statistic  # noqa: B023
            rows.append(Row(*place, value, low, high, cost, p, adjusted))  # noqa: B023

        put("madds", "mean", cost)
        put("fusion_madds", "mean", cost)
        put("step_seconds", "mean", 0.125)
        for metric, value in {"acc2_np": 0.9 - 0.03 * number, "mae": 0.5 + 0.03 * number}.items():
            sign = -1 if metric == "acc2_np" else 1
            put(metric, "mean", value, value - 0.02, value + 0.02)
            put(metric, "std", 0.012)
            if number:
                change = sign * 0.03 * number
                put(metric, "difference", change, change - 0.04, change + (0.04 if number == 1 else -0.01))
        put("acc2_np", "mean", 0.7, clips="text misleads")
        put("acc2_np", "mean", 0.6, condition="text only")
        for level in (0.0, 10.0, 20.0):
            value = 0.5 + 0.02 * level - 0.01 * number
            put("acc2_np", "mean", value, value - 0.05, value + 0.05, "audio noise", level)
        put("acc2_np", "area", 0.7 - 0.01 * number, condition="audio noise")
        if number:
            put("acc2_np", "area_difference", -0.01 * number, -0.03, 0.01 - 0.01 * number, condition="audio noise")
    return replace(
        StudyResult(
            study="robustness",
            title="What noise costs",
            question="How fast do metrics fall?",
            corpus="demo_en",
            split="test",
            clips=80,
            reference="full",
            variants=variants,
            seeds=[0, 1],
            metrics=["acc2_np", "mae", "corr"],
            conditions={"audio noise": "dB", "text only": ""},
            pareto=("fusion_madds", "acc2_np"),
            notes=["vision blur was left out: no media"],
            provenance={"data": {"dataset": "da7a" * 16}},
            rows=rows,
            baselines={"verdict": "better"},
        ),
        **changes,
    )


def make_comparison(**changes: Any) -> StudyResult:
    """Three networks of three seeds: the best, one that is worse, and one that has learned nothing."""
    names = ["dashfusion", "text", "tfn"]
    rows = []
    for number, name in enumerate(names):

        def put(metric, statistic, value, *interval, reference=None):
            low, high = interval or (None, None)
            p, adjusted = (0.001, 0.003) if reference else (None, None)
            place = name, None, CLEAN, None, ALL_CLIPS, metric, statistic  # noqa: B023
            rows.append(Row(*place, value, low, high, 10.0, p, adjusted, reference))

        for metric, value in {"mae": 0.6 + 0.2 * number, "acc2_np": 0.9 - 0.1 * number}.items():
            put(metric, "mean", value, value - 0.05, value + 0.05)
            put(metric, "std", 0.012)
            for reference in ("dashfusion", "text"):
                change = (0.2 if metric == "mae" else -0.1) * (number - names.index(reference))
                if name != reference:
                    put(metric, "difference", change, change - 0.04, change + 0.04, reference=reference)
        put("valid_mae", "mean", 0.5 + 0.1 * number)
        costs = {"madds": 50.0, "parameters": 1e6, "step_seconds": 0.25, "clip_seconds": 0.002, "epochs": 12.5}
        for cost, value in costs.items():
            put(cost, "mean", value / (number + 1))
    unlearned = {"verdict": "undecided", "hardest": "mean_label",
                 "mean_label": {"mae": 1.7, "mae_difference": -0.1, "mae_interval": [-0.3, 0.1]}}  # fmt: skip
    settings = {name: [{"model.name": name, "train.learning_rate": 0.001}] for name in names}
    return replace(
        StudyResult(
            study="compare",
            title="Networks compared",
            question="Which network is best on this corpus, at which cost?",
            corpus="demo_en",
            split="test",
            clips=80,
            reference="dashfusion",
            variants={name: tried[0] for name, tried in settings.items()},
            seeds=[0, 1, 2],
            metrics=["mae", "acc2_np"],
            provenance={"data": {"dataset": "da7a" * 16}},
            rows=rows,
            comparison=NetworkComparison(
                references=["dashfusion", "text"],
                budget={"trials": 0, "epochs": 30, "patience": 10},
                settings=settings,
                chosen=dict.fromkeys(names, 0),
                baselines={name: unlearned if name == "tfn" else {"verdict": "better"} for name in names},
                left_out={"<i>mine</i>": "it reads tokens: set model.text.mode to finetune"},
            ),
        ),
        **changes,
    )


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The makers of this module: `make.clips(3)`."""
    makers = {name.removeprefix("make_"): maker for name, maker in globals().items() if name.startswith("make_")}
    return SimpleNamespace(**makers)


@pytest.fixture
def render(tmp_path: Path):
    """Write a report of `make_report(**changes)`; returns its HTML and the parsed page."""

    def write(**changes: object) -> tuple[str, Page]:
        path = tmp_path / "report" / "index.html"
        write_report(path, make_report(**changes))
        html = path.read_text(encoding="utf-8")
        return html, Page(html)

    write.path = tmp_path / "report" / "index.html"
    return write
