"""Serves an application on a bound socket."""

import logging
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

LAST_SECONDS = 10  # time for pending requests at shutdown


def serve(application: ASGIApp, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serves until a signal arrives, which is then raised again.

    Args:
      application: ASGI application.
      listener: bound socket that does not listen yet.
      ready: called once connections are accepted.
    """
    make(application, ready).run(sockets=[listener])


def make(application: ASGIApp, ready: Callable[[], None]) -> uvicorn.Server:
    """The server, not yet running; it prints failures but no request."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warnings quote form content
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return _Server(config, ready)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
