"""The model card of a checkpoint, its README.md: what it is, how good, what for, and under which terms."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint.description import read_description
from model.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CARD = "README.md"

METRICS = {
    "acc2_np": "Acc-2, negative / positive",
    "acc2_nn": "Acc-2, negative / non-negative",
    "acc2": "Acc-2",
    "acc3": "Acc-3",
    "acc5": "Acc-5",
    "acc7": "Acc-7",
    "f1_np": "F1, negative / positive",
    "f1_nn": "F1, negative / non-negative",
    "f1": "F1",
    "mae": "Mean absolute error",
    "corr": "Pearson correlation",
}
"""What of the metrics a card tells, in this order."""

MINILM = "all-MiniLM-L6-v2 (Apache-2.0)"

TERMS = {
    "text.words": "no weights",
    "audio.librosa": "librosa (ISC), no weights",
    "audio.opensmile": "openSMILE, whose licence allows research and private use only",
    "vision.face_mesh": "mediapipe with the weights of FaceMesh (Apache-2.0)",
    "vision.face_landmarker": "mediapipe (Apache-2.0); the `.task` file under its own terms",
}
"""By extractor; those that take any model's weights are as free as these."""


def write_card(folder: Path, metrics: Mapping[str, Any] | None = None, split: str = "") -> None:
    """Write the card into a checkpoint's folder.

    Args:
        metrics: measured on clips that nothing was chosen by, as in metrics/<split>.json; None: those of the validation
            clips, by which the epoch was chosen.
        split: that `metrics` are of.
    """
    description = read_description(folder)
    with atomic_file(Path(folder) / CARD) as temporary:
        temporary.write_text("\n".join(card_lines(description, metrics, split)) + "\n", encoding="utf-8")


def export_checkpoint(folder: Path, out: Path, metrics: Mapping[str, Any] | None, split: str) -> None:
    """A copy of a checkpoint that needs nothing else, with a card that tells `metrics`; see `write_card`.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: `out` is there already and no checkpoint, or it is the checkpoint itself.
    """
    read_description(folder)
    out = Path(out)
    if out.exists() and out.resolve() == Path(folder).resolve():
        raise ValueError(f"{out} is the checkpoint itself; name another folder")
    if out.exists() and not (out / CARD).is_file():
        raise ValueError(f"{out} is there already and is no exported checkpoint; name a new folder")
    with atomic_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        write_card(temporary, metrics, split)


def card_lines(
    description: Mapping[str, Any], metrics: Mapping[str, Any] | None = None, split: str = ""
) -> Iterator[str]:
    """The card in Markdown, of the content of checkpoint.json."""
    dataset, train = description["dataset"], description["train"]
    low, high = dataset["label_range"]
    yield f"# DashFusion, trained on {dataset['corpus']}"
    yield ""
    yield (
        f"Sentiment of a talking-head video from {_and(train['modalities'])}: a number from {low:g} (negative) to "
        f"{high:g} (positive). Architecture: DashFusion (Wen et al., IEEE TNNLS 36(10), 2025, arXiv 2512.05515)."
    )
    yield ""
    yield "```\ndashfusion predict talk.mp4 --model THIS_FOLDER\n```"
    yield ""
    yield from _training(description)
    yield from _metrics(description, metrics, split)
    yield from _intervals(description)
    yield from _use(description)
    yield from _terms(description)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _training(description: Mapping[str, Any]) -> Iterator[str]:
    dataset, train = description["dataset"], description["train"]
    yield "## Made from"
    yield ""
    clips = dataset.get("clips", {})
    split = ", ".join(f"{count} {name}" for name, count in clips.items()) or "not counted"
    yield f"- Corpus: {dataset['corpus']}, language {dataset['language']}; clips: {split}."
    if seconds := dataset.get("training", {}).get("seconds"):
        yield f"- Training clips last {seconds['median']:.1f} s in the median, {seconds['longest']:.1f} s at most."
    for m in train["modalities"]:
        entry = dataset["modalities"][m]
        options = ", ".join(f"{key} {value}" for key, value in entry["options"].items()) or "its defaults"
        yield f"- {m}: `{entry['extractor']}` ({options}), {entry['dim']} features, `{entry['signature']}`."
    text = description["model"].get("text", {})
    if text.get("mode", "frozen") != "frozen":
        yield f"- The text encoder is the network's own (`{text['mode']}`); the features named for text are not used."
    yield f"- Modalities are {dataset['mode']}; the network does not see invalid steps of {_named(dataset)}."
    yield (
        f"- Seed {description['seed']}, epoch {description['epoch']} of at most {train['epochs']}; "
        + ", ".join(f"{name} {version}" for name, version in description["versions"].items())
        + "."
    )
    yield ""


def _named(dataset: Mapping[str, Any]) -> str:
    return _and(dataset["mask_invalid"]) if dataset["mask_invalid"] else "no modality"


def _metrics(description: Mapping[str, Any], metrics: Mapping[str, Any] | None, split: str) -> Iterator[str]:
    of_validation = {name.removeprefix("valid_"): v for name, v in description["metrics"].items() if "valid_" in name}
    figures = of_validation if metrics is None else metrics
    yield "## How good it is"
    yield ""
    if metrics is None:
        yield "On the validation clips, by which the epoch was chosen; the test clips' figures are in metrics/."
    else:
        several = f", mean of {metrics['seeds']} seeds" if "seeds" in metrics else ""
        yield f"On the {metrics['n']} labelled clips of the {split} split{several}."
    yield ""
    yield "| metric | value |\n|---|---|"
    for key, name in METRICS.items():
        if figures.get(key) is not None:
            yield f"| {name} | {figures[key]:.3f} |"
    yield ""


def _intervals(description: Mapping[str, Any]) -> Iterator[str]:
    calibration = description.get("calibration", {})
    levels = sorted({name for entry in calibration.values() for name in entry} - {"n"}, key=float)
    if not levels:
        return
    yield "Half-width of the interval that holds the label of such a clip in so many cases, by what the clip has"
    yield "(split conformal prediction on the validation clips; a dash: too few of them):"
    yield ""
    yield f"| modalities | clips | {' | '.join(f'{float(level):.0%}' for level in levels)} |"
    yield "|---|---|" + "---|" * len(levels)
    for subset, entry in calibration.items():
        widths = ("-" if entry[level] is None else f"{entry[level]:.2f}" for level in levels)
        yield f"| {subset} | {entry['n']} | {' | '.join(widths)} |"
    yield ""


def _use(description: Mapping[str, Any]) -> Iterator[str]:
    dataset, train = description["dataset"], description["train"]
    yield "## What it is for, and what not"
    yield ""
    yield "For research on multimodal sentiment, and for sorting or searching recordings whose speakers agreed to it."
    yield "Not for decisions about people: it measures how sentiment shows in one corpus, not what a person feels."
    yield ""
    if dataset["corpus"].startswith("demo_"):
        yield "- The corpus is generated: animated faces and a synthetic voice. Scores of real people mean nothing."
    yield f"- Not measured: other languages than {dataset['language']}, other cultures and recording conditions."
    if not train.get("modality_dropout"):
        yield "- Trained without modality dropout: of clips that lack a modality it knows little; their intervals tell."
    yield "- Clips far longer than the training's are scored by windows, and their mean has no interval."
    yield "- An interval holds for clips of the kind that it was measured on, and on average over them."
    yield ""


def _terms(description: Mapping[str, Any]) -> Iterator[str]:
    dataset, model = description["dataset"], description["model"]
    mode = model.get("text", {}).get("mode", "frozen")
    yield "## Terms of what went into it"
    yield ""
    yield "- DashFusion's code: Apache-2.0."
    generated = "generated by DashFusion" if dataset["corpus"].startswith("demo_") else "as its owners gave it to you"
    yield f"- Corpus {dataset['corpus']}: {generated}; a model may be bound by its corpus's terms."
    for m in description["train"]["modalities"]:
        entry = dataset["modalities"][m]
        if m == "text" and mode == "scratch":
            yield "- text: an encoder from random weights, no terms of others."
            continue
        chosen = model["text"].get("encoder") if m == "text" and mode == "finetune" else ""
        name = chosen or entry["options"].get("model", "minilm" if entry["extractor"] == "text.transformer" else "")
        of_others = f"weights of `{name}`, under their own terms; see their card"
        terms = MINILM if name == "minilm" else of_others if chosen else TERMS.get(entry["extractor"], of_others)
        yield f"- {m}: {terms}."
