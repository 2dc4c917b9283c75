"""The FastAPI application: the pages, `POST /predict`, `GET /model`, `/health`, `/metrics`, and uniform errors."""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping
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

from flows.display import COLOURS, SORTABLE
from flows.prediction.score import to_document
from flows.serving.errors import ApiError
from flows.serving.schema import Health, ModelFacts, Prediction, error_responses
from flows.serving.security import Guard, Rules, error_response
from flows.serving.telemetry import create_registry, format_metrics
from flows.serving.worker import Upload
from flows.serving.worker_pool import ScoringPool, model_facts

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_TEXT_LENGTH = 20_000
MAX_NAME_LENGTH = 200
MAX_FIELD_BYTES = 4 * MAX_TEXT_LENGTH + 1024

HTTP_ERRORS = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}
"""Error codes of the statuses that FastAPI itself responds with."""

DESCRIPTION = """Sentiment of a clip by a DashFusion checkpoint: score, prediction interval, the modalities that it is
based on, and a time line. Uploads are not kept. Every error response is `{"error": ..., "message": ...}`."""


class ClientDisconnectedError(Exception):
    """The client has closed the connection."""


class SingleFileRequest(Request):
    """A request whose form may hold one file and a few short fields. Starlette's defaults would buffer a gigabyte."""

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]  # Starlette returns an awaitable context
        """Parse the form within the limits.

        Raises:
            ApiError: The disk has no room for the file.
        """
        try:
            return await super().form(max_files=1, max_fields=8, max_part_size=MAX_FIELD_BYTES)
        except OSError as error:
            raise _no_room(error) from error


class QueuedRoute(APIRoute):
    """A route whose requests are admitted to the scoring queue before their body is read."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def handle_admitted(request: Request) -> Response:
            if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                raise ApiError("not_multipart", "send the clip as multipart/form-data, in the field `file`")
            with request.app.state.pool.admit():
                return await handle(SingleFileRequest(request.scope, request.receive))

        return handle_admitted


public, protected = APIRouter(), APIRouter()
uploads = APIRouter(route_class=QueuedRoute)


def create_app(pool: ScoringPool, rules: Rules, folder: Path) -> ASGIApp:
    """Create the application, wrapped in its access control.

    Args:
        pool: Started scoring pool.
        rules: Access rules and request limits.
        folder: Folder for temporary files of uploads.
    """
    app = FastAPI(
        title="DashFusion",
        version=version("dashfusion"),
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's documentation pages load their scripts from a CDN; /docs is one of our own
        redoc_url=None,
        redirect_slashes=False,
        responses=error_responses(403, 413, 500),
        generate_unique_id_function=lambda route: route.name,
        exception_handlers={
            HTTPException: _handle_http_error,
            RequestValidationError: _handle_validation_error,
            Exception: _handle_internal_error,
        },
    )
    app.state.pool, app.state.folder, app.state.registry = pool, folder, create_registry(pool)
    # For the schema only: `Guard` checks the token before the body is read
    security = [Depends(HTTPBearer(auto_error=False, description="The server's token"))] if rules.token else []
    app.include_router(public)
    for router in (protected, uploads):
        app.include_router(router, dependencies=security)
    _add_page(app)
    return Guard(app, rules)


@public.get("/health", summary="Server status", response_model=Health)
async def health(request: Request) -> dict[str, Any]:
    """Return whether the server accepts uploads, and how busy it is. Needs no token."""
    pool: ScoringPool = request.app.state.pool
    status = "stopping" if pool.stopping else "ok"
    return {"status": status, "workers": pool.workers, "waiting": pool.waiting}


@protected.get("/model", summary="Model and limits", response_model=ModelFacts, responses=error_responses(401))
async def model(request: Request) -> Mapping[str, Any]:
    """Return the checkpoint's training corpus and metrics, and the upload limits."""
    return model_facts(request.app.state.pool)


@protected.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """Return Prometheus's metrics. Reads the memory of other processes, hence in a thread."""
    content, content_type = format_metrics(request.app.state.registry, request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


@uploads.post(
    "/predict",
    summary="Score a clip",
    response_model=None,
    responses={
        200: {"model": Prediction, "description": "The clip's score"},
        **error_responses(400, 401, 408, 415, 422, 503),
    },
)
async def predict(
    request: Request,
    file: Annotated[UploadFile, File(description="The clip: any video or audio file, whatever its name")],
    text: Annotated[str, Form(max_length=MAX_TEXT_LENGTH, description="Transcript; empty if unknown")] = "",
    recognise: Annotated[
        bool, Form(description="Recognise speech if there is no text and the server has a speech recogniser")
    ] = True,
    level: Annotated[
        float, Form(gt=0, lt=1, allow_inf_nan=False, description="Interval level; GET /model lists the available ones")
    ] = 0.9,
    window: Annotated[
        float | None,
        Form(
            ge=0.5,
            le=3600,
            allow_inf_nan=False,
            description="Window length of the time line in seconds. If given, every longer clip gets a time line; by "
            "default windows are as long as training clips, for clips of at least two windows",
        ),
    ] = None,
    hop: Annotated[
        float | None,
        Form(
            ge=0.1,
            le=3600,
            allow_inf_nan=False,
            description="Seconds between window starts; by default half a window",
        ),
    ] = None,
    frames: Annotated[bool, Form(description="Return still frames of the video too, if it cannot be played")] = False,
) -> Response:
    """Score one clip.

    The file is stored temporarily and deleted before the response is sent.
    """
    pool: ScoringPool = request.app.state.pool
    path = request.app.state.folder / uuid.uuid4().hex
    transcript = " ".join(text.split()) or (None if recognise else "")
    upload = Upload(path, sanitise_name(file.filename), transcript, level, window, hop, frames)
    try:
        await run_in_threadpool(_store, file, path)
        await _await_unless_disconnected(request, pool.examine(path, upload.name))
        result = await _await_unless_disconnected(request, pool.score(upload))
    except ClientDisconnectedError:
        return Response(status_code=204)  # never sent
    finally:
        path.unlink(missing_ok=True)
    checkpoint = pool.model.folder
    shown_path = checkpoint.name if checkpoint.is_absolute() else checkpoint  # does not reveal the server's folders
    return JSONResponse(to_document(pool.description, str(shown_path), level, [result]))


def sanitise_name(name: str | None) -> str:
    """Return a file name for display: without folders and control characters, and of limited length."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:MAX_NAME_LENGTH].strip() or "upload"


def _no_room(error: OSError) -> ApiError:
    logger.error("an upload could not be stored: %s", error)
    return ApiError("no_room", "the upload could not be stored on the server; try again later")


def _store(file: UploadFile, path: Path) -> None:
    """Copy the upload, an anonymous temporary file, to a path that worker processes can open."""
    try:
        with path.open("xb") as target, file.file as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except OSError as error:
        raise _no_room(error) from error
    if not path.stat().st_size:
        raise ApiError("not_media", f"{sanitise_name(file.filename)}: zero bytes; choose the file again")


async def _await_unless_disconnected(request: Request, future: Future[T]) -> T:
    """Return the future's result. If the client disconnects first, cancel the future unless it is already running.

    Raises:
        ClientDisconnectedError: The client has disconnected.
    """
    result = asyncio.wrap_future(future)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((result, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnectedError
        return result.result()
    finally:
        disconnected.cancel()
        result.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _handle_http_error(request: Request, error: HTTPException) -> Response:
    if not isinstance(error, ApiError):
        error = ApiError(HTTP_ERRORS.get(error.status_code, "bad_request"), str(error.detail), error.headers)
    return _respond(request, error)


async def _handle_validation_error(request: Request, error: RequestValidationError) -> Response:
    message = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
    return _respond(request, ApiError("invalid", message))


async def _handle_internal_error(
    request: Request, error: Exception
) -> Response:  # Starlette also raises it, for the log
    return _respond(request, ApiError("internal", "an internal error; the server's log has the details"))


def _respond(request: Request, error: ApiError) -> Response:
    """Return an error as a response, and leave its code to `Guard`."""
    request.state.error = error.error
    return error_response(error)


def _add_page(app: FastAPI) -> None:
    """Add the routes of the pages' files, which are read once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    static = Path(__file__).parent / "static"
    templates = Environment(loader=FileSystemLoader([static, COLOURS.parent]), undefined=StrictUndefined)

    def add(path: str, media_type: str, content: str) -> None:
        async def send() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, send, include_in_schema=False)

    add("/", "text/html", (static / "serve.html").read_text(encoding="utf-8"))
    add("/page.css", "text/css", templates.get_template("serve.css.j2").render())
    add("/page.js", "text/javascript", (static / "serve.js").read_text(encoding="utf-8"))
    for name in ("charts.js", "dom.js", "result.js"):
        add(f"/{name}", "text/javascript", (static / name).read_text(encoding="utf-8"))
    add("/sortable.js", "text/javascript", SORTABLE.read_text(encoding="utf-8"))
    add("/docs", "text/html", (static / "docs.html").read_text(encoding="utf-8"))
    add("/docs.css", "text/css", (static / "docs.css").read_text(encoding="utf-8"))
    add("/docs.js", "text/javascript", (static / "docs.js").read_text(encoding="utf-8"))
