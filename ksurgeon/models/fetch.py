"""Whether something can be downloaded, found out fast and without retries."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

__all__ = ["Unavailable", "hub_cached", "hub_endpoint", "hub_offline", "reachable", "torch_cached"]


class Unavailable(Exception):
    """Pretrained weights that cannot be had; the message says why, without a full stop."""


def reachable(url: str, seconds: float = 2.0) -> bool:
    """Whether the server of ``url`` answers within ``seconds``, through the proxy if there is one.

    Asks once, and in a thread of its own, because resolving a name knows no time limit.
    """
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "ksurgeon"})
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500)
        except (OSError, ValueError):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])


def hub_endpoint() -> str | None:
    """Address of the Hugging Face hub if it may be asked and answers, else None."""
    from huggingface_hub import constants

    endpoint = str(constants.ENDPOINT)
    return endpoint if not constants.HF_HUB_OFFLINE and reachable(endpoint) else None


@contextmanager
def hub_offline() -> Iterator[None]:
    """Inside, nothing is asked of the Hugging Face hub; its own ``local_files_only`` asks it all the same."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_cached(repository: str, *files: str) -> Path | None:
    """First of ``files`` of a hub repository that is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None


def torch_cached(url: str) -> Path | None:
    """Where ``torch.hub`` keeps what it downloaded from ``url``, if it has."""
    import torch

    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    return file if file.is_file() else None
