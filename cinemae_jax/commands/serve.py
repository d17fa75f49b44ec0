"""cinemae serve: a page and an HTTP interface of one detector, on this machine.

Exit codes: 0 ended by Ctrl+C or SIGTERM; 2 usage, a detector that cannot be read, a busy port.
"""

import argparse
import contextlib
import functools
import ipaddress
import signal
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence

import jax

from cinemae_jax.detector import bundle
from cinemae_jax.detector.api import Detector
from cinemae_jax.runtime import compilation, progress
from cinemae_jax.runtime.console import OK, Parser, fail, positive
from cinemae_jax.runtime.devices import Replicas

# Names under which a browser on this machine reaches it.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

# Groups of masks, each as many as the detector was trained with: enough to say how far the
# probability moves with them.
NUM_GROUPS = 4
EXTRA = "cinemae serve needs the web extra: pip install 'cinemae_jax[web]'"


def parser() -> argparse.ArgumentParser:
    arguments = Parser(
        prog="cinemae serve",
        description="Serves a page for people and HTTP for programs. Nothing that is sent to it "
        "is kept.",
        epilog="docs/serve.md describes the requests",
    )
    add = arguments.add_argument
    add("--detector", default="tiny", metavar="D", help="folder of a run, file, or 'tiny'")
    add("--backbone", default="", metavar="F", help="backbone of the detector, if it has moved")
    add("--runs", type=int, metavar="K", help=f"masks a picture ({NUM_GROUPS} times its own)")
    add(
        "--threshold-fpr",
        type=float,
        metavar="X",
        help="share of photographs that may be called AI, for example 0.01",
    )
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=_port, default=8000, help="port; 0 takes a free one (8000)")
    add(
        "--max-megabytes",
        type=positive,
        default=32,
        metavar="M",
        help="largest upload (32)",
    )
    add("--queue", type=positive, default=32, metavar="N", help="requests at a time (32)")
    add("--open", action="store_true", help="open the page in a browser")
    return arguments


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 65535, is {value}")
    return value


def main(argv: Sequence[str]) -> int:
    """Runs the command until it is told to end.

    Args:
      argv: name of the command first.
    """
    options = parser().parse_args(argv[1:])
    try:
        with compilation.kept_compilations():
            run(options)
    except KeyboardInterrupt:
        pass  # that is how it is told to end
    except (ValueError, OSError) as error:
        return fail(error)
    progress.say("stopped")
    return OK


def run(options: argparse.Namespace) -> None:
    """Takes the port, loads, compiles, and only then listens.

    Raises:
      KeyboardInterrupt: when it is told to end.
      ValueError, OSError: if something is missing, busy or cannot be read.
    """
    try:
        from cinemae_jax.serve import app, server
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from error
    with bound(options.host, options.port) as listener:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl+C does
        loaded = bundle.load(options.detector, backbone=options.backbone)
        detector = make_detector(loaded, runs=options.runs, fpr=options.threshold_fpr)
        progress.say(f"detector  {detector.name}, {detector.runs} masks a picture")
        start = time.perf_counter()
        app.warm_up(detector)
        progress.say(f"compiled  in {time.perf_counter() - start:.1f} s")
        application = app.create(
            detector,
            max_bytes=options.max_megabytes * 1_000_000,
            queue=options.queue,
            hosts=names_of(options.host, listener),
        )
        ready = functools.partial(_ready, options.host, listener, opened=options.open)
        server.serve(application, listener, ready)


def make_detector(loaded: bundle.Bundle, *, runs: int | None, fpr: float | None) -> Detector:
    """One picture at a time keeps one device busy: batches of one, and no other device."""
    if runs is None:
        runs = NUM_GROUPS * loaded.detector.settings.detector.num_runs
    one_device = Replicas((jax.local_devices()[0],))
    return Detector(loaded, runs=runs, fpr=fpr, batch_size=1, replicas=one_device)


# --- where it listens ---------------------------------------------------------------------------


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds the port and refuses connections until somebody listens on it.

    Raises:
      OSError: if it cannot be had.
    """
    with contextlib.ExitStack() as undone:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undone.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # at once after another
            listener.bind(address)
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}: choose another "
                "with --host and --port (0 takes a free port)"
            ) from error
        undone.pop_all()
        return listener


def names_of(host: str, listener: socket.socket) -> frozenset[str] | None:
    """Names that a request may be for; any where other machines can reach it."""
    return LOOPBACK | {host.lower()} if _is_loopback(listener) else None


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _ready(host: str, listener: socket.socket, *, opened: bool) -> None:
    address, port = listener.getsockname()[:2]
    if not _is_loopback(listener):
        progress.say(
            f"caution   listens on {address}: anybody who can reach this machine may use it"
        )
    name = "localhost" if ipaddress.ip_address(address).is_unspecified else host
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
    progress.say(f"ready     {url} (Ctrl+C ends it)")
    if opened:  # in a thread: a browser in the terminal would hold the server up
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
