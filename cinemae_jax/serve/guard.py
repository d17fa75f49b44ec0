"""Before the application: which requests a browser may bring, what it may do with answers.

A server on loopback is within reach of every page that its user opens.  Pages of other sites are
turned away by their ``Origin``, and a name that was made to point here (DNS rebinding) by ``Host``.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of every answer: nothing comes from elsewhere, nothing is framed, sniffed or kept.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI application around another one.

    Args:
      app: what is guarded.
      hosts: names that a request may be for, without port; None for any.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

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
        if self._hosts is not None and (name := _name(host)) not in self._hosts:
            return f"this server is not {name!r}: it listens to this machine alone"
        if method in ("GET", "HEAD"):  # following a link is no harm, and answers cannot be read
            return ""
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"pages of {origin} may not use this server"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return "pages of other sites may not use this server"
        return ""


def _name(host: str) -> str:
    """``[::1]:8000`` and ``localhost:8000`` without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that do not match
        return host
