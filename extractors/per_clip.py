"""Running an extractor over clips one at a time, so that a clip that fails never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from extractors.base import ExtractionError, MissingModality, Source
from extractors.media import MediaError, MissingStream, read_audio_blocks

Result = TypeVar("Result")
"""A feature sequence, or what becomes one."""


def extract_each(
    sources: Iterable[Source], extract_media: Callable[[Path], Result]
) -> Iterator[Result | ExtractionError]:
    """`extract_media` of each source's media file; its media and extraction errors become results.

    No media file, or one without the stream in question, is a missing modality. Any other exception is a
    mistake in a program, not in a clip, and passes through.
    """
    for source in sources:
        result: Result | ExtractionError
        try:
            if source.media is None:
                raise MissingModality(f"{source.clip_id}: no media file")
            result = extract_media(source.media)
        except MissingStream as error:
            result = MissingModality(str(error))
        except MediaError as error:
            result = ExtractionError(str(error))
            result.__cause__ = error
        except ExtractionError as error:
            result = error
        yield result


def read_sound(media: Path, sample_rate: int) -> np.ndarray:
    """`extractors.media.read_audio`, of a clip that can be measured.

    Raises:
        ExtractionError: a sample is NaN or infinite.
        MediaError: as `read_audio`.
    """
    return np.concatenate(list(read_sound_blocks(media, sample_rate)))


def read_sound_blocks(media: Path, sample_rate: int) -> Iterator[np.ndarray]:
    """What `read_sound` gives, in blocks of about a second.

    Raises:
        ExtractionError, MediaError: as `read_sound`; possibly after some blocks.
    """
    for samples in read_audio_blocks(media, sample_rate):
        if not np.isfinite(samples).all():
            raise ExtractionError(f"{media}: its sound holds NaN or infinite samples; convert it again")
        yield samples


def cut_overlapping(blocks: Iterable[np.ndarray], longest: int, context: int) -> Iterator[tuple[np.ndarray, slice]]:
    """Cut a clip's samples, given in blocks, into stretches of `longest` that see `context` samples of each other.

    Gives each stretch and where in it the part lies that no other stretch gives; in the last it is longer than
    `context`. A clip of up to `longest` samples is one stretch. Only a stretch is held at a time.
    """
    held: list[np.ndarray] = []
    count = before = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count > longest:
            samples = np.concatenate(held)
            yield samples[:longest], slice(before, longest - context)
            held, before = [samples[longest - 2 * context :]], context
            count -= longest - 2 * context
    yield np.concatenate(held), slice(before, count)
