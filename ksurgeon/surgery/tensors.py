"""A model's tensors, to and from the files of a folder."""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ksurgeon.errors import FolderError, RecordError, SurgeryError
from ksurgeon.files import parse_json, read_regular, require_regular
from ksurgeon.surgery.sharing import memory_of

__all__ = [
    "TENSOR_FILE",
    "Stored",
    "buffer_dtypes",
    "load_tensors",
    "open_tensors",
    "set_dtype",
    "tensors_of",
]

TENSOR_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
_SHARD = re.compile(r"\w[\w.-]{0,200}\.safetensors")


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, each memory once; the record tells which further names it has (see ``sharing``).

    Raises:
        FolderError: a state that holds anything but plain tensors with values.
        SurgeryError: parameters that are not finite, or buffers with NaN.
    """
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise FolderError(f"{name} is a {type(tensor).__name__}, no tensor; such a state cannot be saved")
        if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized:
            raise FolderError(
                f"{name} is a {type(tensor).__name__} ({tensor.dtype}, {tensor.layout}); only plain dense "
                "tensors can be saved"
            )
        if tensor.numel() and (tensor.is_meta or not tensor.untyped_storage().nbytes()):
            raise FolderError(
                f"{name} has no values here (meta device, offloaded or sharded); bring the whole model into "
                "memory, then save it"
            )
        if seen.setdefault(memory_of(tensor, name), name) != name:
            continue
        whole = tensor.detach().contiguous()
        storage = whole.untyped_storage().data_ptr()
        kept[name] = whole.clone() if storage in storages else whole  # a view of another one's memory
        storages.add(storage)
    if wild := _not_finite(model, kept):
        more = f" and {len(wild) - 3} more" if len(wild) > 3 else ""
        raise SurgeryError(
            f"{', '.join(wild[:3])}{more} {'have' if wild[1:] else 'has'} NaN or Inf; such a model is not "
            "saved, as it would not be loaded: go back to weights from before"
        )
    return kept


class Stored:
    """The open tensor files of a folder: what they hold stays the same when the folder is replaced."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [(file, _opened(file)) for file in files]

    def read(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU.

        Raises:
            RecordError: a file is damaged.
        """
        tensors: dict[str, Tensor] = {}
        for file, stored in self.files:
            try:
                tensors |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            except (SafetensorError, OSError, ValueError, RuntimeError) as error:
                raise _damaged(file, error) from error
        return tensors


def open_tensors(folder: Path) -> Stored:
    """Open all tensor files of a folder.

    Raises:
        RecordError: a file that is missing or damaged.
    """
    return Stored(_tensor_files(folder))


def _opened(file: Path) -> Any:
    try:
        require_regular(file)
        return safe_open(file, framework="pt")
    except FileNotFoundError as error:
        raise RecordError(f"{file} is missing; convert the model again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> RecordError:
    return RecordError(f"{file} is damaged: {error}; convert the model again")


def _tensor_files(folder: Path) -> list[Path]:
    """The file of tensors, or the shards that an index names."""
    index = folder / _INDEX_FILE
    if (folder / TENSOR_FILE).exists() or not index.exists():
        return [folder / TENSOR_FILE]
    try:
        shards = set(parse_json(read_regular(index))["weight_map"].values())
        if strange := [name for name in shards if not _SHARD.fullmatch(name)]:
            raise ValueError(f"{strange[0]!r} is no name of a shard beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{index} is damaged: {error!r}; convert the model again") from error
    return [folder / shard for shard in sorted(shards)]


def buffer_dtypes(model: nn.Module, names: Mapping[str, str], folder: str | Path) -> dict[str, torch.dtype]:
    """Dtypes by name of the buffers that are not part of the state; those that a first run makes are left
    out.

    Raises:
        RecordError: there can be no such buffer, or it cannot have the dtype.
    """
    state, buffers = model.state_dict(), dict(model.named_buffers())
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    dtypes = {}
    for name, spelled in names.items():
        dtype, own = getattr(torch, spelled, None), buffers.get(name)
        known = name not in state and name.rpartition(".")[0] in modules
        if (
            not known
            or not isinstance(dtype, torch.dtype)
            or not (own is None or _may_hold(own.dtype, dtype))
        ):
            raise RecordError(
                f"{folder}: the record has a buffer {name!r} of dtype {spelled!r}, which this "
                f"{type(model).__name__} cannot have; convert the model again"
            )
        if own is not None:
            dtypes[name] = dtype
    return dtypes


def _may_hold(own: torch.dtype, stored: torch.dtype) -> bool:
    """Whether a tensor of a model may have the dtype of a stored one."""
    return own == stored or any(own in kin and stored in kin for kin in (_FLOATING, _COMPLEX))


def _not_finite(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Parameters with entries that are NaN or infinite, and buffers with NaN, whose masks may be infinite."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in (*_FLOATING, *_COMPLEX)
        and bool((~tensor.isfinite() if name in parameters else tensor.isnan()).any())
    ]


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Give the model the tensors, in the dtypes that they have, read from ``folder``.

    Raises:
        RecordError: names, shapes or dtypes that are not those of the model, or entries that are not finite;
            the model is then as it was.
    """
    own = model.state_dict()
    names = {memory_of(t, n): n for n, t in reversed(own.items())}
    wanted = {name: tensor for name, tensor in own.items() if name in set(names.values())}
    made = getattr(model, "_keys_to_ignore_on_save", None) or ()  # transformers: computed when it is built
    problems = [f"{name} is missing" for name in wanted if name not in tensors and name not in made]
    problems += [f"{name} is not part of the model" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems += [
        f"{name} is {str(tensors[name].dtype).removeprefix('torch.')} instead of "
        f"{str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in own.items()
        if name in tensors and not _may_hold(tensor.dtype, tensors[name].dtype)
    ]
    problems += [] if problems else [f"{name} has NaN or Inf" for name in _not_finite(model, tensors)]
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
