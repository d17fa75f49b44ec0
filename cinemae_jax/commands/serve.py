"""cinemae serve: a web page and an HTTP interface for one detector, on this machine.

Exit codes: 0 stopped by Ctrl-C or SIGTERM; 2 usage, an unreadable detector, or a busy port.
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

from cinemae_jax.commands import frozen
from cinemae_jax.detector import bundle
from cinemae_jax.detector.api import Detector
from cinemae_jax.runtime import compilation, progress
from cinemae_jax.runtime.console import OK, Parser, fail, positive
from cinemae_jax.runtime.devices import Replicas

# Host names of this machine for a browser on it.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

# Groups of masking runs, each as large as in training: enough to estimate the uncertainty.
NUM_GROUPS = 4
EXTRA = "cinemae serve needs the web extra: pip install 'cinemae_jax[web]'"


def parser() -> argparse.ArgumentParser:
    arguments = Parser(
        prog="cinemae serve",
        description="Serves a web page and an HTTP interface. Images sent to it are not stored.",
        epilog="docs/serve.md describes the requests",
    )
    add = arguments.add_argument
    add("--detector", default="", metavar="D", help="run folder, bundle file, or bundled name")
    frozen.add_options(arguments)
    add(
        "--runs",
        type=int,
        metavar="K",
        help=f"masking runs per image ({NUM_GROUPS} times as in training)",
    )
    add(
        "--threshold-fpr",
        type=float,
        metavar="X",
        help="largest share of photographs that may be called ai, for example 0.01",
    )
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name by which browsers may reach this server, for example of a proxy",
    )
    add("--port", type=_port, default=8000, help="port; 0 picks a free one (8000)")
    add(
        "--max-megabytes",
        type=positive,
        default=32,
        metavar="M",
        help="largest upload, in MB (32)",
    )
    add(
        "--queue",
        type=positive,
        default=32,
        metavar="N",
        help="simultaneous requests (32)",
    )
    add("--open", action="store_true", help="open the page in a browser")
    return arguments


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 65535, is {value}")
    return value


def main(argv: Sequence[str]) -> int:
    """Runs the command until it is stopped.

    Args:
      argv: command name, then its arguments.
    """
    options = parser().parse_args(argv[1:])
    try:
        with compilation.kept_compilations():
            run(options)
    except KeyboardInterrupt:
        pass  # the normal way to stop it
    except (ValueError, OSError) as error:
        return fail(error)
    progress.say("stopped")
    return OK


def run(options: argparse.Namespace) -> None:
    """Binds the port, loads and compiles the detector, then listens.

    Raises:
      KeyboardInterrupt: when it is stopped.
      ValueError, OSError: if the detector, the port or the web extra is unavailable.
    """
    try:
        from cinemae_jax.serve import app, server
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from error
    with bound(options.host, options.port) as listener:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # same as Ctrl-C
        loaded = bundle.load(
            options.detector, backbone=options.backbone, global_backbone=options.global_backbone
        )
        detector = make_detector(loaded, runs=options.runs, fpr=options.threshold_fpr)
        progress.say(f"detector  {detector.name}, {detector.runs} masking runs per image")
        start = time.perf_counter()
        app.warm_up(detector)
        progress.say(f"compiled  in {time.perf_counter() - start:.1f} s")
        stop = threading.Event()
        application = app.create(
            detector,
            max_bytes=options.max_megabytes * 1_000_000,
            queue=options.queue,
            hosts=names_of(options.host) | {name.lower() for name in options.allow_host},
            addresses=not _is_loopback(listener),
            stop=stop,
        )
        ready = functools.partial(_ready, options.host, listener, opened=options.open)
        server.serve(application, listener, ready, stop)


def make_detector(loaded: bundle.Bundle, *, runs: int | None, fpr: float | None) -> Detector:
    """A detector for the server: one image at a time on one device."""
    if runs is None:
        runs = NUM_GROUPS * loaded.detector.settings.detector.num_runs
    one_device = Replicas((jax.local_devices()[0],))
    return Detector(loaded, runs=runs, fpr=fpr, batch_size=1, replicas=one_device)


# --- the socket ---------------------------------------------------------------------------------


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to the port; it refuses connections until it listens.

    Raises:
      OSError: if the port is unavailable.
    """
    with contextlib.ExitStack() as undone:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = undone.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows a restart
            listener.bind(address)
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another "
                "--host or --port (0 picks a free port)"
            ) from error
        undone.pop_all()
        return listener


def names_of(host: str) -> frozenset[str]:
    """Accepted host names: those of this machine, by which pages of others cannot reach it."""
    return LOOPBACK | {host.lower(), socket.gethostname().lower()}


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _ready(host: str, listener: socket.socket, *, opened: bool) -> None:
    address, port = listener.getsockname()[:2]
    if not _is_loopback(listener):
        progress.say(
            f"caution   listening on {address}: anyone who can reach this machine can use it"
        )
    name = "localhost" if ipaddress.ip_address(address).is_unspecified else host
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
    progress.say(f"ready     {url} (Ctrl-C stops it)")
    if opened:  # in a thread: a browser in the terminal would block the server
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
