"""What changes in a corpus of one's own, or in the settings, is extracted again, and nothing else."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

import pytest

from extractors.store import FeatureReader
from tests.support.models import write_wav2vec2
from tests.support.project import CLIPS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

AFTER_AUDIO = ["align", "evaluate", "extract@audio", "train"]


def results(folder: Path) -> dict[Path, int]:
    """Clips' results in scratch, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (folder / ".dashfusion/scratch").rglob("*.npz")}


def made_since(before: dict[Path, int], folder: Path) -> dict[str, int]:
    """New results by modality; those of before must be untouched."""
    after = results(folder)
    assert before.items() <= after.items(), "a finished clip was made again"
    scratch = folder / ".dashfusion/scratch"  # then a folder a signature, which begins with the modality
    new = [path.relative_to(scratch).parts[0].partition(".")[0] for path in after.keys() - before.keys()]
    return {modality: new.count(modality) for modality in ("text", "audio", "vision")}


def features(folder: Path, modality: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data/features" / modality).iterdir()}


@pytest.fixture(scope="module")
def extracted(corpus_project) -> Path:
    project, _ = corpus_project
    project.repro()
    assert made_since({}, project.folder) == {"text": CLIPS, "audio": CLIPS, "vision": CLIPS}
    return project.folder


def test_a_replaced_video_alone_is_extracted_again_and_its_text_is_not(corpus_project, extracted):
    project, corpus = corpus_project
    before, text = results(extracted), features(extracted, "text")
    clip = sorted((corpus / "Raw").rglob("*.mp4"))[5]
    clip.write_bytes(clip.read_bytes() + struct.pack(">I4sI", 12, b"free", 1))  # as long as it was, another file
    ran = project.repro()
    assert {"prepare", "extract@audio", "extract@vision"} <= set(ran)
    assert made_since(before, extracted) == {"text": 0, "audio": 1, "vision": 1}
    assert features(extracted, "text") == text


def test_a_forced_extraction_extracts_every_clip_anew_and_forces_nothing_else(corpus_project, extracted):
    project, _ = corpus_project
    project.repro()
    before, audio = results(extracted), features(extracted, "audio")
    manifest = (extracted / "data/manifest.parquet").stat().st_mtime_ns
    command = [sys.executable, "-m", "flows.cli", "extract", "audio", "--force"]
    done = project.run(*command, DASHFUSION_SERVER="off")
    assert done.returncode == 0, done.stdout + done.stderr
    after = results(extracted)
    assert before.keys() == after.keys()
    again = [path for path in before if after[path] != before[path]]
    assert len(again) == CLIPS and all("audio." in str(path) for path in again)
    assert features(extracted, "audio") == audio
    assert (extracted / "data/manifest.parquet").stat().st_mtime_ns == manifest
    assert [line.split()[:2] for line in done.stdout.splitlines()[-2:]] == [
        ["prepare", "cached"],
        ["extract@audio", "run"],
    ]
    assert project.repro() == [], "the same features need no new dataset"


def test_a_changed_audio_option_runs_audio_and_what_hangs_on_it(corpus_project, extracted):
    project, _ = corpus_project
    project.repro()
    before = results(extracted)
    assert sorted(project.experiment("extract.audio.options.hop_seconds=0.1")) == AFTER_AUDIO
    assert made_since(before, extracted) == {"text": 0, "audio": CLIPS, "vision": 0}
    assert project.experiment("extract.audio.options.hop_seconds=0.1") == []


def test_another_audio_extractor_is_swapped_in_by_parameters_alone(corpus_project, extracted, tmp_path):
    """`~` takes the old extractor's options out: a block that is only assigned to would be merged with them."""
    write_wav2vec2(tmp_path / "model")
    project, _ = corpus_project
    project.repro()
    before = results(extracted)
    ran = project.experiment(
        "extract.audio.extractor=audio.transformer",
        "~extract.audio.options",
        f"+extract.audio.options={{model:{tmp_path / 'model'}}}",
    )
    assert sorted(ran) == AFTER_AUDIO
    assert made_since(before, extracted) == {"text": 0, "audio": CLIPS, "vision": 0}
    reader = FeatureReader(extracted / "data/features/audio", "audio")
    assert reader.meta.extractor == "audio.transformer" and len(reader.meta.feature_names) == 16
