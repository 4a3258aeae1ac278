"""The web application: a page at /, POST /detect, GET /health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from detrkit.inference import Detections, Detector
from detrkit.runtime.scores import checked_score

from .batching import Batcher
from .requests import (
    BAD_REQUEST,
    BUSY,
    TIMEOUT,
    TOO_LARGE,
    UNPROCESSABLE,
    UNSUPPORTED,
    RequestError,
    Selection,
    read_pixels,
    read_selection,
)

PAGE = Path(__file__).with_name("page")
MOST_WAITING = 128  # requests in progress; further ones are refused
BODY_SECONDS = 60  # in which a client has to send its image
# PyTorch's message for an image with fewer feature positions than queries, such as a strip of 1 x 1000 pixels.
TOO_FEW_POSITIONS = "selected index k out of range"


@dataclass(frozen=True)
class Options:
    """Limits of requests, and how images are batched.

    Attributes:
        max_bytes: of an image file.
        max_pixels: of an image.
        batch_size: most images that go through the detector at once.
        max_wait: seconds that an image waits for others.
        score_threshold: of requests that give none; None for the detector's.
        top: most detections of requests that give no number.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    batch_size: int = 4
    max_wait: float = 0.01
    score_threshold: float | None = None
    top: int = 100

    def __post_init__(self):
        if self.score_threshold is not None:
            checked_score(self.score_threshold, "score_threshold")


def create_app(detector: Detector, options: Options | None = None) -> Starlette:
    """Return an ASGI application that detects objects in images.

    * `POST /detect?score_threshold=0.3&top=100` with the bytes of an image file as the body. The answer is
      `{"width", "height", "score_threshold", "detections": [{"box", "score", "class", "label"}, …]}`, best first. Boxes
      are left, top, right, bottom in pixels of the upright image.
    * `GET /health`: the classes, defaults and limits.
    * `GET /`: a page to try images.

    Errors are `{"error": "one line"}` with a status of 4xx; 503 if 128 requests are in progress.
    """
    service = Service(detector, options or Options())
    return Starlette(
        routes=[
            Route("/health", service.health),
            Route("/detect", service.detect, methods=["POST"]),
            Route("/", _page),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        exception_handlers={HTTPException: _http_error, RequestError: _request_error, Exception: _server_error},
        lifespan=service.lifespan,
    )


class Service:
    """The requests to one detector; see `create_app`."""

    def __init__(self, detector: Detector, options: Options):
        self._detector = detector
        self._options = options
        threshold = detector.score_threshold if options.score_threshold is None else options.score_threshold
        self._default = Selection(threshold, options.top)
        self._in_progress = 0
        self._decoded = asyncio.Semaphore(2 * options.batch_size)  # images in memory: a batch, and the next one

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the detector's thread; at the end, wait until it has finished."""
        size = self._options.batch_size
        self._batcher = Batcher(
            lambda images: list(self._detector(images, 0.0, batch_size=size)), size, self._options.max_wait
        )
        yield
        await run_in_threadpool(self._batcher.close)

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse(
            {
                "status": "ok",
                "model": Path(self._detector.weights).name,
                "classes": self._detector.class_names,
                "score_threshold": self._default.score_threshold,
                "top": self._default.top,
                "max_bytes": self._options.max_bytes,
                "max_pixels": self._options.max_pixels,
            }
        )

    async def detect(self, request: Request) -> JSONResponse:
        if self._in_progress >= MOST_WAITING:
            raise RequestError(BUSY, f"{MOST_WAITING} requests are in progress: try again later")
        self._in_progress += 1
        try:
            selection = read_selection(request.query_params, self._default)
            body = await self._body(request)
            async with self._decoded:
                pixels = await run_in_threadpool(read_pixels, body, self._options.max_pixels)
                return JSONResponse(answer(await self._detections(pixels), selection))
        finally:
            self._in_progress -= 1

    async def _body(self, request: Request) -> bytes:
        """The bytes of the image.

        Raises:
            RequestError: there are too many, it takes too long, the client is gone, or they are a form's.
        """
        limit = self._options.max_bytes
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise RequestError(UNSUPPORTED, "the body is a form: send the bytes of the image file alone")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_many_bytes(limit)

        async def read() -> bytes:
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_many_bytes(limit)
            return bytes(body)

        try:
            return await asyncio.wait_for(read(), BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(TIMEOUT, f"the image did not arrive within {BODY_SECONDS} seconds") from error
        except ClientDisconnect as error:
            raise RequestError(BAD_REQUEST, "the connection ended before the image was complete") from error

    async def _detections(self, pixels: np.ndarray) -> Detections:
        try:
            return await asyncio.wrap_future(self._batcher.submit(pixels))
        except (ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and TOO_FEW_POSITIONS not in str(error):
                raise
            height, width = pixels.shape[:2]
            reason = "its sides are too unequal" if isinstance(error, RuntimeError) else " ".join(str(error).split())
            raise RequestError(
                UNPROCESSABLE, f"the detector cannot take an image of {width} x {height} pixels: {reason}"
            ) from error


def answer(found: Detections, selection: Selection) -> dict[str, Any]:
    """The detections that a request asks for, as plain data."""
    kept = found.where(np.flatnonzero(found.scores >= selection.score_threshold)[: selection.top])
    size = {"width": found.width, "height": found.height}
    return {**size, "score_threshold": selection.score_threshold, "detections": kept.to_dicts()}


async def _page(request: Request) -> FileResponse:
    return FileResponse(PAGE / "index.html")


def _too_many_bytes(limit: int) -> RequestError:
    return RequestError(TOO_LARGE, f"the image file is too large: at most {limit} bytes")


def _json_error(status: int, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


async def _request_error(request: Request, error: RequestError) -> JSONResponse:
    return _json_error(error.status, str(error), {"Retry-After": "1"} if error.status == BUSY else None)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return _json_error(error.status_code, f"{request.method} {request.url.path}: {error.detail}", error.headers)


async def _server_error(request: Request, error: Exception) -> JSONResponse:
    return _json_error(500, "the server failed: its log has the reason")
