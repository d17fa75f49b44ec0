"""An application on a socket that is bound already, from "ready" to the end."""

import logging
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

LAST_SECONDS = 10  # that answers under way are waited for at the end


def serve(application: ASGIApp, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Listens until a signal ends it, which is then raised again.

    Args:
      application: that answers.
      listener: bound, and not yet listening.
      ready: called when connections are taken.
    """
    make(application, ready).run(sockets=[listener])


def make(application: ASGIApp, ready: Callable[[], None]) -> uvicorn.Server:
    """The server, not yet running; it prints what fails, and nothing of who asked for what."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it quotes malformed forms
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
