"""What a planner has found so far, kept in the cache so that an interrupted search goes on where it was."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from ksurgeon.kernels.cache import cache_folder
from ksurgeon.planner.options import SiteOptions

__all__ = ["State", "fingerprint", "open_state"]

_log = logging.getLogger(__name__)
_SAMPLE, _EVERY, _ROOM = 4096, 2.0, 4 * 2**30
_STATE, _CALIBRATION = "state.json", "calibration.safetensors"
_VERSION = 4


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = _VERSION
    sites: dict[str, SiteOptions] = {}


class State:
    """Options of the sites that are done, in memory and, with a folder, on disk.

    Attributes:
        folder: where it is kept; None for nowhere.
        sites: by path.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self._written = folder, 0.0
        self.sites: dict[str, SiteOptions] = _read(folder / _STATE) if folder is not None else {}

    @property
    def calibration_file(self) -> Path | None:
        """Where the calibration is kept."""
        return None if self.folder is None else self.folder / _CALIBRATION

    def keep(self, now: bool = False) -> None:
        """Write what is known, every two seconds at most unless it is to be now."""
        if self.folder is None or (not now and time.monotonic() - self._written < _EVERY):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{_STATE}.", dir=self.folder)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    stream.write(_Kept(sites=self.sites).model_dump_json())
                os.replace(name, self.folder / _STATE)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            _log.debug("the planner's state is not kept: %s", error)
        self._written = time.monotonic()


def open_state(key: Iterable[object], keep: bool = True) -> State:
    """The state of searches of this key, the oldest others making room for it."""
    if not keep:
        return State(None)
    digest = hashlib.sha256(json.dumps([_VERSION, *map(str, key)]).encode()).hexdigest()[:20]
    plans = cache_folder() / "plans"
    folder = plans / digest
    _make_room(plans, folder)
    return State(folder)


def fingerprint(model: nn.Module) -> str:
    """Of the architecture and of a sample of every tensor."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        part = flat[:: max(1, flat.numel() // _SAMPLE)].contiguous().cpu()
        digest.update(part.view(torch.uint8).numpy().tobytes() if part.numel() else b"")
    return digest.hexdigest()


def _read(file: Path) -> dict[str, SiteOptions]:
    try:
        kept = _Kept.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError, ValueError) as error:
        _log.debug("%s is ignored: %s", file, error)
        return {}
    if kept.version != _VERSION:
        return {}
    for site in kept.sites.values():
        for option in site.options:  # times are kept elsewhere, and what they rule out depends on the budget
            option.latency = option.refused = None
    return kept.sites


def _make_room(plans: Path, current: Path) -> None:
    """Delete the oldest folders until those that are left take four gigabytes at most."""
    try:
        folders = sorted(
            (folder for folder in plans.iterdir() if folder.is_dir() and folder != current),
            key=lambda folder: folder.stat().st_mtime,
            reverse=True,
        )
        taken = 0
        for folder in folders:
            taken += sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            if taken > _ROOM:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
