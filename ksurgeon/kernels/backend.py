"""What a backend is: who multiplies chains of factors on some kinds of devices, and what it declares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.kernels import reference
from ksurgeon.kernels.eager import is_special
from ksurgeon.patterns.pattern import Pattern
from ksurgeon.patterns.rotated import patterns_of, sources_of

__all__ = ["Backend", "ExportBackend", "Int8Chain"]

Int8Chain = Sequence[tuple[Tensor, Tensor]]
"""Of every factor in the order applied its values, int8 ``(a, d, b, c)``, and scales ``(a, d, b)``."""

_PLAIN = (Tensor, nn.Parameter)


class Backend:
    """Multiplies by chains of factors on some kinds of devices. What it cannot do it leaves to the reference
    by returning None.

    A subclass writes ``multiply``; everything else has a default. ``multiply`` is asked for plain strided
    tensors of one device and dtype whose sizes fit, and never under autocast, transforms of ``torch.func``,
    forward-mode derivatives, dispatch modes, traces or exports. One that handles all of these itself
    overrides ``apply_chain`` instead.

    Attributes:
        name: what ``KSURGEON_BACKEND`` and ``ksurgeon doctor`` call it, and the entry point if there is one.
        device_types: kinds of devices, as ``torch.device.type``.
        dtypes: what ``multiply`` takes.
        trains: whether autograd can differentiate ``multiply``; it is asked for inference alone otherwise.
        compiles: whether ``torch.compile`` may trace ``multiply``; the reference is compiled otherwise.

    Example:
        >>> @register_backend
        ... class Xpu(Backend):
        ...     name, device_types = "xpu", ("xpu",)
        ...     def why_missing(self, device=None):
        ...         return "" if torch.xpu.is_available() else "there is no XPU"
        ...     def multiply(self, x, factors, dim, bias, activation):
        ...         return None if activation else xpu_kernels.chain(x, factors, dim, bias)
    """

    name = ""
    device_types: tuple[str, ...] = ()
    dtypes: frozenset[torch.dtype] = frozenset({torch.float32})
    trains = False
    compiles = False

    def why_missing(self, device: torch.device | None = None) -> str:
        """Why it does not run on a device, or on any where none is given; empty if it does."""
        return ""

    def check_environment(self) -> None:
        """Raise KsurgeonError if an environment variable asks of it what it cannot do."""

    def multiply(
        self, x: Tensor, factors: tuple[Tensor, ...], dim: int, bias: Tensor | None, activation: str | None
    ) -> Tensor | None:
        """``kernels.apply_chain`` of these arguments, or None if this product is left to the reference.

        Args:
            x: the vectors, along dimension ``dim``.
            factors: of shape ``(a, d, b, c)`` in the order they are applied; several may be merged, as
                ``ksurgeon.patterns.merge`` does.
            dim: counts from the front or from the end.
            bias: ``(out_features,)``.
            activation: a name of ``kernels.activation.ACTIVATIONS``.
        """
        return None

    def apply_chain(
        self,
        x: Tensor,
        factors: Sequence[Tensor],
        dim: int,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """The product, by ``multiply`` where what is declared allows it, else by the reference."""
        if self._takes(x, factors, dim, bias):
            y = self.multiply(x, tuple(factors), dim, bias, activation)
            if y is not None:
                return y
        return reference.apply_chain(x, factors, dim, bias, activation)

    def _takes(self, x: Tensor, factors: Sequence[Tensor], dim: int, bias: Tensor | None) -> bool:
        compiling = torch.compiler.is_compiling()
        if torch.compiler.is_exporting() or (not self.compiles if compiling else is_special()):
            return False
        if x.dtype not in self.dtypes or x.layout is not torch.strided:
            return False
        tensors = [x, *sources_of(factors), *(() if bias is None else (bias,))]
        if not all([t.dtype is x.dtype and t.device == x.device for t in tensors]):
            return False
        if not compiling and not all([type(t) in _PLAIN for t in tensors]):
            return False
        if not self.trains and torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
            return False
        patterns = patterns_of(factors)
        sizes = [pattern.out_features for pattern in patterns]
        fits = [pattern.in_features for pattern in patterns] == [x.shape[dim], *sizes[:-1]]
        return fits and (bias is None or bias.shape == (sizes[-1],))

    # What follows makes a backend faster, or lets it do more. None leaves it to ``apply_chain`` or to the
    # reference. Nobody asks for a short cut before ``apply_chain`` was asked for on one of its devices.

    def at_once(
        self, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None, dim: int, activation: str | None
    ) -> Tensor | None:
        """``apply_chain`` if it can be had without looking further: a short cut past the Python of layers,
        which takes as long as a small product. It is asked for tensors of any kind, device and size, and
        checks everything itself; never while a layer is being compiled."""
        return None

    def few_rows(self, x: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
        """``apply_chain`` along the last dimension of at most eight rows, where it beats a dense product of
        PyTorch; ``ksurgeon.prepack`` lets dense layers ask."""
        return None

    def beside(
        self, x: Tensor, factors: Sequence[Tensor], side: Sequence[Tensor], bias: Tensor | None
    ) -> Tensor | None:
        """``apply_chain(x, factors, -1, bias) + apply_chain(x, side, -1)`` with gradients, as one product."""
        return None

    def apply_int8(
        self,
        x: Tensor,
        first: Int8Chain,
        second: Int8Chain,
        bias: Tensor | None,
        activation: str | None,
        dim: int,
    ) -> Tensor | None:
        """``kernels.int8.apply_int8`` of these arguments; autocast has been looked at."""
        return None

    def int8_at_once(
        self, x: Tensor, tensors: tuple[Tensor, ...], bias: Tensor | None, dim: int, activation: str | None
    ) -> Tensor | None:
        """What ``at_once`` is, for int8 factors: ``tensors`` are values and scales in turns."""
        return None

    def linear_by_copy(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """``F.linear`` of plain tensors of one dtype and device by an int8 copy of the weight, without
        gradients."""
        return None

    def for_export(self) -> "ExportBackend | None":
        """What its products are in exported programs that run by its kernels; None if there are none."""
        return None

    # What it tells of itself.

    def machine(self) -> str:
        """All that the times of its products depend on besides processor and device: instruction set, version
        of the kernels. Measurements are kept by it."""
        return ""

    def about(self, device: torch.device) -> str:
        """What ``ksurgeon doctor`` says of it beside a device."""
        return self.why_missing(device)

    def rows(self) -> Sequence[tuple[str, str, str]]:
        """Rows of ``ksurgeon doctor``: what, how it is, a note, with rich's markup."""
        from rich.markup import escape

        missing = self.why_missing()
        note = escape(missing) or f"for tensors on {', '.join(self.device_types)}"
        return [(f"{self.name} kernels", "[yellow]missing[/]" if missing else "there", note)]

    def facts(self) -> Mapping[str, object]:
        """What ``ksurgeon doctor --json`` says besides, by keys of its own."""
        return {}


class ExportBackend(Backend):
    """A backend whose products are operators that another runtime finds in a library."""

    def library(self) -> str:
        """The file of the library of operators for ONNX Runtime."""
        raise NotImplementedError

    def translations(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """What makes a node of ONNX of each operator, for ``custom_translation_table``."""
        raise NotImplementedError

    def merge_counts(self, patterns: tuple[Pattern, ...], columns: bool) -> tuple[int, ...]:
        """How many neighbouring factors each to multiply out beforehand, as ``merge_counts`` takes it, for
        many vectors in rows, or in columns."""
        return (1,) * len(patterns)
