"""Model card of a checkpoint (README.md): training, metrics, intended use, limits and licence terms."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint.description import GENERATED_NOTICE, read_description
from model.data.info import is_generated
from model.files import atomic_file, atomic_folder
from model.network.registry import DEFAULT, find_network

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
"""Metrics of the card, in order, with their names."""

MINILM = "all-MiniLM-L6-v2 (Apache-2.0)"

TERMS = {
    "text.words": "no weights",
    "audio.librosa": "librosa (ISC), no weights",
    "audio.opensmile": "openSMILE, whose licence allows research and private use only",
    "vision.face_mesh": "mediapipe with the weights of FaceMesh (Apache-2.0)",  # of checkpoints made until 0.1
    "vision.face_landmarker": "mediapipe with its face landmarker's weights (Apache-2.0)",
}
"""Licence terms by extractor; an extractor that takes any model is subject to that model's terms."""


def write_card(folder: Path, metrics: Mapping[str, Any] | None = None, split: str = "") -> None:
    """Write the card into a checkpoint's folder.

    Args:
        folder: Checkpoint folder.
        metrics: Metrics on held-out clips, as in metrics/<split>.json; None: those of the validation clips, by which
            the epoch was chosen.
        split: Split of `metrics`.
    """
    description = read_description(folder)
    with atomic_file(Path(folder) / CARD) as temporary:
        temporary.write_text("\n".join(card_lines(description, metrics, split)) + "\n", encoding="utf-8")


def export_checkpoint(folder: Path, out: Path, metrics: Mapping[str, Any] | None, split: str) -> None:
    """Copy a checkpoint to `out`, with a card that shows `metrics`; see `write_card`.

    Raises:
        FileNotFoundError: No checkpoint there.
        ValueError: `out` exists and is not an exported checkpoint, or it is the checkpoint itself.
    """
    read_description(folder)
    out = Path(out)
    if out.exists() and out.resolve() == Path(folder).resolve():
        raise ValueError(f"{out} is the checkpoint itself; name another folder")
    if out.exists() and not (out / CARD).is_file():
        raise ValueError(f"{out} exists already and is not an exported checkpoint; name a new folder")
    with atomic_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        write_card(temporary, metrics, split)


def card_lines(
    description: Mapping[str, Any], metrics: Mapping[str, Any] | None = None, split: str = ""
) -> Iterator[str]:
    """Yield the card's lines in Markdown, from the content of checkpoint.json."""
    dataset, train = description["dataset"], description["train"]
    low, high = dataset["label_range"]
    network = description["model"].get("name", DEFAULT)
    yield f"# Sentiment model, trained on {dataset['corpus']}"
    yield ""
    if is_generated(dataset):
        yield f"**{GENERATED_NOTICE}**"
        yield ""
    yield (
        f"Sentiment of a talking-head video from {_and(train['modalities'])}: a number from {low:g} (negative) to "
        f"{high:g} (positive). Network: `{network}` ({find_network(network).source})."
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
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _training(description: Mapping[str, Any]) -> Iterator[str]:
    dataset, train = description["dataset"], description["train"]
    yield "## Training"
    yield ""
    clips = dataset.get("clips", {})
    split = ", ".join(f"{count} {name}" for name, count in clips.items()) or "not counted"
    generated = is_generated(dataset)
    kind = "" if generated is None else " (generated)" if generated else " (recorded)"
    yield f"- Corpus: {dataset['corpus']}{kind}, language {dataset['language']}; clips: {split}."
    if videos := dataset.get("training", {}).get("videos"):
        yield f"- Videos (speakers, where a video is one) of the training clips: {videos}."
    if seconds := dataset.get("training", {}).get("seconds"):
        yield f"- Training clips: median duration {seconds['median']:.1f} s, longest {seconds['longest']:.1f} s."
    for m in train["modalities"]:
        entry = dataset["modalities"][m]
        options = ", ".join(f"{key} {value}" for key, value in entry["options"].items()) or "its defaults"
        yield f"- {m}: `{entry['extractor']}` ({options}), {entry['dim']} features, `{entry['signature']}`."
    text = description["model"].get("text", {})
    if text.get("mode", "frozen") != "frozen":
        yield f"- The text encoder is the network's own (`{text['mode']}`); the text features above are not used."
    if options := description["model"].get("options"):
        yield f"- Options of the network: {', '.join(f'{key} {value}' for key, value in options.items())}."
    hidden = _and(dataset["mask_invalid"]) or "none"
    yield f"- Modalities are {dataset['mode']}; modalities whose invalid steps the network does not see: {hidden}."
    if dataset.get("normalise_audio") == "speaker":
        yield "- Audio is standardised by the statistics of its speaker's clips; a new video, by its own."
    yield (
        f"- Seed {description['seed']}, epoch {description['epoch']} of at most {train['epochs']}; "
        + ", ".join(f"{name} {version}" for name, version in description["versions"].items())
        + "."
    )
    yield ""


def _metrics(description: Mapping[str, Any], metrics: Mapping[str, Any] | None, split: str) -> Iterator[str]:
    validation = {name.removeprefix("valid_"): v for name, v in description["metrics"].items() if "valid_" in name}
    values = validation if metrics is None else metrics
    yield "## Metrics"
    yield ""
    if metrics is None:
        yield "On the validation clips, by which the epoch was chosen; metrics of the test clips are in metrics/."
    else:
        several = f", mean of {metrics['seeds']} seeds" if "seeds" in metrics else ""
        yield f"On the {metrics['n']} labelled clips of the {split} split{several}."
    yield ""
    yield "| metric | value |\n|---|---|"
    for key, name in METRICS.items():
        if values.get(key) is not None:
            yield f"| {name} | {values[key]:.3f} |"
        elif reason := values.get("undefined", {}).get(key):
            yield f"| {name} | - ({reason}) |"
    yield ""


def _intervals(description: Mapping[str, Any]) -> Iterator[str]:
    calibration = description.get("calibration", {})
    levels = sorted({name for entry in calibration.values() for name in entry} - {"n"}, key=float)
    if not levels:
        return
    yield "Half-widths of the prediction intervals by coverage and available modalities, from errors on"
    yield f"{_calibrated_by(description)} (a dash: too few clips):"
    yield ""
    yield f"| modalities | clips | {' | '.join(f'{float(level):.0%}' for level in levels)} |"
    yield "|---|---|" + "---|" * len(levels)
    for subset, entry in calibration.items():
        widths = ("-" if entry[level] is None else f"{entry[level]:.2f}" for level in levels)
        yield f"| {subset} | {entry['n']} | {' | '.join(widths)} |"
    yield ""
    if description.get("calibrated_by", {}).get("method") == "cv_plus":
        yield "Intervals are CV+: they also contain how far those networks disagree about a clip, so they differ from"
        yield "clip to clip. The table has the half-widths without that, which hold for an ONNX export."
        yield ""


def _calibrated_by(description: Mapping[str, Any]) -> str:
    by = description.get("calibrated_by", {})
    if by.get("method") in ("grouped_cv", "cv_plus"):
        return f"clips of {by['speakers']} speakers that {by['folds']} further networks were trained without"
    return "the validation clips, which also chose the epoch"


def _use(description: Mapping[str, Any]) -> Iterator[str]:
    dataset, train = description["dataset"], description["train"]
    yield "## Intended use and limits"
    yield ""
    yield "For research on multimodal sentiment, and for sorting or searching recordings whose speakers consented to"
    yield "it. Not for decisions about people: it predicts how one corpus's annotators perceived sentiment, not what a"
    yield "person feels."
    yield ""
    yield f"- Not evaluated: languages other than {dataset['language']}, other cultures and recording conditions."
    if not train.get("modality_dropout"):
        yield "- Trained without modality dropout: unreliable on clips that lack a modality (see intervals)."
    yield "- Clips far longer than the training clips are scored by windows; the mean of these has no interval."
    yield "- Interval coverage is marginal: it holds on average over clips like the training and validation clips."
    yield ""


def _terms(description: Mapping[str, Any]) -> Iterator[str]:
    dataset, model = description["dataset"], description["model"]
    mode = model.get("text", {}).get("mode", "frozen")
    yield "## Licences"
    yield ""
    yield "- DashFusion's code: Apache-2.0."
    origin = "generated by DashFusion" if is_generated(dataset) else "under its owners' terms"
    yield f"- Corpus {dataset['corpus']}: {origin}; the corpus's terms may also bind the model."
    for m in description["train"]["modalities"]:
        entry = dataset["modalities"][m]
        if m == "text" and mode == "scratch":
            yield "- text: an encoder trained from random weights, under no terms of others."
            continue
        chosen = model["text"].get("encoder") if m == "text" and mode == "finetune" else ""
        name = chosen or entry["options"].get("model", "minilm" if entry["extractor"] == "text.transformer" else "")
        of_others = f"weights of `{name}`, under their own terms; see their card"
        terms = MINILM if name == "minilm" else of_others if chosen else TERMS.get(entry["extractor"], of_others)
        yield f"- {m}: {terms}."
