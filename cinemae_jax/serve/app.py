"""The HTTP service around one detector, and its web page.

Requests wait in a bounded queue, and the detector scores one image at a time, so memory does not
grow with the number of clients.  Request content is neither stored nor logged.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from cinemae_jax import __version__
from cinemae_jax.data.decode import encode_png
from cinemae_jax.detector.api import OPINION, Detector
from cinemae_jax.serve import answers, body
from cinemae_jax.serve.answers import About, Answer, Failure, Options
from cinemae_jax.serve.guard import Guard

PAGE = Path(__file__).parent / "page"
RETRY_AFTER = "2"  # seconds to wait when the queue is full
GONE = 499  # the client has disconnected: nobody reads this status

REFUSALS = {
    400: "no image, a malformed form, or an unknown option",
    403: "requested by a page of another site, or under another host's name",
    408: "the body did not arrive in time",
    413: "the body is larger than this server accepts",
    415: "the content type is not that of an image",
    422: "the image cannot be decoded or scored; the error gives the decoder's reason",
    503: "the queue is full (`Retry-After` says when to try again), or the server is stopping",
}
BODY = {
    "required": True,
    "content": {
        kind: {"schema": {"type": "string", "format": "binary"}}
        for kind in (body.ANY_IMAGE, body.BINARY)
    }
    | {
        body.FORM: {
            "schema": {
                "type": "object",
                "required": [body.FIELD],
                "properties": {body.FIELD: {"type": "string", "format": "binary"}},
            }
        }
    },
}


def create(
    detector: Detector,
    *,
    max_bytes: int,
    queue: int,
    hosts: frozenset[str] | None,
    addresses: bool = False,
    stop: threading.Event | None = None,
) -> ASGIApp:
    """Builds the ASGI application.

    Args:
      detector: scores the images.
      max_bytes: largest accepted request body.
      queue: largest number of simultaneous requests, including the one being scored.
      hosts: accepted host names; None accepts any.
      addresses: whether any IP address is accepted besides.
      stop: once set, the requests that wait are refused (503).
    """
    app = _bare()
    stop = stop or threading.Event()
    service = Service(detector, max_bytes=max_bytes, queue=queue, stop=stop)
    described = answers.about(detector, max_bytes)
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": words} for status, words in REFUSALS.items()
    }
    app.post(
        "/v1/predict",
        response_model=Answer,
        responses=refusals,
        openapi_extra={"requestBody": BODY},
        summary="Score one image",
    )(service.predict)

    @app.get("/v1/detector", summary="The detector, and what this server accepts")
    async def about() -> About:
        return described

    @app.get("/healthz", summary="Whether the server is ready")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    for path, answer in (("/", page), ("/healthz", health), ("/v1/detector", about)):
        app.head(path, include_in_schema=False)(answer)  # FastAPI answers 405 without
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _bad_option)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    return Guard(app, hosts, addresses=addresses)


def _bare() -> FastAPI:
    """The application without any path."""
    return FastAPI(
        title="cinemae serve",
        version=__version__,
        description=f"How likely an image is AI-generated. {OPINION}",
        docs_url=None,  # that page loads scripts from another host
        redoc_url=None,
        telemetry={  # otherwise environment variables can send requests to a collector
            "tracing": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
    )


def warm_up(detector: Detector) -> None:
    """Compiles everything that an answer needs, by scoring an image of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    options = Options(heatmap=answers.has_heatmaps(detector))
    answers.judge(detector, encode_png(noise), options)


class Service:
    """The detector and the queue of requests."""

    def __init__(
        self, detector: Detector, *, max_bytes: int, queue: int, stop: threading.Event
    ) -> None:
        """See ``create`` for the arguments."""
        self._detector, self._max_bytes, self._free = detector, max_bytes, queue
        self._stop = stop
        self._turn = asyncio.Lock()  # first come, first served

    async def predict(self, request: Request, options: Annotated[Options, Query()]) -> Any:
        """The body is an image file, or a form with one file in the field `image`.

        The score does not depend on the file name or on other requests.
        """
        if options.heatmap and not answers.has_heatmaps(self._detector):
            raise HTTPException(
                400, f"heatmap: the backbone of {self._detector.name} has no decoder"
            )
        with self._place():
            data = await body.read(request, self._max_bytes)
            async with self._turn:
                if self._stop.is_set():
                    raise HTTPException(503, "the server is stopping: try again later")
                if await request.is_disconnected():
                    return Response(status_code=GONE)
                try:
                    return await run_in_threadpool(answers.judge, self._detector, data, options)
                except answers.UnreadableError as error:
                    raise HTTPException(422, str(error)) from error

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """A place in the queue, taken before the body is read: bounds the waiting bytes."""
        if not self._free:
            raise HTTPException(
                503, "the queue is full: try again soon", {"Retry-After": RETRY_AFTER}
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


# --- errors, all of them as {"error": words} ----------------------------------------------------


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _bad_option(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = (f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    known = ", ".join(Options.model_fields)
    return JSONResponse({"error": f"option {'; '.join(faults)} (options: {known})"}, 400)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


async def _failed(request: Request, error: Exception) -> Response:
    """A bug; the server prints the traceback."""
    return JSONResponse({"error": "the server failed: see its terminal"}, 500)
