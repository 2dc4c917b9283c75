"""The line that `dashfusion doctor FOLDER` prints: pasted into a shell, it makes `prepare` read that corpus."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from pathlib import Path

import pytest

from corpora.detection import DetectedCorpus
from flows.cli.doctor import _inspect
from flows.cli.use_line import use_line
from flows.config import presets
from flows.config.checks import require_usable
from flows.config.params import load_params
from flows.prepare import import_corpus, read_corpus
from tests.support.features import write_csd_corpus, write_mmsa_pickle

NAMES = "abcdef"
SCORES = (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)


def pasted(line: str) -> list[str]:
    """The words that a shell makes of a line, after `dashfusion use`."""
    command = ["sh", "-c", line.replace("dashfusion use", r"printf '%s\0'", 1)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]


def table(separator: str, *header: str, splits: bool = False) -> str:
    """A table of six clips: file, score with a decimal comma, text, speaker, and split."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(header)
    for i, name in enumerate(NAMES):
        row = [name, str(SCORES[i]).replace(".", ","), "那部电影很好。 So good; really, it is.", f"s{i // 2}"]
        writer.writerow([*row, ["Training", "dev", "TEST"][i // 2]] if splits else row)
    return out.getvalue()


CORPORA = {
    "plain": ("ratings.csv", "utf-8", table(",", "file", "score", "text", "speaker")),
    "own splits": ("x.tsv", "gb18030", table("\t", "filename", "sentiment", "sentence", "spk", "set", splits=True)),
    'it\'s $HOME "here"': ("label.csv", "utf-16", table(";", "null", "(-3..3) = $x", "a `b` \\", "who?")),
    "\\ä b": ("label.csv", "utf-8", "'é'\n" + "\n".join(NAMES) + "\n"),
}


@pytest.mark.parametrize("name", CORPORA)
def test_pasted_it_makes_prepare_read_the_corpus_as_the_doctor_did(project, demo, name):
    file, encoding, content = CORPORA[name]
    root = project.parent / "corpora" / name
    (root / "videos").mkdir(parents=True)
    for clip in NAMES:
        shutil.copy(demo / "Raw/speaker_000/0001.mp4", root / f"videos/{clip}.mp4")
    (root / file).write_bytes(content.encode(encoding))
    detected, corpus = _inspect(root)
    presets.apply(pasted(use_line(detected)))
    params = load_params().prepare
    manifest, problems = read_corpus.fn(params, Path(params.root))
    assert problems == [] == list(corpus.problems)
    assert manifest.clips == corpus.manifest.clips and len(manifest.clips) == 6
    assert params.corpus == name
    assert [clip.label for clip in manifest.clips] == ([None] * 6 if "\\" in name else list(SCORES))
    assert len({clip.split for clip in manifest.clips}) == (1 if "\\" in name else 3)


@pytest.mark.parametrize("named", ["", "/my ratings.csv"])
def test_a_table_among_others_is_named(project, demo, named):
    root = project / "corpus"
    (root / "videos").mkdir(parents=True)
    for clip in NAMES:
        shutil.copy(demo / "Raw/speaker_000/0001.mp4", root / f"videos/{clip}.mp4")
    (root / "my ratings.csv").write_text(table(",", "file", "score", "text", "speaker"))
    (root / "speakers.csv").write_text("speaker,age\ns0,30\n")
    detected, corpus = _inspect(Path(f"{root}{named}"))
    presets.apply(pasted(use_line(detected)), check=require_usable)
    params = load_params().prepare
    assert params.table == "my ratings.csv"
    manifest, problems = read_corpus.fn(params, Path(params.root))
    assert problems == [] and manifest.clips == corpus.manifest.clips and len(manifest.clips) == 6


@pytest.mark.parametrize("file", ["mine.pkl", "csd/labels.csd"])
def test_a_file_of_features_is_selected_by_its_line(project, file):
    path = project / file
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".pkl":
        write_mmsa_pickle(path)
    else:
        pytest.importorskip("h5py")
        write_csd_corpus(path.parent)
    detected, corpus = _inspect(path)
    presets.apply(pasted(use_line(detected)))
    params = load_params().prepare
    assert (params.layout, params.root) == (detected.layout, "mine.pkl" if detected.layout == "mmsa_pickle" else "csd")
    manifest, _ = import_corpus.fn(params, project / "out")
    assert [clip.clip_id for clip in manifest.clips] == [clip.clip_id for clip in corpus.manifest.clips]
    assert len(manifest.clips) == 12


@pytest.mark.parametrize("name", ["${oc.env:HOME}", "new\nline", "\x1b[2J", "\u202eright"])
def test_a_name_that_no_parameter_can_hold_is_refused(name):
    with pytest.raises(ValueError, match="rename this first"):
        use_line(DetectedCorpus("folder", Path("videos"), columns={"media": name}))


def test_a_folder_of_the_project_is_named_from_there_and_what_is_simple_is_not_quoted(project):
    (project / "data/my corpus").mkdir(parents=True)
    corpus = DetectedCorpus("mmsa", Path("data/my corpus"), label_range=(-1, 1), language="zh", encoding="gb18030")
    assert use_line(corpus) == (
        "dashfusion use corpus=mmsa \"prepare.root='data/my corpus'\" \"prepare.corpus='my corpus'\" "
        "prepare.encoding=gb18030 'prepare.label_range=[-1,1]' prepare.language=zh text=characters"
    )
