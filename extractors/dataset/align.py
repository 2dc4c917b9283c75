"""The align stage: join manifest, transcripts and features of three modalities into the dataset that the model reads.

Mode `unaligned` keeps each modality's own rate; `aligned` pools audio and vision onto the text's tokens. Values are not
normalised, except for audio by its speaker if asked for: the statistics of the training split are in dataset.json. One
pass over the data, and one over the audio before it to normalise it, with a few row groups of each modality in memory
at a time.
"""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from corpora.files import atomic_file, atomic_folder
from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, read_manifest
from corpora.problems import Problem
from corpora.tables import versioned_schema
from extractors.base import IMPORTED
from extractors.dataset.align_clip import (
    NORMALISED,
    AlignConfig,
    Steps,
    WordTimer,
    align_clip,
    missing_sequence,
    visible_steps,
)
from extractors.dataset.columns import select_columns, selected_columns
from extractors.dataset.statistics import RunningStatistics, SpeakerStatistics, TrainingClips
from extractors.store import REFERENCE, FeatureMeta, FeatureReader, ShardWriter, list_type, sequence_type
from extractors.transcripts.table import read_recogniser, read_transcripts, with_transcripts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from extractors.base import FeatureSequence

SCHEMA_VERSION = 2

SEVERAL_LANGUAGES = "mul"
"""Language of a corpus in several languages (ISO 639-2)."""


@dataclass(frozen=True, slots=True)
class AlignSummary:
    """Summary of an align run.

    Attributes:
        clips: split -> clips.
        missing: modality -> clips of the dataset without it.
        hidden: modality -> fraction of its steps that are masked.
        word_times: for each method, the clips and words that it timed and, where true times are known, its error; as
            in dataset.json.
        problems: one row for each clip without any modality.
    """

    clips: Mapping[str, int]
    missing: Mapping[str, int]
    hidden: Mapping[str, float]
    word_times: Mapping[str, Any]
    problems: tuple[Problem, ...]


def dataset_schema(dims: Mapping[str, int]) -> pa.Schema:
    """Return the schema of a split's Parquet files; `dims` maps each modality to its feature dimension."""
    fields = [pa.field(name, pa.string(), nullable=False) for name in ("clip_id", "video_id", "speaker", "text")]
    fields += [pa.field(name, pa.float32()) for name in ("label", *(f"label_{m}" for m in MODALITIES))]
    for m in MODALITIES:
        kinds = {
            "values": sequence_type(dims[m]),
            "start": list_type(pa.float32()),
            "end": list_type(pa.float32()),
            "mask": list_type(pa.bool_()),
        }
        fields += [pa.field(f"{m}_{name}", kind, nullable=False) for name, kind in kinds.items()]
    for name in ("text_token_ids", "text_word_index"):
        fields.append(pa.field(name, list_type(pa.int32()), nullable=False))
    fields.append(pa.field("word_times_method", pa.string(), nullable=False))
    return versioned_schema(fields, SCHEMA_VERSION, {})


def _row(clip: Clip, steps: Mapping[str, Steps], text: FeatureSequence, method: str) -> dict[str, Any]:
    labels = ("label", *(f"label_{m}" for m in MODALITIES))
    row = {name: getattr(clip, name) for name in ("clip_id", "video_id", "text", *labels)}
    row["speaker"] = clip.speaker_or_video
    for m, sequence in steps.items():
        row |= {f"{m}_{name}": getattr(sequence, name) for name in Steps.__dataclass_fields__}
    tokens = {"text_token_ids": text.token_ids, "text_word_index": text.word_index}
    return row | tokens | {"word_times_method": method}


def align(
    manifest_path: Path,
    transcripts_path: Path,
    feature_folders: Mapping[str, Path],
    out: Path,
    config: AlignConfig,
    word_times_path: Path | None = None,
    keep_empty: bool = False,
    progress: Callable[[int], None] | None = None,
) -> AlignSummary:
    """Write the dataset: `out`/dataset.json and `out`/<split>/part-*.parquet, clips in the manifest's order.

    Features of the reference clip, of stores that have them, are copied to `out`/reference/<modality>.safetensors.

    A modality without a row for a clip is missing from that clip. The same inputs give the same bytes.

    Args:
        manifest_path: the corpus's manifest.
        transcripts_path: output of the transcribe stage; words without times are placed in proportion.
        feature_folders: modality -> its feature store, for all three.
        out: folder of the dataset, created or replaced atomically.
        config: mode, masks, columns and normalisation. All-zero steps of imported audio and vision are masked in any
            case.
        word_times_path: true word times (`read_word_table`) to measure the estimated ones by, if the file exists.
        keep_empty: keep clips without any modality instead of dropping them; either way they are listed as problems.
        progress: called with 1 before each clip.

    Raises:
        FileNotFoundError: no manifest, no transcripts, or no features of a modality.
        ValueError: damaged feature store (StoreError), non-finite value, token of a word that is not in the
            transcript, or steps out of time order. The message names file or clip.
    """
    absent = [m for m in MODALITIES if m not in feature_folders]
    if absent:
        raise ValueError(f"no feature folder is given for {', '.join(absent)}; align needs all three modalities")
    transcripts = read_transcripts(transcripts_path)
    manifest = with_transcripts(read_manifest(manifest_path), transcripts)
    readers = {m: _SelectedFeatures(feature_folders[m], m, config) for m in MODALITIES}
    metas = {m: readers[m].meta for m in MODALITIES}
    imported = tuple(m for m in NORMALISED if metas[m].extractor.endswith(IMPORTED))
    statistics = {m: RunningStatistics(len(metas[m].feature_names)) for m in NORMALISED}
    speakers = _speaker_statistics(manifest, readers["audio"], config, imported)
    timer, training = WordTimer(word_times_path), TrainingClips()
    clips = dict.fromkeys(SPLITS, 0)
    missing, total, visible = (dict.fromkeys(MODALITIES, 0) for _ in range(3))  # clips, steps, unmasked steps
    problems: list[Problem] = []
    with atomic_folder(out) as folder, ExitStack() as stack:
        schema = dataset_schema({m: len(metas[m].feature_names) for m in MODALITIES})
        writers = {split: stack.enter_context(ShardWriter(folder / split, schema)) for split in SPLITS}
        for clip in manifest.clips:
            if progress is not None:
                progress(1)
            sequences = _read_clip(clip, readers, speakers, config, imported)
            if not any(map(len, sequences.values())):
                problems.append(_no_modality(clip, readers, keep_empty))
                if not keep_empty:
                    continue
            steps, method = align_clip(transcripts[clip.clip_id], sequences, clip.duration, config, timer, imported)
            if clip.split == "train":
                training.add(clip, sequences)
            writers[clip.split].write(_row(clip, steps, sequences["text"], method))
            clips[clip.split] += 1
            for m, sequence in steps.items():
                missing[m] += not len(sequence.mask)
                total[m] += len(sequence.mask)
                visible[m] += int(sequence.mask.sum())
                if m in statistics and clip.split == "train":
                    statistics[m].update(sequence.values[sequence.mask])
        stack.close()
        facts: dict[str, Any] = {
            "clips": clips,
            "word_times": timer.to_json(),
            "training": training.to_json(),
            "recogniser": read_recogniser(transcripts_path),
        }
        _write_json(folder / "dataset.json", manifest, config, metas, statistics, facts)
        _copy_references(feature_folders, readers, folder / "reference")
    hidden = {m: 1 - visible[m] / total[m] if total[m] else 0.0 for m in MODALITIES}
    return AlignSummary(clips, missing, hidden, timer.to_json(), tuple(problems))


class _SelectedFeatures:
    """A feature store with the columns that the dataset keeps; a clip without a row lacks the modality.

    Attributes:
        meta: of the kept columns.
        columns: their indices; None: all.
    """

    def __init__(self, folder: Path, modality: str, config: AlignConfig) -> None:
        self._reader = FeatureReader(folder, modality)
        meta = self._reader.meta
        self.columns = selected_columns(meta, getattr(config.columns, modality)) if modality in NORMALISED else None
        kept = meta.feature_names if self.columns is None else tuple(meta.feature_names[i] for i in self.columns)
        self.meta = replace(meta, feature_names=kept)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._reader

    def __getitem__(self, clip_id: str) -> FeatureSequence:
        if clip_id not in self._reader:
            return missing_sequence(len(self.meta.feature_names))
        return select_columns(self._reader[clip_id], self.columns)


def _speaker_statistics(
    manifest: Manifest, audio: _SelectedFeatures, config: AlignConfig, imported: Collection[str]
) -> SpeakerStatistics | None:
    """Return the statistics of the speakers' audio; None if it is not normalised."""
    if config.normalise_audio == "none":
        return None
    speakers = SpeakerStatistics(len(audio.meta.feature_names))
    for clip in manifest.clips:
        sequence = audio[clip.clip_id]
        speakers.add(clip, sequence, visible_steps("audio", sequence, config, imported))
    return speakers


def _read_clip(
    clip: Clip,
    readers: Mapping[str, _SelectedFeatures],
    speakers: SpeakerStatistics | None,
    config: AlignConfig,
    imported: Collection[str],
) -> dict[str, FeatureSequence]:
    """Return the clip's features by modality, T = 0 for one that it lacks."""
    sequences = {m: reader[clip.clip_id] for m, reader in readers.items()}
    if speakers is not None:
        visible = visible_steps("audio", sequences["audio"], config, imported)
        sequences["audio"] = speakers.standardise(clip, sequences["audio"], visible)
    return sequences


def _copy_references(
    feature_folders: Mapping[str, Path], readers: Mapping[str, _SelectedFeatures], folder: Path
) -> None:
    for m, reader in readers.items():
        if not (reference := Path(feature_folders[m]) / REFERENCE).is_file():
            continue
        folder.mkdir(exist_ok=True)
        copy = folder / f"{m}{reference.suffix}"
        if reader.columns is None:
            shutil.copyfile(reference, copy)
        else:
            content = load_file(reference)
            save_file(content | {"values": np.ascontiguousarray(content["values"][:, reader.columns])}, copy)


def _no_modality(clip: Clip, readers: Mapping[str, _SelectedFeatures], keep: bool) -> Problem:
    states = ", ".join(f"{m} {'empty' if clip.clip_id in r else 'not extracted'}" for m, r in readers.items())
    outcome = "stays in the dataset, empty" if keep else "is not in the dataset"
    message = f"no modality is left ({states}): the clip {outcome}; see its problems in the extract stage"
    return Problem(clip.clip_id, "align", "", "NoModality", message)


def _write_json(
    path: Path,
    manifest: Manifest,
    config: AlignConfig,
    metas: Mapping[str, FeatureMeta],
    statistics: Mapping[str, RunningStatistics],
    facts: Mapping[str, Any],
) -> None:
    languages = {clip.language for clip in manifest.clips}
    content = {
        "schema_version": SCHEMA_VERSION,
        "corpus": manifest.corpus,
        "generated": manifest.generated,
        "language": languages.pop() if len(languages) == 1 else SEVERAL_LANGUAGES,
        "label_range": list(manifest.label_range),
        **config.to_json(),
        "modalities": {m: _describe(meta) for m, meta in metas.items()},
        "statistics": {m: running.to_json() for m, running in statistics.items()},
        **facts,
    }
    with atomic_file(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _describe(meta: FeatureMeta) -> dict[str, Any]:
    entry = asdict(meta)
    entry.pop("modality")
    return {"dim": len(meta.feature_names), **entry}
