"""params.yaml as typed configuration, validated once when it is read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from corpora.demo.config import DemoConfig
from corpora.readers.raw import COLUMNS, Layout
from corpora.splits import SplitConfig
from extractors.dataset.align_clip import AlignConfig
from extractors.transcripts.transcribe import TranscribeConfig
from flows.config.outputs import layout_errors
from model.config import ModelConfig, TrainConfig, check_together
from model.network.registry import check_network, network_names

STRICT = {"extra": "forbid"}

MIN_SEEDS = 3
"""Seeds of a study or comparison: with fewer, their spread is hardly known, and every difference is undecided."""

SEARCH_SEED = 2**32 - 1
"""Seed with which a comparison tries settings; none of those by which the networks are measured."""

IMPORTED_LAYOUTS = ("mmsa_pickle", "csd")
"""Layouts of corpora of extracted features: `prepare` writes the features, `extract` copies them."""


@dataclass(frozen=True)
class Paths:
    """Output paths of the stages, relative to the project's folder."""

    __pydantic_config__: ClassVar = STRICT
    media: Path
    manifest: Path
    problems: Path
    all_problems: Path
    transcripts: Path
    features: Path
    dataset: Path
    models: Path
    metrics: Path
    predictions: Path
    report: Path
    studies: Path

    @property
    def training_curves(self) -> Path:
        """Folder of the learning curves."""
        return self.metrics / "training"


@dataclass(frozen=True)
class PrepareParams:
    """The corpus and how to read it.

    Attributes:
        corpus: Name in reports and checkpoints.
        layout: Generator or file layout.
        root: Folder of the corpus.
        language: Language of transcripts without one of their own.
        label_range: Scale of the labels.
        demo: Size and seed of the generated corpus.
        columns: Column of `corpora.readers.raw.COLUMNS` -> its name in the corpus's table; None: the same.
        table: Name of a folder's table; None: label.csv, meta.csv or the only one.
        encoding: Encoding of the corpus's table; None: UTF-8, or what its byte-order mark says.
        split: How to draw the splits of a folder's clips; None: they are the table's.
    """

    __pydantic_config__: ClassVar = STRICT
    corpus: str
    layout: Literal["demo", "mmsa", "folder", "mmsa_pickle", "csd"]
    root: str
    language: str = "en"
    label_range: tuple[float, float] = (-3.0, 3.0)
    demo: DemoConfig = field(default_factory=DemoConfig)
    columns: dict[str, str | None] = field(default_factory=dict)
    table: str | None = None
    encoding: str | None = None
    split: SplitConfig | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in COLUMNS]
        if unknown:
            raise ValueError(
                f"columns: {unknown[0]!r} is none of a table's columns; name among {', '.join(COLUMNS)} those that "
                "have another name in your table"
            )
        for name, value in {"columns": self.raw_columns, "encoding": self.encoding}.items():
            if value and self.layout not in ("mmsa", "folder"):
                raise ValueError(f"{name}: no effect with layout {self.layout}, which has no table of one's own")
        if self.table is not None and self.layout != "folder":
            raise ValueError(f"table: no effect with layout {self.layout}; corpus=folder reads a table of any name")
        if self.table is not None and (self.table in ("", "..") or Path(self.table).name != self.table):
            raise ValueError(f"table {self.table!r} must be the name of a file in prepare.root, without a folder")
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise ValueError(f"encoding {self.encoding!r} is unknown; name one such as utf-8, gb18030 or cp1252")
        if self.split is not None and self.layout != "folder":
            raise ValueError(
                f"split: no effect with layout {self.layout}, which has its own splits; corpus=folder reads a table "
                "without them"
            )
        if self.label_range not in ((-3.0, 3.0), (-1.0, 1.0)):
            raise ValueError(
                f"label_range must be [-3, 3] or [-1, 1], the two scales that the metrics are defined for; "
                f"found {list(self.label_range)}"
            )

    @property
    def raw_layout(self) -> Layout:
        """Layout of the media files; the demo has MMSA's."""
        return "folder" if self.layout == "folder" else "mmsa"

    @property
    def raw_columns(self) -> dict[str, str]:
        """Columns with another name in the corpus's table: our name -> the table's."""
        return {ours: theirs for ours, theirs in self.columns.items() if theirs}


@dataclass(frozen=True)
class ExtractorParams:
    """An extractor by its registered name, with its options."""

    __pydantic_config__: ClassVar = STRICT
    extractor: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtractParams:
    """Extractors of the modalities, the processes that run them, and limits on failures and time.

    Attributes:
        text: Extractor of text.
        audio: Extractor of audio.
        vision: Extractor of vision.
        workers: Processes; 0: one per core.
        runner: Processes of this machine, or the kind of cluster.
        address: Address of a running cluster; empty: a local one.
        max_failed_fraction: Share of clips that may fail before the stage stops.
        clip_timeout: Seconds that a clip may take.
    """

    __pydantic_config__: ClassVar = STRICT
    text: ExtractorParams
    audio: ExtractorParams
    vision: ExtractorParams
    workers: int = 0
    runner: Literal["processes", "dask", "ray"] = "processes"
    address: str = ""
    max_failed_fraction: float = 0.02
    clip_timeout: float = 300.0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per core) or more, found {self.workers}")
        if self.address and self.runner == "processes":
            raise ValueError(
                f"address is a cluster's, found {self.address!r} with runner processes: "
                "set extract.runner to dask or ray, or leave the address empty"
            )
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"max_failed_fraction must lie in [0, 1], found {self.max_failed_fraction}")
        if not self.clip_timeout > 0:
            raise ValueError(f"clip_timeout must be more than 0 seconds a clip, found {self.clip_timeout}")


@dataclass(frozen=True)
class EvaluateParams:
    """What to evaluate on.

    Attributes:
        split: Split of the dataset.
        also_on: Dataset folder of another corpus, on whose split of this name the model is measured too; the project's
            own: on no other.
    """

    __pydantic_config__: ClassVar = STRICT
    split: Literal["train", "valid", "test"] = "test"
    also_on: Path = Path("data/dataset")


@dataclass(frozen=True)
class CompareParams:
    """The comparison of networks, `dashfusion compare`. Every network gets the same budget.

    Attributes:
        models: Networks to compare; none: all.
        seeds: Seeds that each network is trained with and measured by.
        trials: Settings that are tried for each network, the published ones first; 0 and 1: these alone.
        epochs: Maximum epochs of each training, whatever the publications have.
        patience: Epochs without a better validation MAE after which a training stops.
    """

    __pydantic_config__: ClassVar = STRICT
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    trials: int = 0
    epochs: int = 30
    patience: int = 10

    def __post_init__(self) -> None:
        known = network_names()
        for name in self.models:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"models: there is no network {name!r}; {hint}")
        for name, value in {"models": self.models, "seeds": self.seeds}.items():
            if len(set(value)) != len(value):
                raise ValueError(f"{name}: {list(value)}; name each once")
        if len(self.seeds) < MIN_SEEDS or not all(0 <= seed < SEARCH_SEED for seed in self.seeds):
            raise ValueError(
                f"seeds: {list(self.seeds)}; name at least {MIN_SEEDS}, from 0 to {SEARCH_SEED - 1}: differences are "
                "compared with the spread over the seeds"
            )
        for name, least in {"trials": 0, "epochs": 1, "patience": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, found {getattr(self, name)}")


@dataclass(frozen=True)
class Params:
    """All of params.yaml."""

    __pydantic_config__: ClassVar = STRICT
    paths: Paths
    prepare: PrepareParams
    extract: ExtractParams
    transcribe: TranscribeConfig = field(default_factory=TranscribeConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    compare: CompareParams = field(default_factory=CompareParams)

    def __post_init__(self) -> None:
        check_together(self.model, self.train)
        check_network(self.model, self.train)

    @property
    def other_dataset(self) -> Path | None:
        """Dataset of another corpus that the model is measured on; None: none."""
        own, named = self.paths.dataset, self.evaluate.also_on
        return None if named.resolve() == own.resolve() else named


def _is_encoding(name: str) -> bool:
    """Return whether Python has an encoding of text of this name."""
    try:
        "".encode(name)
    except (LookupError, UnicodeError, ValueError):
        return False
    return True


class ParamsError(ValueError):
    """Invalid parameters; the message lists every error."""


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file.

    Raises:
        FileNotFoundError: No such file.
        ParamsError: Unknown keys (with the closest known one), wrong types, values out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path} in {Path.cwd()}: run from the project's folder, where dvc.yaml and params.yaml are"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: no YAML: {error}") from error
    return check_params(values, str(path))


def check_params(values: Mapping[str, Any], source: str) -> Params:
    """Validate nested plain values as `Params`; `source` names them in messages. Raises ParamsError."""
    try:
        params = TypeAdapter(Params).validate_python(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False)]
        raise ParamsError(f"{source}:\n  " + "\n  ".join(lines)) from error
    if lines := layout_errors(params):
        raise ParamsError(f"{source}:\n  " + "\n  ".join(lines))
    return params


def _explain(item: Mapping[str, Any]) -> str:
    """Format one of pydantic's errors as a line: the dotted key, the value, what is expected."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "unexpected_keyword_argument":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{key}: no such key; {hint}"
    if item["type"] == "missing":
        return f"{key}: missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] != "value_error":
        message += f" (found {item['input']!r})"
    return f"{key}: {message}" if key else message


def _known_keys(location: list[str]) -> list[str]:
    """Return the field names of the dataclass at this location in `Params`."""
    kind: Any = Params
    for name in location:
        kind = get_type_hints(kind).get(name)
        kind = next(filter(is_dataclass, get_args(kind)), kind)  # of `SplitConfig | None`
        if not is_dataclass(kind):
            return []
    return [item.name for item in fields(kind)]
