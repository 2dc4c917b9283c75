"""The shared consoles, which print control characters of file names and texts as escapes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_SURROGATES = re.compile("[\ud800-\udfff]")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, controls of the text direction, and surrogates."""


def printable(text: str) -> str:
    r"""Return text that is safe to print: control characters and undecodable bytes become escapes such as `\x1b`."""
    return _UNSAFE.sub(_escape, text)


def valid_unicode(text: str) -> str:
    r"""Return text that UTF-8 can encode: bytes of a file name that are not UTF-8 become escapes such as `\xe9`."""
    return _SURROGATES.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's surrogate for a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def printable_json(value: Any) -> str:
    """Return indented JSON that is safe to print: unsafe characters become JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class SafeConsole(Console):
    """A console that prints unsafe characters as escapes, in whatever is rendered."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as `Console` does; segments with rich's own control codes are left as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = SafeConsole(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
error_console = SafeConsole(highlight=False, soft_wrap=True, stderr=True)
