"""A server in a thread of the test, on a free local port."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp

from cinemae_jax.commands import serve
from cinemae_jax.detector.api import Detector
from cinemae_jax.serve import app, server

MAX_BYTES = 3_000_000


@contextlib.contextmanager
def running(detector: Any, *, queue: int = 32) -> Iterator[str]:
    """The address of a server with this detector, which ends with the block."""
    with listening(
        app.create(detector, max_bytes=MAX_BYTES, queue=queue, hosts=serve.LOOPBACK)
    ) as url:
        yield url


@contextlib.contextmanager
def listening(application: ASGIApp) -> Iterator[str]:
    is_ready = threading.Event()
    made = server.make(application, is_ready.set)
    with serve.bound("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert is_ready.wait(10)
            yield url
        finally:
            made.should_exit = True
            thread.join()


class Gated:
    """A detector that waits at a gate before it predicts, and counts the requests."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self.gate = threading.Event()
        self.came = threading.Semaphore(0)
        self.seen: list[bytes] = []

    def predict(self, data: bytes, **options: Any) -> Any:
        self.seen.append(data)
        self.came.release()
        assert self.gate.wait(20)
        return self._detector.predict(data, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)
