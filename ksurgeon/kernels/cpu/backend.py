"""What the ``cpu`` backend declares."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import cpu, reference
from ksurgeon.kernels.backend import Backend, ExportBackend
from ksurgeon.kernels.cache import may_tune
from ksurgeon.kernels.cpu import int8_calls, int8_copy, onnx
from ksurgeon.kernels.cpu.native import library
from ksurgeon.kernels.cpu.ops import chain_inference
from ksurgeon.kernels.cpu.tune import choose, machine, tuner
from ksurgeon.patterns.pattern import Pattern

__all__ = ["CpuBackend", "CpuOperators"]

_TEAMS = {
    "libgomp": "they run on PyTorch's threads (libgomp)",
    "libomp": "they run on PyTorch's threads (libomp, LLVM's or Intel's)",
    "own": "they run on threads of their own, as this PyTorch was built without OpenMP",
}
_COST = (
    "the reference runs instead, with the same results and several times slower on CPU: install a C++ "
    "compiler, then `pip install --force-reinstall --no-deps ksurgeon`"
)


class CpuBackend(Backend):
    """The compiled library. Its functions are called as they are: a method around one takes time."""

    name, device_types = "cpu", ("cpu",)

    apply_chain = staticmethod(cpu.apply_chain)  # type: ignore[assignment]
    at_once = staticmethod(cpu.at_once)  # type: ignore[assignment]
    few_rows = staticmethod(cpu.few_rows)  # type: ignore[assignment]
    beside = staticmethod(cpu.beside)  # type: ignore[assignment]
    apply_int8 = staticmethod(int8_calls.apply_int8)  # type: ignore[assignment]
    int8_at_once = staticmethod(int8_calls.at_once)  # type: ignore[assignment]
    linear_by_copy = staticmethod(int8_copy.linear)  # type: ignore[assignment]

    def why_missing(self, device: torch.device | None = None) -> str:
        return cpu.why_missing()

    def check_environment(self) -> None:
        for name in ("KSURGEON_CPU_LIBRARY", "KSURGEON_CPU_ISA"):
            if os.environ.get(name) and cpu.why_missing():
                raise KsurgeonError(f"{name}={os.environ[name]!r}: {cpu.why_missing()}; unset the variable")

    def for_export(self) -> ExportBackend:
        return CpuOperators()

    def machine(self) -> str:
        return machine()

    def rows(self) -> Sequence[tuple[str, str, str]]:
        if cpu.is_available():
            state = cpu.instruction_set()
            note = f"compiled at installation, instruction set chosen at run time; {_TEAMS[cpu.team()]}"
        else:
            state, note = "[yellow]missing[/]", f"{cpu.why_missing()}; {_COST}"
        tuning = _tuning()
        tuned = "on" if tuning["on"] else "off"
        return [("cpu kernels", state, note), ("tuning", tuned, _tuning_note(tuning))]

    def facts(self) -> Mapping[str, object]:
        there = cpu.is_available()
        return {
            "cpu_kernels": cpu.instruction_set() if there else None,
            "cpu_threads": cpu.team() if there else None,
            "tuning": _tuning(),
        }


class CpuOperators(ExportBackend):
    """The library's operators, in programs that ONNX Runtime runs."""

    name, device_types = "cpu", ("cpu",)

    apply_int8 = staticmethod(int8_calls.apply_int8)  # type: ignore[assignment]
    translations = staticmethod(onnx.translations)

    def apply_chain(
        self,
        x: Tensor,
        factors: Sequence[Tensor],
        dim: int,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        axis = dim % x.dim()
        if axis not in (1, x.dim() - 1) or x.dtype is not torch.float32:
            return reference.apply_chain(x, factors, dim, bias, activation)
        axis = 1 if axis < x.dim() - 1 else -1
        y: Tensor = chain_inference(x, list(factors), bias, axis, activation)
        return y

    def library(self) -> str:
        return str(library()._name)

    def merge_counts(self, patterns: tuple[Pattern, ...], columns: bool) -> tuple[int, ...]:
        return choose(patterns, torch.float32, "columns" if columns else "rows")


def _tuning() -> dict[str, Any]:
    """Whether ways to merge are measured, which classes of products were, and where that is kept."""
    if not cpu.is_available():
        return {"on": False, "cache": None, "measured": {}}
    return {"on": may_tune(), "cache": str(tuner.cache.path), "measured": tuner.cache.all()}


def _tuning_note(tuning: dict[str, Any]) -> str:
    if tuning["cache"] is None:
        return "there is nothing to tune without compiled kernels"
    count = len(tuning["measured"])
    kept = (
        f"{count} class{'es' * (count != 1)} of products measured on this machine, kept in {tuning['cache']}"
    )
    return kept if tuning["on"] else f"KSURGEON_TUNE=0: fixed choices; {kept}"
