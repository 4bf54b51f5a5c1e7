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

from ksurgeon.kernels.cpu.openmp import use_openmp
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.torch_private import TensorBase

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "Chain",
    "ChainStructure",
    "Guard",
    "Step",
    "computes",
    "fast",
    "instruction_set",
    "is_available",
    "library",
    "team",
    "why_missing",
]

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

KINDS = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.complex64: 4,
    torch.complex128: 5,
    torch.int8: 6,
}
"""``KsKind`` of chain.h."""


class Step(ctypes.Structure):
    """``KsStep`` of chain.h."""

    _fields_ = [
        ("a", c_int64),
        ("d", c_int64),
        ("b", c_int64),
        ("c", c_int64),
        ("weight", c_void_p),
        ("planes", c_int64),
    ]


class _Guard(ctypes.Structure):
    """``KsGuard`` of chain.h."""

    _fields_ = [
        ("factors", c_int64),
        ("data", c_void_p),
        ("bytes", c_void_p),
        ("comparison", c_int64),
        ("calls", c_int64),
        ("whole", c_uint64),
        ("part", c_uint64 * 64),
    ]


class ChainStructure(ctypes.Structure):
    """``KsChain`` of chain.h."""

    _fields_ = [
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("widest", c_int64),
        ("weights", c_int64),
        ("steps", c_int64),
        ("packed", c_int64),
        ("step", POINTER(Step)),
        ("guard", c_void_p),
        ("quads", c_void_p),
    ]


_SIGNATURES = {
    "ks_isa": (c_char_p, ()),
    "ks_choose": (c_int, (c_char_p,)),
    "ks_spin": (c_int64, (c_int64,)),
    "ks_read": (c_float, (c_void_p, c_int64)),
    "ks_team": (c_int, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "ks_shared": (None, (c_int64, c_int64)),
    "ks_on_time": (c_int, (c_int,)),
    "ks_insist": (None, (c_int,)),
    "ks_lanes": (c_int64, (c_int,)),
    "ks_computes": (c_int, (c_int,)),
    "ks_size": (c_int64, (POINTER(Step), c_int)),
    "ks_pack": (None, (POINTER(Step), c_void_p, c_void_p, c_int)),
    "ks_unpack": (None, (POINTER(Step), c_void_p, c_void_p, c_int)),
    "ks_guard": (None, (c_void_p,)),
    "ks_changed": (c_int, (c_void_p,)),
    "ks_rows": (c_int, (c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int, c_int, c_int)),
    "ks_columns": (c_int, (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int, c_int, c_int)),
    "ks_backward": (
        c_int,
        (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int),
    ),
}


_ABI = 7  # of ks_abi in api.cpp


def _load() -> tuple[ctypes.CDLL | None, str]:
    folder = Path(__file__).parent
    given = os.environ.get("KSURGEON_CPU_LIBRARY")
    found = [Path(given)] if given else sorted(folder.glob("_chain*.so")) + sorted(folder.glob("_chain*.pyd"))
    if not found:
        return None, f"no compiled library in {folder}: the installation had no C++ compiler"
    try:
        loaded = ctypes.CDLL(str(found[0]))
        if loaded.ks_abi() != _ABI:
            return None, f"{found[0].name} was compiled from other sources than these: install ksurgeon again"
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
_TEAM = use_openmp(_LIBRARY) if _LIBRARY is not None else "own"


def _load_fast() -> Any:
    functions = library().ks_rows, library().ks_columns, library().ks_changed
    try:
        module = importlib.import_module("ksurgeon.kernels.cpu._fast")
        exchange = torch.Tensor.__dlpack_c_exchange_api__
        addresses = [ctypes.cast(function, c_void_p).value for function in functions]
        types = TensorBase, torch.Tensor, torch.nn.Parameter
        module.bind(*addresses, torch.empty_like, *types, exchange)
    except (ImportError, TypeError, AttributeError, ValueError):
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


def team() -> str:
    """Whose threads share a product: "libgomp", "libomp", or "own"."""
    return _TEAM


def instruction_set() -> str:
    """Name of the instruction set in use: "avx512_bf16", "avx512_vnni", "avx512", "avx2" or "portable"."""
    return str(library().ks_isa().decode())


def computes(dtype: torch.dtype) -> bool:
    """Whether the library multiplies rows of that dtype as they are, with weights packed in it.

    Half precision is computed in float32 otherwise.
    """
    return bool(library().ks_computes(KINDS[dtype]))


class Guard:
    """Fingerprints of the contents of contiguous tensors; keeps their memory, not the
    tensors themselves.

    Args:
        comparison: 0, 1 or 2: nothing, a part, or everything is compared with few rows (``KsComparison``).
    """

    __slots__ = ("_data", "_sizes", "_structure", "_tensors", "address", "comparison")

    def __init__(self, tensors: Sequence[Tensor], comparison: int = 2) -> None:
        tensors = [tensor.detach() for tensor in tensors]  # whose memory no other thread can exchange
        count, self.comparison, self._tensors = len(tensors), comparison, tensors
        self._data = (c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
        self._sizes = (c_int64 * count)(*(tensor.nbytes for tensor in tensors))
        self._structure = _Guard(
            count, ctypes.addressof(self._data), ctypes.addressof(self._sizes), comparison
        )
        self.address = ctypes.addressof(self._structure)
        library().ks_guard(self.address)

    def anew(self) -> "Guard":
        """One for what the tensors hold now."""
        return Guard(self._tensors, self.comparison)

    def changed(self) -> bool:
        """Whether any of the contents differs from what it was."""
        return bool(library().ks_changed(self.address))


fast: Any = _load_fast() if is_available() else None
"""The extension module that makes one call of all checks of a small product; None where it is not."""


class Chain:
    """A chain in the library's form; keeps the memory of its weights alive.

    Weights are real or complex numbers in single or double precision, or, packed, bfloat16 where the library
    ``computes`` in it.

    Attributes:
        steps: of the library, in order: one for each real factor; for a complex one those of the real and of
            the imaginary parts of its outputs, which take the real and the imaginary parts of its inputs.
    """

    __slots__ = (
        "_guard",
        "_kind",
        "_structure",
        "_weights",
        "address",
        "in_features",
        "is_double",
        "out_features",
        "steps",
    )

    def __init__(self, factors: Sequence[Tensor], pack: bool, guard: Guard | None = None) -> None:
        patterns = [Pattern.of(factor.shape) for factor in factors]
        planes = 2 if factors[0].is_complex() else 1
        self._guard, self.is_double = guard, factors[0].dtype in (torch.float64, torch.complex128)
        self._kind = KINDS[torch.float64] if self.is_double else KINDS[torch.float32]
        if factors[0].dtype is torch.bfloat16:
            self._kind = KINDS[torch.bfloat16]
        self._weights = [part for factor in factors for part in as_steps(factor)]
        shapes = [tuple(weight.shape) for weight in self._weights]
        if pack:
            self._weights = [self._packed(weight, planes) for weight in self._weights]
        self.steps = (Step * len(shapes))(
            *(
                Step(*shape, weight.data_ptr(), planes)
                for shape, weight in zip(shapes, self._weights, strict=True)
            )
        )
        self.in_features, self.out_features = patterns[0].in_features, patterns[-1].out_features
        self._structure = ChainStructure(
            self.in_features,
            self.out_features,
            max(max(pattern.in_features, pattern.out_features) for pattern in patterns),
            planes**2 * sum(pattern.numel for pattern in patterns),
            len(factors),
            self._kind,
            self.steps,
            None if guard is None else guard.address,
            None,
        )
        self.address = ctypes.addressof(self._structure)

    def _packed(self, weight: Tensor, planes: int) -> Tensor:
        step = Step(*weight.shape, None, planes)
        packed = weight.new_empty(library().ks_size(step, self._kind))
        library().ks_pack(step, weight.data_ptr(), packed.data_ptr(), self._kind)
        return packed

    @classmethod
    def packed(cls, factors: Sequence[Tensor], guard: Guard | None = None) -> "Chain":
        """A chain for ``ks_rows``: weights in the order of the kernel."""
        return cls(factors, True, guard)

    @classmethod
    def plain(cls, factors: Sequence[Tensor], guard: Guard | None = None) -> "Chain":
        """A chain for ``ks_columns``: weights as they are."""
        return cls(factors, False, guard)

    def gradients(self, of_steps: Sequence[Tensor]) -> list[Tensor]:
        """Those of the factors from those of the steps, the latter packed."""
        plain = []
        for step, packed in zip(self.steps, of_steps, strict=True):
            plain.append(packed.new_empty(step.a, step.d, step.b, step.c))
            library().ks_unpack(step, packed.data_ptr(), plain[-1].data_ptr(), self.is_double)
        if self.steps[0].planes == 1:
            return plain
        return [_of_complex(real, imag) for real, imag in zip(plain[::2], plain[1::2], strict=True)]


def as_steps(factor: Tensor) -> list[Tensor]:
    """The weights of the steps of a factor, contiguous."""
    if not factor.is_complex():
        return [factor.contiguous()]
    real, imag = factor.resolve_conj().real, factor.resolve_conj().imag
    return [torch.cat([real, -imag], -1), torch.cat([imag, real], -1)]


def _of_complex(of_real: Tensor, of_imag: Tensor) -> Tensor:
    """The gradient of a complex factor: the adjoint of ``as_steps``."""
    (of_real, minus), (plus, second) = of_real.chunk(2, -1), of_imag.chunk(2, -1)
    return torch.complex(of_real + second, plus - minus)
