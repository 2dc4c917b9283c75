"""Prediction inputs: the default checkpoint, media files and their transcripts."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from corpora.readers.table import MEDIA_SUFFIXES
from extractors.transcripts.subtitles import find_transcript
from flows.display.console import valid_unicode
from model.checkpoint.description import DESCRIPTION
from model.prediction.protocol import Video

PARAMS = Path("params.yaml")
"""Parameters of the project in the working directory."""


def default_model(params: Path = PARAMS) -> Path:
    """Return the best checkpoint of the first seed in the parameters.

    Raises:
        FileNotFoundError: There is no parameters file.
        ValueError: The parameters do not name the models folder or a seed.
    """
    if not params.is_file():
        raise FileNotFoundError(f"no {params} in {Path.cwd()}: name a checkpoint with --model, or run from the project")
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    try:
        return Path(values["paths"]["models"]) / f"seed-{values['train']['seeds'][0]}" / "best"
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{params} names no paths.models or train.seeds; name a checkpoint with --model") from error


def project_model() -> Path | None:
    """Return `default_model` if there is one in this folder, else None."""
    folder = default_model() if PARAMS.is_file() else None
    return folder if folder and (folder / DESCRIPTION).is_file() else None


def find_media(paths: Iterable[str]) -> list[Path]:
    """Expand files, folders (recursively, for media suffixes) and patterns such as `talks/**/*.mp4`.

    Returns:
        Each file once, in the order of `paths`; files of a folder or pattern are sorted. A named file is included
        whatever its suffix, and even if it does not exist, so that it is reported later; so is what a folder or pattern
        has that cannot be examined, such as a link to itself.

    Raises:
        ValueError: There is no file at all.
    """
    media: list[Path] = []
    for name in paths:
        path = Path(os.path.expanduser(name))  # noqa: PTH111  (Path.expanduser rejects files such as ~a.mp4)
        if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises an error for what cannot be examined)
            files = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in MEDIA_SUFFIXES and _may_be_file(p))
            media += [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif glob.has_magic(name) and not os.path.lexists(path):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  (Path.glob rejects absolute patterns)
            media += [Path(match) for match in matches if _may_be_file(Path(match))]
        else:
            media.append(path)
    if not media:
        raise ValueError(f"no media file in {', '.join(map(str, paths))}; suffixes: {', '.join(MEDIA_SUFFIXES)}")
    return list(dict.fromkeys(media))


def _may_be_file(path: Path) -> bool:
    """Return whether the path is a file, or cannot be examined: then reading it reports the reason."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def find_sidecar(folder: Path, media: Path) -> Path | None:
    """Return the transcript in the folder for a media file, see `find_transcript`, or None."""
    try:
        return find_transcript(folder, media)
    except OSError:  # the media file's name is so long that none can be made from it
        return None


def to_videos(media: Sequence[Path], text: str | None, transcript: Path | None) -> list[Video]:
    """Pair media files with their transcripts.

    Args:
        media: Media files.
        text: Transcript of a single file.
        transcript: Transcript file of a single file, or a folder of transcripts with the media files' names.

    Raises:
        ValueError: Both `text` and `transcript` are given, or one transcript is given for several files.
        FileNotFoundError: `transcript` does not exist.
    """
    if text is not None and transcript is not None:
        raise ValueError("--text and --transcript are alternatives: give only one of them")
    if transcript is not None:
        if not transcript.exists():
            raise FileNotFoundError(f"{transcript}: no such transcript; check the path")
        if transcript.is_dir():
            return [Video(path, transcript=find_sidecar(transcript, path)) for path in media]
    if len(media) > 1 and (text is not None or transcript is not None):
        option = "--text" if text is not None else "--transcript"
        raise ValueError(
            f"{option} is for a single file, and {len(media)} are given; "
            "give --transcript a folder of .srt, .vtt or .txt files with their names"
        )
    return [Video(path, text and valid_unicode(text), transcript) for path in media]
