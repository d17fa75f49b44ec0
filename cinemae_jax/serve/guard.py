"""Filters requests before the application and adds security headers to every response.

Every page that a user opens can reach a server on loopback.  Pages of other sites are rejected by
their ``Origin``, and DNS rebinding by ``Host``.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of every response: no content from other hosts, no framing, no content sniffing, no caching.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware.

    Args:
      app: protected application.
      hosts: accepted host names, without port; None accepts any.
      addresses: whether any IP address is accepted besides; DNS rebinding needs a name.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str] | None, *, addresses: bool = False
    ) -> None:
        self._app, self._hosts, self._addresses = app, hosts, addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        if fault := self._fault(Headers(scope=scope), scope["method"]):
            app = JSONResponse({"error": fault}, status_code=403)
        await app(scope, receive, sealed)

    def _fault(self, headers: Headers, method: str) -> str:
        host = headers.get("host", "")
        if not self._accepts(name := _name(host)):
            known = "" if self._addresses else ": this server is for this machine only"
            return (
                f"host {name!r} is not accepted{known}; `cinemae serve --allow-host NAME` accepts "
                "another name"
            )
        if method in ("GET", "HEAD"):  # links are harmless: other sites cannot read the response
            return ""
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            return f"pages of {origin} may not use this server"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return "pages of other sites may not use this server"
        return ""

    def _accepts(self, name: str) -> bool:
        if self._hosts is None or name in self._hosts:
            return True
        return self._addresses and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """The host name without port and brackets, for example of ``[::1]:8000``."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # unbalanced brackets
        return host
