"""A model's tensors, to and from the files of a folder."""

import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ksurgeon.errors import FolderError, RecordError

__all__ = ["TENSOR_FILE", "load_tensors", "read_tensors", "set_dtype", "tensors_of"]

TENSOR_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, each memory once; tied names are tied again when the model is built.

    Raises:
        FolderError: a state that holds anything but tensors.
    """
    seen: dict[tuple[object, ...], str] = {}
    kept = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise FolderError(f"{name} is a {type(tensor).__name__}, no tensor; such a state cannot be saved")
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if seen.setdefault(key, name) == name:
            kept[name] = tensor.detach().contiguous()
    return kept


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by name, on the CPU.

    Raises:
        RecordError: a file that is missing or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in _tensor_files(folder):
        try:
            with safe_open(file, framework="pt") as stored:
                tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise RecordError(f"{file} is missing; convert the model again") from error
        except (SafetensorError, OSError) as error:
            raise RecordError(f"{file} is damaged: {error}; convert the model again") from error
    return tensors


def _tensor_files(folder: Path) -> list[Path]:
    """The file of tensors, or the shards that an index names."""
    index = folder / _INDEX_FILE
    if (folder / TENSOR_FILE).exists() or not index.exists():
        return [folder / TENSOR_FILE]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{index} is damaged: {error!r}; convert the model again") from error
    return [folder / Path(shard).name for shard in sorted(shards)]


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Give the model the tensors, in the dtypes that they have, read from ``folder``.

    Raises:
        RecordError: names or shapes that are not those of the model.
    """
    own = model.state_dict()
    names = {
        (t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else (n,): n
        for n, t in reversed(own.items())
    }
    wanted = {name: tensor for name, tensor in own.items() if name in set(names.values())}
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of the model" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise RecordError(
            f"{Path(folder) / TENSOR_FILE} does not fit its record: {'; '.join(problems[:3])}{more}; "
            "convert the model again"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in tensors and tensor.dtype != tensors[name].dtype:
                set_dtype(model, name, tensors[name].dtype)
        # Modules such as torchvision's MNASNet read the version of their state.
        state = OrderedDict(tensors)
        state._metadata = getattr(own, "_metadata", {})  # type: ignore[attr-defined]
        model.load_state_dict(state, strict=False)


def set_dtype(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Convert a parameter or buffer in its place."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    current = getattr(owner, attribute)
    current.data = current.data.to(dtype)
