"""API errors: stable codes with their HTTP statuses and meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import HTTPException


@dataclass(frozen=True, slots=True)
class Reason:
    """HTTP status of an error code, and its meaning for the OpenAPI schema."""

    status: int
    meaning: str


REASONS: Mapping[str, Reason] = {
    "bad_request": Reason(400, "the request cannot be parsed, for example because its form is truncated"),
    "no_token": Reason(401, "the server requires a token, and the request has none or a wrong one"),
    "foreign_host": Reason(403, "the request's Host header does not name this server"),
    "foreign_origin": Reason(403, "the request comes from another site's page"),
    "not_found": Reason(404, "there is no such path"),
    "method_not_allowed": Reason(405, "the path does not support this method"),
    "upload_timeout": Reason(408, "the upload took too long"),
    "too_large": Reason(413, "the upload exceeds the server's size limit"),
    "not_multipart": Reason(415, "the request is not multipart/form-data"),
    "not_media": Reason(415, "the file's content is neither video nor audio that can be opened"),
    "invalid": Reason(422, "the file or an option is missing, of the wrong type, or out of range"),
    "too_long": Reason(422, "the clip exceeds the server's duration limit"),
    "too_many_pixels": Reason(422, "the frames exceed the server's size limit"),
    "not_scorable": Reason(422, "the file is damaged, or has no modality that can be scored"),
    "clip_timeout": Reason(422, "scoring exceeded the server's time limit"),
    "too_much_memory": Reason(422, "scoring exceeded the server's memory limit"),
    "crashed": Reason(422, "the file crashed the process that read it"),
    "internal": Reason(500, "an internal error; the server's log has the details"),
    "busy": Reason(503, "the queue is full, or too many requests are in progress; Retry-After says when to try again"),
    "no_room": Reason(503, "the server's disk has no room for the upload"),
    "stopping": Reason(503, "the server is shutting down"),
    "no_worker": Reason(503, "no worker process can be started; the server's log says why"),
}
"""Reasons by error code."""


class ApiError(HTTPException):
    """An error response.

    Args:
        error: A key of `REASONS`, which determines the HTTP status.
        message: What was found and what to do, for people.
        headers: Response headers.
    """

    def __init__(self, error: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(REASONS[error].status, message, headers)
        self.error = error

    @property
    def message(self) -> str:
        """Description for people."""
        return str(self.detail)

    def to_dict(self) -> dict[str, str]:
        """Return the response body."""
        return {"error": self.error, "message": self.message}


def stopping_error() -> ApiError:
    """Return the error of requests during the server's shutdown."""
    return ApiError("stopping", "the server is being stopped")
