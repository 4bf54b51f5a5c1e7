"""No test of this folder may touch a network other than this machine's own."""

import socket

import pytest


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without network and with empty caches; the list returned takes the addresses asked for."""
    import torch
    from huggingface_hub import constants

    asked = []

    def refuse(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    for proxy in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    return asked
