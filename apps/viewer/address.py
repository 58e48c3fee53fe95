"""Where the page is served: an address that is checked before a server is started on it.

viser quietly takes the next port where one is in use, and never returns where none can be had; so a socket is bound,
and let go, first.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys

from ..errors import UserError


def check_address(host: str, port: int) -> None:
    """Raises UserError if no server could listen there."""
    if not 0 <= port <= 65535:
        raise UserError(f"view: port: expected 0 to 65535, got {port}; choose another with --port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UserError(
            f"view: host: expected an address of this machine, got {host!r} ({error}); use 127.0.0.1"
        ) from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            if sys.platform != "win32":  # there, this would let two servers share a port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise UserError(_refused(host, port, error)) from error


def _refused(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"view: port: expected a free port, got {port} (in use); choose another with --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"view: port: expected one that you may use, got {port} ({error.strerror}); choose one above 1023"
    return f"view: host: expected an address of this machine, got {host!r} ({error.strerror}); use 127.0.0.1"


def is_local(host: str) -> bool:
    """Whether only this machine can connect."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def wide_warning(host: str) -> str | None:
    """What to tell a user who opens the page to other machines; None if it is not."""
    if is_local(host):
        return None
    return (
        f"warning: view: host: {host} lets every machine that can reach this one see the scene and steer the viewer; "
        "there is no password and no encryption. To look from elsewhere, keep 127.0.0.1 and use: "
        "ssh -L 8080:127.0.0.1:8080 THIS_MACHINE"
    )
