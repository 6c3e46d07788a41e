"""Decides which requests are answered and what pages may load.

A page on the internet must not be able to use a server on a person's own machine. So requests with a foreign Host (DNS
rebinding) or a foreign Origin (CSRF) are refused. Requests of old browsers, which send no Origin, can change something
only with a content type that no form can send. Beyond loopback a token is required. The content policy prevents the
editor from contacting any other host.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .token_page import token_page

COOKIE = "sluice_token"
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain", "application/octet-stream")

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; frame-src 'self'; frame-ancestors 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)


def is_loopback(host: str) -> bool:
    """Whether an address or name is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def guard(token: str | None, hosts: Collection[str] = ()) -> Middleware:
    """The middleware. token: required in each request; None for a server that only its own machine can reach.

    hosts: further names of such a server, for containers or tunnels.
    """
    allowed = frozenset(host.lower() for host in hosts)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request, token, allowed)
        if refusal is not None:
            return refusal
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            _add_headers(answer)
            raise
        if not response.prepared:
            _add_headers(response)
            if token is not None and "token" in request.query:
                response.set_cookie(COOKIE, token, httponly=True, samesite="Strict", max_age=90 * 86400)
        return response

    return middleware


def _refusal(request: web.Request, token: str | None, hosts: Collection[str]) -> web.Response | None:
    host = request.headers.get("Host", "")
    name = _name(host)
    if token is None and not is_loopback(name) and name not in hosts:
        called = name[:100] or "a nameless host"
        advice = f" Start it with --allow-host {called} if that is its name." if name else ""
        return _refuse(f"This server answers only as localhost, not as {called}.{advice}")
    if _is_foreign(request, host.lower()):
        return _refuse("Requests from other web sites are not answered.")
    if token is not None and not _shows(request, token):
        if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
            return _ask_for_token(wrong="token" in request.query)
        return _refuse("Open the address that was printed when the server started: it contains the token.", 401)
    return None


def _is_foreign(request: web.Request, host: str) -> bool:
    """Whether a page of another site makes this request."""
    origin = request.headers.get("Origin")
    if origin is not None:
        return origin.lower() not in (f"http://{host}", f"https://{host}")
    if request.method in ("GET", "HEAD"):
        return False  # these change nothing, and browsers hide the answer from other sites
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True
    if request.method != "POST":
        return False  # no form sends these, and browsers name the origin of scripts that do
    is_browser = request.headers.get("User-Agent", "").startswith("Mozilla/")  # or Qt
    return is_browser and request.content_type in _FORM_TYPES


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _shows(request: web.Request, token: str) -> bool:
    bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
    shown = (request.query.get("token", ""), request.cookies.get(COOKIE, ""), bearer)
    return any(hmac.compare_digest(one.encode(errors="replace"), token.encode()) for one in shown)


def _refuse(reason: str, status: int = 403) -> web.Response:
    response = web.json_response({"error": {"type": "refused", "message": reason, "details": "", "extra_info": {}}})
    response.set_status(status)
    return response


def _ask_for_token(wrong: bool) -> web.Response:
    response = web.Response(text=token_page(wrong), status=401, content_type="text/html")
    response.headers["Cache-Control"] = "no-store"
    _add_headers(response)
    return response


def _add_headers(response: web.StreamResponse) -> None:
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
