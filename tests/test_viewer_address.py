"""Where the viewer is served: addresses, ports, and requests of pages that are not its own."""

import socket
import urllib.error
import urllib.request

import pytest
from polyfield.apps.errors import UserError
from polyfield.apps.viewer.address import check_address, is_local, wide_warning
from polyfield.apps.viewer.guard import guarded, refusal

from .viewer_fakes import viewer


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


# Addresses.


def test_port_in_use(taken):
    message = rf"^view: port: expected a free port, got {taken} \(in use\); choose another with --port$"
    with pytest.raises(UserError, match=message):
        check_address("127.0.0.1", taken)
    with pytest.raises(UserError, match=message):
        viewer(port=taken)


@pytest.mark.parametrize("port", [-1, 65536])
def test_port_out_of_range(port):
    with pytest.raises(UserError, match=rf"^view: port: expected 0 to 65535, got {port}; choose another with --port$"):
        check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_host_of_another_machine(host):
    with pytest.raises(UserError, match=r"^view: host: expected an address of this machine, got .*; use 127\.0\.0\.1$"):
        check_address(host, 0)


def test_free_port_is_left_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_opening_wider_warns(capsys):
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert is_local(host)
        assert wide_warning(host) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        warning = wide_warning(host)
        assert warning is not None
        assert host in warning
        assert "no password" in warning
    with viewer(host="0.0.0.0"):
        assert "warning: view: host: 0.0.0.0 lets every machine" in capsys.readouterr().err
    with viewer():
        assert capsys.readouterr() == ("", "")


# The page.


def test_page_answers_on_this_machine_only_and_stops():
    with viewer() as page:
        assert page.url.startswith("http://127.0.0.1:")
        port = int(page.url.rsplit(":", 1)[1])
        with urllib.request.urlopen(page.url, timeout=20) as answer:
            assert answer.status == 200
            assert b"<html" in answer.read().lower()
        thread = page.loop._thread
        assert thread.is_alive()
    assert not thread.is_alive()
    check_address("127.0.0.1", port)
    page.stop()


OURS = [
    ("localhost:8080", None, "127.0.0.1"),
    ("localhost:8080", "http://localhost:8080", "127.0.0.1"),
    ("LOCALHOST:9000", "http://localhost:9000", "127.0.0.1"),  # ssh -L 9000:127.0.0.1:8080
    ("127.0.0.1:8080", "http://127.0.0.1:8080", "127.0.0.1"),
    ("127.0.0.1", "http://127.0.0.1:80", "127.0.0.1"),
    ("[::1]:8080", "http://[::1]:8080", "::1"),
    ("localhost", "https://localhost", "localhost"),
    ("192.168.0.7:8080", "http://192.168.0.7:8080", "0.0.0.0"),
    ("192.168.0.7:8080", "http://192.168.0.7:8080", "192.168.0.7"),
    ("[fe80::1]:8080", "http://[fe80::1]:8080", "::"),
    ("workstation:8080", "http://workstation:8080", "0.0.0.0"),
    ("workstation.local:8080", "http://workstation.local:8080", "0.0.0.0"),
    ("gpu.lab.example:8080", "http://gpu.lab.example:8080", "GPU.lab.example"),
]
FOREIGN = [
    ("evil.example:8080", "http://evil.example:8080", "127.0.0.1"),  # rebound to this machine
    ("evil.example:8080", None, "127.0.0.1"),
    ("evil.example:8080", "http://evil.example:8080", "0.0.0.0"),
    ("localhost.evil.example:8080", None, "127.0.0.1"),
    ("workstation:8080", None, "127.0.0.1"),
    ("192.168.0.7:8080", None, "127.0.0.1"),
    ("localhost:8080", "https://evil.example", "127.0.0.1"),  # another page of the same browser
    ("localhost:8080", "http://localhost:3000", "127.0.0.1"),
    ("localhost:8080", "http://127.0.0.1:8080", "127.0.0.1"),
    ("localhost:8080", "null", "127.0.0.1"),
    ("localhost:8080", "", "127.0.0.1"),
    ("localhost:8080", "file://", "127.0.0.1"),
    ("192.168.0.7:8080", "https://evil.example", "0.0.0.0"),
    ("evil.example@localhost:8080", None, "127.0.0.1"),
    ("localhost:port", None, "127.0.0.1"),
    ("[::1", None, "127.0.0.1"),
    ("", None, "127.0.0.1"),
]


@pytest.mark.parametrize(("host", "origin", "bound"), OURS)
def test_requests_of_the_own_page_pass(host, origin, bound):
    assert refusal([host], [] if origin is None else [origin], bound) is None


@pytest.mark.parametrize(("host", "origin", "bound"), FOREIGN)
def test_requests_of_other_pages_are_refused(host, origin, bound):
    assert "open" in refusal([host], [] if origin is None else [origin], bound)


def test_requests_without_one_host_are_refused():
    assert "expected one Host header" in refusal([], [], "127.0.0.1")
    assert "expected one Host header" in refusal(["localhost", "evil.example"], [], "127.0.0.1")
    assert "not the viewer's own" in refusal(
        ["localhost:1"], ["http://localhost:1", "http://evil.example"], "localhost"
    )


def test_the_websocket_is_for_the_own_page_alone(capsys):
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    def first_message(port, host, origin):
        talk = socket.create_connection(("127.0.0.1", port))
        options = dict(sock=talk, origin=origin, subprotocols=[f"viser-v{viser.__version__}"])
        with connect(f"ws://{host}:{port}", **options) as websocket:
            return websocket.recv(timeout=20)

    with viewer() as shown:
        port = shown.server.get_port()
        assert first_message(port, "localhost", f"http://localhost:{port}")
        assert first_message(port, "127.0.0.1", None)
        for host, origin in (
            ("localhost", "https://evil.example"),
            ("localhost", "null"),
            ("evil.example", f"http://evil.example:{port}"),
        ):
            with pytest.raises(InvalidStatus) as refused:
                first_message(port, host, origin)
            assert refused.value.response.status_code == 403
        request = urllib.request.Request(f"http://127.0.0.1:{port}", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403") as error:
            urllib.request.urlopen(request, timeout=20)
        assert b"open the page as localhost" in error.value.read()
    assert "warning" not in capsys.readouterr().err


def test_a_server_that_cannot_be_guarded_is_told(capsys):
    with guarded("127.0.0.1"):
        pass
    assert "warning: view: viser: expected a version whose server can be guarded" in capsys.readouterr().err
