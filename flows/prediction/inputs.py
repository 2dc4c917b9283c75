"""Prediction inputs: the default checkpoint, media files and their transcripts."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from model.prediction.protocol import Video


def default_model(params: Path = Path("params.yaml")) -> Path:
    """The checkpoint of the first seed that the parameters name.

    Raises:
        FileNotFoundError: no parameters here; the message says the way out.
        ValueError: they name no models or no seed.
    """
    import yaml

    if not params.is_file():
        raise FileNotFoundError(f"no {params} in {Path.cwd()}: name a checkpoint with --model, or run from the project")
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    try:
        return Path(values["paths"]["models"]) / f"seed-{values['train']['seeds'][0]}" / "best"
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{params} names no paths.models or train.seeds; name a checkpoint with --model") from error


def find_media(paths: Iterable[str]) -> list[Path]:
    """Media files that are meant by files, folders (with all below them) and patterns such as `talks/**/*.mp4`.

    Each file once, in the order of the paths, a folder's by name. A file is taken whatever it is called, and what does
    not exist stays in the list, so that it is told of.

    Raises:
        ValueError: nothing is there at all.
    """
    from corpora.readers.raw import MEDIA_SUFFIXES

    found: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in MEDIA_SUFFIXES and p.is_file())
            found += [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif not path.exists() and glob.has_magic(name):
            matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
            found += [match for match in matches if match.is_file()]
        else:
            found.append(path)
    if not found:
        raise ValueError(f"no media file in {', '.join(map(str, paths))}; it can hold {', '.join(MEDIA_SUFFIXES)}")
    return list(dict.fromkeys(found))


def to_videos(media: Sequence[Path], text: str | None, transcript: Path | None) -> list[Video]:
    """The files with what is said in them.

    Args:
        text: of the only file.
        transcript: of the only file, or a folder of transcripts with the files' names.

    Raises:
        ValueError: a text or a transcript for several files, or both.
        FileNotFoundError: no such transcript.
    """
    from extractors.transcripts.subtitles import find_transcript
    from model.prediction.protocol import Video

    if text is not None and transcript is not None:
        raise ValueError("--text and --transcript say the same thing: give one of them")
    if transcript is not None and not transcript.exists():
        raise FileNotFoundError(f"{transcript}: no such transcript; check the path")
    folder = transcript is not None and transcript.is_dir()
    if len(media) > 1 and (text is not None or (transcript is not None and not folder)):
        option = "--text" if text is not None else "--transcript"
        raise ValueError(
            f"{option} is of one file, and {len(media)} are given; "
            "give --transcript a folder of .srt, .vtt or .txt files with their names"
        )
    if folder:
        return [Video(path, transcript=find_transcript(transcript, path)) for path in media]
    return [Video(path, text, transcript) for path in media]
