"""Loads the shared library and describes its structures and numbers to ctypes."""

import ctypes
import importlib
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "Chain",
    "Guard",
    "Step",
    "fast",
    "instruction_set",
    "is_available",
    "library",
    "why_missing",
]

Shape = tuple[int, int, int, int]

ACTIVATIONS: dict[str | None, int] = {
    None: 0,
    "relu": 1,
    "relu6": 2,
    "gelu": 3,
    "gelu_tanh": 4,
    "silu": 5,
    "hardswish": 6,
}
"""``KsActivation`` of chain.h."""

KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""``KsKind`` of chain.h."""


class Step(ctypes.Structure):
    """``KsStep`` of chain.h."""

    _fields_ = [
        ("a", c_int64),
        ("d", c_int64),
        ("b", c_int64),
        ("c", c_int64),
        ("weight", c_void_p),
    ]


class _Guard(ctypes.Structure):
    """``KsGuard`` of chain.h."""

    _fields_ = [
        ("factors", c_int64),
        ("data", c_void_p),
        ("bytes", c_void_p),
        ("whole", c_uint64),
        ("sampled", c_uint64),
    ]


class _Chain(ctypes.Structure):
    """``KsChain`` of chain.h."""

    _fields_ = [
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("widest", c_int64),
        ("weights", c_int64),
        ("steps", c_int64),
        ("step", POINTER(Step)),
        ("guard", c_void_p),
    ]


_SIGNATURES = {
    "ks_isa": (c_char_p, ()),
    "ks_choose": (c_int, (c_char_p,)),
    "ks_spin": (c_int64, (c_int64,)),
    "ks_read": (c_float, (c_void_p, c_int64)),
    "ks_lanes": (c_int64, (c_int,)),
    "ks_size": (c_int64, (POINTER(Step), c_int)),
    "ks_pack": (None, (POINTER(Step), c_void_p, c_void_p, c_int)),
    "ks_unpack": (None, (POINTER(Step), c_void_p, c_void_p, c_int)),
    "ks_guard": (None, (c_void_p,)),
    "ks_changed": (c_int, (c_void_p,)),
    "ks_rows": (c_int, (c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int, c_int, c_int)),
    "ks_columns": (c_int, (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int, c_int, c_int)),
    "ks_backward": (
        None,
        (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int),
    ),
}


def _load() -> tuple[ctypes.CDLL | None, str]:
    folder = Path(__file__).parent
    given = os.environ.get("KSURGEON_CPU_LIBRARY")
    found = [Path(given)] if given else sorted(folder.glob("_chain*.so")) + sorted(folder.glob("_chain*.pyd"))
    if not found:
        return None, f"no compiled library in {folder}: the installation had no C++ compiler"
    try:
        loaded = ctypes.CDLL(str(found[0]))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return None, f"{found[0].name} cannot be loaded: {error}"
    wanted = os.environ.get("KSURGEON_CPU_ISA")
    if wanted and not loaded.ks_choose(wanted.encode()):
        return None, f"KSURGEON_CPU_ISA={wanted!r}: this machine has no such instruction set"
    return loaded, ""


_LIBRARY, _WHY = _load()


def _load_fast() -> Any:
    address = ctypes.cast(library().ks_rows, c_void_p).value
    try:
        module = importlib.import_module("ksurgeon.kernels.cpu._fast")
        module.bind(address, torch.empty_like, torch._C.TensorBase)
    except (ImportError, TypeError):
        return None
    return module


def is_available() -> bool:
    """Whether the library was built and can be loaded."""
    return _LIBRARY is not None


def why_missing() -> str:
    """Why there is no library; empty if there is."""
    return _WHY


def library() -> ctypes.CDLL:
    """The loaded library; only where ``is_available()``."""
    assert _LIBRARY is not None, _WHY
    return _LIBRARY


def instruction_set() -> str:
    """Name of the instruction set in use: "avx512", "avx2" or "portable"."""
    return str(library().ks_isa().decode())


class Guard:
    """Fingerprints of the contents of contiguous tensors; does not keep them alive."""

    __slots__ = ("_data", "_sizes", "_structure", "address")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        count = len(tensors)
        self._data = (c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
        self._sizes = (c_int64 * count)(*(tensor.nbytes for tensor in tensors))
        self._structure = _Guard(count, ctypes.addressof(self._data), ctypes.addressof(self._sizes), 0, 0)
        self.address = ctypes.addressof(self._structure)
        library().ks_guard(self.address)

    def changed(self) -> bool:
        """Whether any of the contents differs from what it was."""
        return bool(library().ks_changed(self.address))


fast: Any = _load_fast() if is_available() else None
"""The extension module that makes one call of all checks of a product with few rows; None where it is not."""


class Chain:
    """A chain in the library's form; keeps the memory of its weights alive."""

    __slots__ = (
        "_guard",
        "_steps",
        "_structure",
        "_weights",
        "address",
        "in_features",
        "is_double",
        "out_features",
        "shapes",
    )

    def __init__(
        self, shapes: Sequence[Shape], weights: Sequence[Tensor], is_double: bool, guard: Guard | None
    ) -> None:
        """``shapes`` are (a, d, b, c); ``weights`` what the called function wants, in the same order."""
        self._weights, self._guard = list(weights), guard
        self.shapes, self.is_double = list(shapes), is_double
        self._steps = (Step * len(shapes))(
            *(Step(*shape, weight.data_ptr()) for shape, weight in zip(shapes, weights, strict=True))
        )
        inputs = [a * c * d for a, d, _, c in shapes]
        outputs = [a * b * d for a, d, b, _ in shapes]
        self.in_features, self.out_features = inputs[0], outputs[-1]
        self._structure = _Chain(
            inputs[0],
            outputs[-1],
            max(inputs + outputs),
            sum(a * d * b * c for a, d, b, c in shapes),
            len(shapes),
            self._steps,
            None if guard is None else guard.address,
        )
        self.address = ctypes.addressof(self._structure)

    @classmethod
    def packed(cls, factors: Sequence[Tensor], guard: Guard | None = None) -> "Chain":
        """A chain for ``ks_rows``: weights of float32 or float64 factors in the order of the kernel."""
        shapes = [_shape(factor) for factor in factors]
        weights = []
        for shape, factor in zip(shapes, factors, strict=True):
            step, is_double = Step(*shape, None), factor.dtype == torch.float64
            factor = factor.contiguous()
            weight = factor.new_empty(library().ks_size(step, is_double))
            library().ks_pack(step, factor.data_ptr(), weight.data_ptr(), is_double)
            weights.append(weight)
        return cls(shapes, weights, factors[0].dtype == torch.float64, guard)

    @classmethod
    def plain(cls, factors: Sequence[Tensor], guard: Guard | None = None) -> "Chain":
        """A chain for ``ks_columns``: weights as they are."""
        weights = [factor.contiguous() for factor in factors]
        return cls([_shape(factor) for factor in factors], weights, factors[0].dtype == torch.float64, guard)


def _shape(factor: Tensor) -> Shape:
    a, d, b, c = factor.shape
    return a, d, b, c
