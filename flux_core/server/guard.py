"""Who may talk to the server, and what pages may load.

A page on the internet must not be able to use a server on somebody's own machine: requests whose Host is not ours (DNS
rebinding) or whose Origin is another site's (CSRF) are refused, and changes must come as JSON, which a foreign form
cannot send. Beyond loopback a token is required. The content policy keeps the editor from contacting anybody else.

Does not know: what is served.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE = "sluice_token"

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-src 'self'; frame-ancestors 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def guard(host: str, token: str | None) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """The middleware. `host`: the address listened on. `token`: what others must show, None on loopback."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request, host, token)
        if refusal is not None:
            return refusal
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            _add_headers(answer)
            raise
        if not response.prepared:
            _add_headers(response)
            if token is not None and request.query.get("token"):
                response.set_cookie(COOKIE, token, httponly=True, samesite="Strict", max_age=90 * 86400)
        return response

    return middleware


def _refusal(request: web.Request, host: str, token: str | None) -> web.Response | None:
    asked = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    if token is None and not is_loopback(asked):
        return _refuse(f"This server answers only as localhost, not as {asked or 'a nameless host'}.")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("Host", "").lower():
        return _refuse("Requests from other web sites are not answered.")
    if origin is None and request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method != "GET":
        return _refuse("Requests from other web sites are not answered.")
    if token is not None and not _shows(request, token):
        return _refuse("Open the address that was printed when the server started: it contains the token.", 401)
    return None


def _shows(request: web.Request, token: str) -> bool:
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    shown = (request.query.get("token", ""), request.cookies.get(COOKIE, ""), bearer)
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in shown)


def _refuse(reason: str, status: int = 403) -> web.Response:
    response = web.json_response({"error": {"type": "refused", "message": reason, "details": "", "extra_info": {}}})
    response.set_status(status)
    return response


def _add_headers(response: web.StreamResponse) -> None:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
