"""A client of OpenAI-compatible chat endpoints, which trusts no answer.

Requests go to the named host only: redirects are not followed. Answers are limited in size and time. The key is sent in
one header, and removed from everything that is kept or shown.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

MAX_RESPONSE = 1 << 20
"""Bytes of a response; an answer has some hundred."""

MAX_WAIT = 60.0
"""Seconds that an endpoint may ask to wait before the next try."""

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Status codes that may be over at the next try."""

MAX_EXCERPT = 200


class EndpointError(Exception):
    """The endpoint gave no answer on one clip; another try, or another clip, may succeed."""


class EndpointRefusedError(ValueError):
    """The endpoint will answer no request like this: wrong address, key or model. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came.

    Attributes:
        content: Text of the answer.
        refusal: Whether the endpoint marked it as a refusal.
        finish_reason: Why the model stopped; empty if unknown.
        model: Model that answered; empty if unknown.
        prompt_tokens, completion_tokens: Counted tokens; None if not counted.
    """

    content: str
    refusal: bool
    finish_reason: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


class ChatClient:
    """Asks one endpoint. May be used from several threads.

    Args:
        url: Base URL, such as http://localhost:11434/v1; `/chat/completions` is added.
        key: API key; empty: none is sent.
        timeout: Seconds for one request, from connecting to the last byte.
        tries: Requests for one answer before it fails.
        pause: Seconds before the second try; doubled for each further one.
        wait: Waits for a number of seconds.

    Raises:
        ValueError: Not an HTTP address, or one that holds a password, or a key that would be sent unencrypted.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        timeout: float = 60.0,
        tries: int = 5,
        pause: float = 1.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = checked_url(url, with_key=bool(key))
        self._key, self._timeout, self._tries, self._pause, self._wait = key, timeout, tries, pause, wait
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._certificates = httpx.create_ssl_context()  # reading them takes longer than an answer

    def ask(self, request: dict[str, Any]) -> Reply:
        """Send a chat completion request and return the answer.

        Raises:
            EndpointError: No usable response after all tries.
            EndpointRefusedError: The endpoint refuses such requests.
        """
        pause = self._pause
        for attempt in range(1, self._tries + 1):
            try:
                return self._reply(self._post(request))
            except _TryAgainError as error:
                if attempt == self._tries:
                    raise EndpointError(f"{error} ({attempt} {'try' if attempt == 1 else 'tries'})") from error
                self._wait(min(max(error.after, pause), MAX_WAIT))
                pause *= 2
        raise AssertionError("unreachable: the last try returns or raises")

    def _post(self, request: dict[str, Any]) -> bytes:
        """Return the body of a successful response."""
        try:
            response, body = asyncio.run(self._exchange(request))
        except (httpx.TimeoutException, TimeoutError) as error:
            raise _TryAgainError(f"no complete response within {self._timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _TryAgainError(self._clean(f"{type(error).__name__}: {error}")) from error
        code = response.status_code
        if code in RETRIED:
            raise _TryAgainError(f"status {code}", _retry_after(response))
        if 300 <= code < 400:
            raise EndpointRefusedError(
                f"{self.url} redirects (status {code}), which is not followed: transcripts and key go to the named "
                "host only; name the final address"
            )
        if code != 200:
            hint = {401: "check the API key", 403: "check the API key", 404: "check the URL and --model"}.get(code)
            raise EndpointRefusedError(
                f"{self.url} answers status {code}: {self._clean(body.decode(errors='replace'))!r}; "
                f"{hint or 'the endpoint does not accept the request'}"
            )
        return body

    async def _exchange(self, request: dict[str, Any]) -> tuple[httpx.Response, bytes]:
        """Return the response and its body.

        Asynchronous for the time limit of the whole exchange: httpx limits each read, and an endpoint that sends a byte
        now and then would never end.
        """
        client = httpx.AsyncClient(
            headers=self._headers, timeout=self._timeout, follow_redirects=False, verify=self._certificates
        )
        body = bytearray()
        address = f"{self.url}/chat/completions"
        async with asyncio.timeout(self._timeout), client, client.stream("POST", address, json=request) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise EndpointError("the response is compressed, which was not asked for")
            async for chunk in response.aiter_raw(65_536):
                body += chunk
                if len(body) > MAX_RESPONSE:
                    raise EndpointError(f"the response is larger than {MAX_RESPONSE >> 20} MiB")
        return response, bytes(body)

    def _reply(self, body: bytes) -> Reply:
        try:
            content = json.loads(body)
            choice = content["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            usage = content.get("usage") or {}
            prompt_tokens, completion_tokens = (
                _count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion")
            )
            finish, model = choice.get("finish_reason"), content.get("model")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            excerpt = self._clean(body[: 4 * MAX_EXCERPT].decode(errors="replace"))
            raise EndpointError(f"no chat completion but {excerpt!r}") from error
        if not isinstance(text, str):
            text = refusal if isinstance(refusal, str) else ""
        text = text.replace(self._key, "***") if self._key else text
        finish, model = (self._clean(name) if isinstance(name, str) else "" for name in (finish, model))
        return Reply(text, bool(refusal), finish, model, prompt_tokens, completion_tokens)

    def _clean(self, text: str) -> str:
        """Return a text of the endpoint as it may be shown: on one line, short, and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        printable = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return printable if len(printable) <= MAX_EXCERPT else f"{printable[:MAX_EXCERPT]}..."


class _TryAgainError(Exception):
    """A failure that may be over at the next try, which is due after some seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def checked_url(url: str, with_key: bool = False) -> str:
    """Return the base URL without a slash at its end.

    Raises:
        ValueError: As `ChatClient`.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"not a URL ({error}); name one such as http://localhost:11434/v1") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL holds a user name or password, which would be kept; give a key by its variable")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: name the base URL of a chat endpoint, such as http://localhost:11434/v1")
    if with_key and parts.scheme == "http" and not _is_loopback(host):
        raise ValueError(f"{url}: the API key would be sent unencrypted; use https, or no key")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the endpoint asks to wait; 0 if it names none, or a date."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() and len(value) < 9 else 0.0


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None
