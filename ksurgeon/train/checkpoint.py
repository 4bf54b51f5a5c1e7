"""Checkpoints: everything that a training needs to go on as if nothing had been, all or nothing on disk."""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ksurgeon.errors import TrainingError
from ksurgeon.files import parse_json, read_regular, require_regular
from ksurgeon.surgery.folders import written_whole

__all__ = [
    "Checkpoints",
    "Saved",
    "model_state",
    "optimiser_state",
    "random_state",
    "restore",
    "restore_weights",
    "seed_all",
    "set_random_state",
]

_TENSORS, _PLAIN = "state.safetensors", "state.json"
_LARGEST = 2**28
_OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)
_LENIENT = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)

Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and plain data."""


class Checkpoints:
    """A folder of checkpoints, ``step-NNNNNNNN``, of which the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Path:
        """Write a checkpoint; the earlier ones go when it is whole, and stay if it cannot be written.

        Raises:
            FolderError: the disk is full, or the folder cannot be written.
        """
        place = self.folder / f"step-{step:08d}"
        with written_whole(place) as temporary:
            save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, temporary / _TENSORS)
            (temporary / _PLAIN).write_text(json.dumps(plain), encoding="utf-8")
        for old in self._whole()[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        for left in self.folder.glob(".step-*"):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        return place

    def last(self) -> Saved | None:
        """The newest whole checkpoint; None if there is none.

        Raises:
            TrainingError: all there are damaged.
        """
        failure = None
        for place in reversed(self._whole()):
            try:
                plain = parse_json(read_regular(place / _PLAIN, _LARGEST))
                require_regular(place / _TENSORS)
                with safe_open(place / _TENSORS, framework="pt") as stored:
                    return {name: stored.get_tensor(name) for name in stored.keys()}, plain  # noqa: SIM118
            except (OSError, ValueError, SafetensorError) as error:
                failure = f"{place} is damaged: {error}"
        if failure:
            raise TrainingError(f"{failure}; remove {self.folder} to start from the beginning")
        return None

    def exist(self) -> bool:
        """Whether there is a whole checkpoint."""
        return bool(self._whole())

    def remove(self) -> None:
        """Remove all checkpoints: the training is over, or begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        return sorted(place for place in self.folder.glob("step-*") if (place / _PLAIN).is_file())


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state on the CPU, whichever way the model is distributed; to be called by all processes."""
    state: dict[str, Any] = get_model_state_dict(model, options=_OPTIONS)
    return state


def optimiser_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> Saved:
    """The optimiser's whole state by the names of the parameters; to be called by all processes."""
    whole: dict[str, Any] = get_optimizer_state_dict(model, optimiser, options=_OPTIONS)
    tensors = {
        f"{key}.{name}": value for name, state in whole["state"].items() for key, value in state.items()
    }
    return tensors, {"groups": whole["param_groups"]}


def restore(
    model: nn.Module, optimiser: torch.optim.Optimizer, weights: dict[str, Tensor], optimiser_saved: Saved
) -> None:
    """Set model and optimiser to what ``model_state`` and ``optimiser_state`` gave.

    Parameters that never had a gradient have no state of the optimiser, and get none.

    Raises:
        TrainingError: the checkpoint is of another model.
    """
    try:
        set_model_state_dict(model, dict[str, Any](weights), options=_OPTIONS)
        tensors, plain = optimiser_saved
        state: dict[str, Any] = {}
        for place, value in tensors.items():
            key, _, name = place.partition(".")
            state.setdefault(name, {})[key] = value
        fused = optimiser.param_groups[0]["fused"]  # what suits this machine, whatever was saved
        groups = [{**group, "fused": fused} for group in plain["groups"]]
        whole: dict[str, Any] = {"state": state, "param_groups": groups}
        set_optimizer_state_dict(model, optimiser, whole, options=_LENIENT)
    except (RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()
        raise TrainingError(
            f"the checkpoint belongs to another model or other settings: {' '.join(first[:2])}; begin anew "
            "without --resume"
        ) from error
    for name, parameter in model.named_parameters():
        if name.removeprefix("module.") not in state:  # as a pooler's that no loss looks at
            optimiser.state.pop(parameter, None)


def restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set the parameters that are named, and leave all others."""
    set_model_state_dict(model, dict[str, Any](weights), options=_LENIENT)


def random_state() -> Saved:
    """State of PyTorch's, Python's and NumPy's random numbers."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors["python"] = torch.tensor(numbers, dtype=torch.int64)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    plain = {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}
    return tensors, plain


def seed_all(seed: int) -> None:
    """Begin PyTorch's, Python's and NumPy's random numbers anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def set_random_state(saved: Saved) -> None:
    """Set the random numbers to what ``random_state`` gave."""
    tensors, plain = saved
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
