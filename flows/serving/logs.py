"""The server's log on standard output: one line per event, as text or as JSON.

Names of uploads come from clients and may contain line breaks and control characters, which reach the log in messages
and tracebacks. They are escaped, so that no request can forge a line.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from flows.display.console import printable

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is being handled; empty outside of requests."""

_LINE_BREAK = re.compile(r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class LogFormat(StrEnum):
    """Format of the log."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Event:
    """What a log record is about, for programs.

    Attributes:
        name: Name of the event, such as `request`.
        fields: Further keys of its JSON object.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_extra(self) -> dict[str, Any]:
        """Return the argument `extra` of a logging call."""
        return {"serving_event": self}


MESSAGE = Event("message")
"""Event of records that name none."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, request_id in a request, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; the output is ASCII, in which JSON escapes every line break."""
        event: Event = getattr(record, "serving_event", MESSAGE)
        entry: dict[str, Any] = {
            "time": _utc(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        entry |= event.fields
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """A line for people. Lines of a traceback are indented, and so are line breaks in its messages."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record with control characters as escapes."""
        request_id = REQUEST_ID.get()
        line = f"{_utc(record):%Y-%m-%d %H:%M:%SZ} {record.levelname.lower():<7} {escape(record.getMessage())}"
        lines = [f"{line} [{request_id}]" if request_id else line]
        if record.exc_info:
            lines += [f"  {printable(part)}" for part in _LINE_BREAK.split(self.formatException(record.exc_info))]
        return "\n".join(lines)


def escape(text: str) -> str:
    """Return text on one line, with line breaks and control characters as escapes."""
    return printable(_LINE_BREAK.sub(lambda match: match[0].encode("unicode_escape").decode(), text))


def configure_logs(log_format: LogFormat) -> None:
    """Send the log of this process to standard output, from INFO for the server and from WARNING for libraries."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("flows.serving").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of malformed forms, which get 400
    logging.captureWarnings(True)


def _utc(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)
