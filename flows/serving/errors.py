"""Why the server refuses a request: every reason with its HTTP status, as the page, the schema and the docs name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import HTTPException


@dataclass(frozen=True, slots=True)
class Reason:
    """HTTP status, and what the reason stands for."""

    status: int
    meaning: str


REASONS: Mapping[str, Reason] = {
    "bad_request": Reason(400, "the request is not one that can be read, such as a form that is cut off"),
    "no_token": Reason(401, "the server asks for a token, and none was sent, or another"),
    "foreign_host": Reason(403, "the request was meant for another host's name than this server's"),
    "foreign_origin": Reason(403, "the request comes from a page of another site"),
    "not_found": Reason(404, "there is no such address"),
    "method_not_allowed": Reason(405, "the address knows no such method"),
    "upload_timeout": Reason(408, "the upload took too long"),
    "too_large": Reason(413, "the upload has more bytes than the server takes"),
    "not_multipart": Reason(415, "the request is not multipart/form-data"),
    "not_media": Reason(415, "the file's content is neither video nor sound that can be opened"),
    "invalid": Reason(422, "the file or an option is missing, of the wrong kind, or out of its range"),
    "too_long": Reason(422, "the file lasts longer than the server takes"),
    "too_many_pixels": Reason(422, "the picture is larger than the server takes"),
    "not_scorable": Reason(422, "the file is damaged, or has nothing in it to go by"),
    "clip_timeout": Reason(422, "scoring took longer than the server's limit"),
    "too_much_memory": Reason(422, "scoring needed more memory than the server's limit"),
    "crashed": Reason(422, "the file brought down the process that read it"),
    "internal": Reason(500, "a mistake in the server, which its log tells of"),
    "busy": Reason(503, "as many uploads wait as may; Retry-After says when to try again"),
    "no_room": Reason(503, "the server's disk has no room for the upload"),
    "stopping": Reason(503, "the server is being stopped"),
    "no_worker": Reason(503, "no worker process can be started; the server's log says why"),
}


class Refused(HTTPException):
    """A request is not answered; `error` is one of `REASONS`, `message` says what was found and what to do."""

    def __init__(self, error: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(REASONS[error].status, message, headers)
        self.error = error

    @property
    def message(self) -> str:
        """For people."""
        return str(self.detail)

    def to_dict(self) -> dict[str, str]:
        """What is answered."""
        return {"error": self.error, "message": self.message}


def reasons_of(status: int) -> dict[str, str]:
    """Those of an HTTP status, with their meanings."""
    return {error: reason.meaning for error, reason in REASONS.items() if reason.status == status}
