"""The server's application: the page, `POST /predict`, `GET /model`, `GET /health`, and errors of one shape."""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from flows.display import COLOURS
from flows.prediction.score import document
from flows.serving.errors import Refused
from flows.serving.schema import Error, Health, ModelFacts, Prediction, error_answers
from flows.serving.security import Guard, Rules, answer
from flows.serving.worker import Upload
from flows.serving.worker_pool import Scorers, model_facts

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_TEXT = 20_000
LONGEST_NAME = 200
FIELD_BYTES = 4 * LONGEST_TEXT + 1024

HTTP_REASONS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
"""Reasons of the statuses that FastAPI gives by itself."""

DESCRIPTION = """Sentiment of a clip, by a DashFusion checkpoint: score, interval, the modalities that it is from, and
a time line. Nothing is kept of what is uploaded. Every answer but a success is `{"error": ..., "message": ...}`."""


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class OneFile(Request):
    """A form of one file and a few short fields: Starlette's own limits would hold a gigabyte in memory."""

    async def form(self, **_: Any) -> FormData:
        try:
            return await super().form(max_files=1, max_fields=8, max_part_size=FIELD_BYTES)
        except OSError as error:
            raise no_room(error) from error


class PlacedRoute(APIRoute):
    """A route whose requests take a place in the line before their body is read."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        handle = super().get_route_handler()

        async def placed(request: Request) -> Response:
            if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                raise Refused("not_multipart", "send the clip as multipart/form-data, in the field `file`")
            with request.app.state.scorers.place():
                return await handle(OneFile(request.scope, request.receive))

        return placed


open_to_all, facts = APIRouter(), APIRouter()
uploads = APIRouter(route_class=PlacedRoute)


def make_app(scorers: Scorers, rules: Rules, folder: Path) -> ASGIApp:
    """The application behind its guard.

    Args:
        scorers: started.
        folder: where uploads lie while they are scored.
    """
    app = FastAPI(
        title="DashFusion",
        version=version("dashfusion"),
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's pages fetch their scripts elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=error_answers(403, 413, 500),
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.scorers, app.state.folder = scorers, folder
    # The guard looks at the token, before a byte of the body is read; this is for the schema alone.
    told = [Depends(HTTPBearer(auto_error=False, description="The server's token"))] if rules.token else []
    app.include_router(open_to_all)
    for router in (facts, uploads):
        app.include_router(router, dependencies=told)
    for path, media_type, content in page_files():
        app.router.add_api_route(path, _file(content, media_type), include_in_schema=False)
    _add_error_handlers(app)
    return Guard(app, rules)


def _file(content: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=media_type)

    return send


@open_to_all.get("/health", summary="Is it there", response_model=Health)
async def health(request: Request) -> dict[str, Any]:
    """Whether the server answers, and how busy it is. Needs no token."""
    scorers: Scorers = request.app.state.scorers
    status = "stopping" if scorers.stopping else "ok"
    return {"status": status, "workers": scorers.workers, "waiting": scorers.waiting}


@facts.get("/model", summary="What scores", response_model=ModelFacts, responses=error_answers(401))
async def model(request: Request) -> Any:
    """What the checkpoint was trained on and how well, and what an upload may be."""
    return model_facts(request.app.state.scorers)


Text = Annotated[str, Form(max_length=LONGEST_TEXT, description="What is said in it; empty: not known")]
Recognise = Annotated[
    bool, Form(description="Where there is no text, recognise speech, if the server has a model for it")
]
Level = Annotated[
    float, Form(gt=0, lt=1, allow_inf_nan=False, description="Of the intervals: one that GET /model names")
]
WindowLength = Annotated[
    float | None,
    Form(
        ge=0.5,
        le=3600,
        allow_inf_nan=False,
        description="Seconds of the time line's windows, which every longer clip then gets; if left out, as long as "
        "training clips, for clips of two windows or more",
    ),
]
Hop = Annotated[
    float | None,
    Form(
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
        description="Seconds from window to window; if left out, half a window",
    ),
]


@uploads.post(
    "/predict",
    summary="Score a clip",
    response_model=None,
    responses={200: {"model": Prediction, "description": "The clip's score"}}
    | error_answers(400, 401, 408, 415, 422, 503),
)
async def predict(
    request: Request,
    file: Annotated[UploadFile, File(description="The clip: any file with sound or picture, whatever its name")],
    text: Text = "",
    recognise: Recognise = True,
    level: Level = 0.9,
    window: WindowLength = None,
    hop: Hop = None,
) -> Response:
    """Score one clip.

    The file is kept in a temporary file while it is scored, and removed with the answer.
    """
    scorers: Scorers = request.app.state.scorers
    path = request.app.state.folder / uuid.uuid4().hex
    wished = " ".join(text.split())
    upload = Upload(path, shown_name(file.filename), wished or (None if recognise else ""), level, window, hop)
    try:
        await run_in_threadpool(_store, file, path)
        await _unless_left(request, scorers.examine(path, upload.name))
        result = await _unless_left(request, scorers.score(upload))
    except ClientLeft:
        return Response(status_code=204)  # which nobody gets
    finally:
        path.unlink(missing_ok=True)
    folder = scorers.model.folder
    named = folder.name if folder.is_absolute() else folder  # where it lies on this machine is nobody's business
    return JSONResponse(document(scorers.description, str(named), level, [result]))


def shown_name(name: str | None) -> str:
    """A file's name as its sender has it, for showing: without folders and control characters, and not too long."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:LONGEST_NAME].strip() or "upload"


def no_room(error: OSError) -> Refused:
    """The refusal of an upload that could not be stored."""
    logger.error("an upload could not be stored: %s", error)
    return Refused("no_room", "the upload could not be stored here; try again later")


def _store(file: UploadFile, path: Path) -> None:
    """Give the upload, a file without a name so far, one that worker processes can open."""
    try:
        with open(path, "xb") as target, file.file as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except OSError as error:
        raise no_room(error) from error
    if not path.stat().st_size:
        raise Refused("not_media", f"{shown_name(file.filename)}: zero bytes; choose the file again")


async def _unless_left(request: Request, future: Future[T]) -> T:
    """The future's result; where the client leaves before, work that has not begun is not begun.

    Raises:
        ClientLeft: it did.
    """
    result = asyncio.wrap_future(future)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((result, left), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientLeft
        return result.result()
    finally:
        left.cancel()
        result.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if not isinstance(error, Refused):
            error = Refused(HTTP_REASONS.get(error.status_code, "bad_request"), str(error.detail), error.headers)
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        told = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return answer(Refused("invalid", told))

    @app.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> Response:  # Starlette raises it again, for the log
        return JSONResponse(
            Error(error="internal", message="a mistake in the server, which its log tells of").model_dump(), 500
        )


def page_files() -> list[tuple[str, str, str]]:
    """(address, media type, content) of each."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent / "static"
    styles = Environment(loader=FileSystemLoader([here, COLOURS.parent]), undefined=StrictUndefined).get_template(
        "serve.css.j2"
    )
    return [
        ("/", "text/html", (here / "serve.html").read_text(encoding="utf-8")),
        ("/page.css", "text/css", styles.render()),
        ("/page.js", "text/javascript", (here / "serve.js").read_text(encoding="utf-8")),
    ]
