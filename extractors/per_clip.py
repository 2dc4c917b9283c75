"""Running an extractor over clips one at a time, so that a clip that fails never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from extractors.base import ExtractionError, FeatureSequence, MissingModality, Source
from extractors.media import MediaError, MissingStream, read_audio


def extract_each(
    sources: Iterable[Source], extract_media: Callable[[Path], FeatureSequence]
) -> Iterator[FeatureSequence | ExtractionError]:
    """`extract_media` of each source's media file; its media and extraction errors become results.

    No media file, or one without the stream in question, is a missing modality. Any other exception is a
    mistake in a program, not in a clip, and passes through.
    """
    for source in sources:
        result: FeatureSequence | ExtractionError
        try:
            if source.media is None:
                raise MissingModality(f"{source.clip_id}: no media file")
            result = extract_media(source.media)
        except MissingStream as error:
            result = MissingModality(str(error))
        except MediaError as error:
            result = ExtractionError(str(error))
        except ExtractionError as error:
            result = error
        yield result


def read_sound(media: Path, sample_rate: int) -> np.ndarray:
    """`extractors.media.read_audio`, of a clip that can be measured.

    Raises:
        ExtractionError: a sample is NaN or infinite.
        MediaError: as `read_audio`.
    """
    samples = read_audio(media, sample_rate)
    if not np.isfinite(samples).all():
        raise ExtractionError(f"{media}: its sound holds NaN or infinite samples; convert it again")
    return samples
