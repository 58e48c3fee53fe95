"""Who may talk to the page: what was opened under a name of this machine, and by that page alone.

A browser lets any web page open a websocket to 127.0.0.1, and a name on the internet may be made to point there (DNS
rebinding): either could read the scene and press the buttons. Browsers say truthfully where a request was sent
(``Host``) and which page sent it (``Origin``), so both are checked before anything is answered. viser has no setting
for this; its server is started through ``websockets.asyncio.server.serve``, whose ``process_request`` is the place.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from .address import is_local

DEFAULT_PORTS = {"http": 80, "https": 443}


def refusal(hosts: Sequence[str], origins: Sequence[str], bound: str) -> str | None:
    """Why a request with these headers is refused by a server on the address ``bound``; None if it may pass.

    Programs that are no browsers send no ``Origin``; they could claim any, so that is no loss.
    """
    if len(hosts) != 1 or (place := _place("http", hosts[0])) is None:
        return "expected one Host header; open the page in a browser"
    if not _is_ours(place[0], bound):
        return f"{hosts[0]} may be anybody's name; open the page as localhost (ssh -L from afar) or by IP address"
    for origin in origins:
        scheme, _, address = origin.partition("://")
        page = _place(scheme, address)
        if page is None or page != _place(scheme, hosts[0]):
            return f"a page of {origin} is not the viewer's own; open {hosts[0]} itself"
    return None


def _place(scheme: str, address: str) -> tuple[str, int | None] | None:
    """Name and port of ``name[:port]``; None if it is something else."""
    if scheme not in DEFAULT_PORTS or any(c in address for c in "@/?#\\ "):
        return None
    try:
        parts = urlsplit(f"//{address}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (name.rstrip("."), port or DEFAULT_PORTS[scheme]) if name else None


def _is_ours(name: str, bound: str) -> bool:
    """Whether no stranger can have this name point here: localhost and, where the page is open to others, IP addresses,
    names without a dot (those of the local network), and this machine's own."""
    if is_local(name) or name == bound.lower():
        return True
    if is_local(bound):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(".local") or name == socket.getfqdn().lower()
    return True


@contextmanager
def guarded(bound: str) -> Iterator[None]:
    """A server of websockets that is started inside (from any thread) refuses what ``refusal`` does.

    Says so on stderr if none was: then a new version of viser starts its server in another way.
    """
    from websockets.asyncio import server

    plain, started = server.serve, []

    def serve(*arguments: Any, process_request: Callable[..., Any] | None = None, **options: Any) -> Any:
        def check(connection: Any, request: Any) -> Any:
            problem = refusal(request.headers.get_all("Host"), request.headers.get_all("Origin"), bound)
            if problem is not None:
                return connection.respond(HTTPStatus.FORBIDDEN, f"polyfield view: {problem}\n")
            return None if process_request is None else process_request(connection, request)

        started.append(True)
        return plain(*arguments, process_request=check, **options)

    server.serve = serve  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        server.serve = plain  # type: ignore[misc]
    if not started:
        print(
            "warning: view: viser: expected a version whose server can be guarded, got one that cannot; "
            "other web pages in your browser may reach the viewer: install viser 1.1",
            file=sys.stderr,
        )
