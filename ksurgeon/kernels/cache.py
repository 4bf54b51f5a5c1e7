"""What was measured on this machine, kept between processes; used by the tuners of all backends.

A cache is one small JSON file in the user's cache folder. It is an aid and never needed: a file that cannot
be read or written, or holds anything unexpected, counts as empty, with no more than a debug message.
"""

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ksurgeon.files import parse_json, read_regular

__all__ = ["Cache", "cache_folder", "cpu_model", "may_tune"]

_log = logging.getLogger(__name__)


def may_tune() -> bool:
    """Whether choices may depend on measurements.

    They may not where ``KSURGEON_TUNE`` is 0, nor under ``torch.use_deterministic_algorithms``.
    """
    return os.environ.get("KSURGEON_TUNE") != "0" and not torch.are_deterministic_algorithms_enabled()


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/ksurgeon``, or the platform's own place for caches; a user without a home folder has
    it among temporary files."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "ksurgeon"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        return Path(tempfile.gettempdir()) / "ksurgeon-cache"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "ksurgeon" / "Cache"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "ksurgeon"


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """The processor as far as the system tells it: name, family, model and stepping."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    facts: dict[str, str] = {}
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    wanted = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    return ", ".join([platform.machine(), *(facts[name] for name in wanted if name in facts)])


class Cache:
    """Choices by key, in memory and in a file of their own for each backend and machine.

    Args:
        backend: first part of the file's name.
        machine: all that a choice depends on besides its key: the processor or GPU, the instruction set, the
            version of the kernels. Another text is another file.

    Attributes:
        path: the file.
    """

    def __init__(self, backend: str, machine: str) -> None:
        digest = hashlib.sha256(machine.encode()).hexdigest()[:16]
        self.machine, self.path = machine, cache_folder() / f"{backend}-{digest}.json"
        self._lock = threading.Lock()
        self._choices: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """The choice kept for ``key``, as JSON gives it back (a tuple comes as a list); None if there is
        none. It is from outside: check it before use."""
        return self.all().get(key)

    def all(self) -> dict[str, Any]:
        """Every choice that is kept."""
        with self._lock:
            if self._choices is None:
                self._choices = self._read()
            return dict(self._choices)

    def put(self, key: str, choice: Any) -> None:
        """Keep a choice, any plain data; what other processes wrote meanwhile is kept too."""
        with self._lock:
            self._choices = self._read() | (self._choices or {}) | {key: choice}
            try:
                self._write(self._choices)
            except OSError as error:
                _log.debug("%s is not written: %s", self.path, error)

    def _read(self) -> dict[str, Any]:
        try:
            data = parse_json(read_regular(self.path))
            if data["machine"] == self.machine and isinstance(data["choices"], dict):
                return data["choices"]
            _log.debug("%s belongs to another machine", self.path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.debug("%s is ignored: %s", self.path, error)
        return {}

    def _write(self, choices: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump({"machine": self.machine, "choices": choices}, stream, indent=1)
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise
