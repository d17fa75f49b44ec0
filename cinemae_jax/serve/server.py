"""Serves an application on a bound socket."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

LAST_SECONDS = 10  # time for pending requests at shutdown
HEAD_SECONDS = 10  # time for the head of a request, and for idling between two requests


def serve(
    application: ASGIApp,
    listener: socket.socket,
    ready: Callable[[], None],
    stop: threading.Event | None = None,
) -> None:
    """Serves until a signal arrives, which is then raised again.

    Args:
      application: ASGI application.
      listener: bound socket that does not listen yet.
      ready: called once connections are accepted.
      stop: set by the signal.
    """
    make(application, ready, stop).run(sockets=[listener])


def make(
    application: ASGIApp, ready: Callable[[], None], stop: threading.Event | None = None
) -> uvicorn.Server:
    """The server, not yet running; it prints failures but no request."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warnings quote form content
    config = uvicorn.Config(
        application,
        http=_Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return _Server(config, ready, stop or threading.Event())


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stop: threading.Event
    ) -> None:
        super().__init__(config)
        self._ready, self._stop = ready, stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop.set()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


class _Connection(H11Protocol):
    """Closes connections that have not sent a request's head in time; uvicorn waits for ever."""

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waits:
            self._waits.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._waits:
            self._waits.cancel()
        self._waits = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
