"""Whether a server answers."""

import http.server
import socket
import threading

import pytest

from ksurgeon.models import fetch


@pytest.fixture
def answering():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "expected"), [(200, True), (401, True), (404, True), (503, False)])
def test_an_answering_server(answering, monkeypatch, status, expected):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch.reachable(f"{answering}/{status}", 10) is expected


def test_a_port_nobody_listens_on():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert fetch.reachable(f"http://127.0.0.1:{free.getsockname()[1]}") is False


def test_a_server_that_never_answers():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert fetch.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2) is False


def test_a_name_server_that_never_answers(monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: forever.wait(20) and [])
    assert fetch.reachable("https://ksurgeon.invalid", 0.2) is False
    forever.set()


def test_the_hub_is_not_asked_in_offline_mode(offline, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch.hub_endpoint() is None and offline == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetch.hub_endpoint() is None and len(offline) == 1
