"""Two models side by side: outputs, parameters, multiplications, latency."""

from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from ksurgeon.errors import InputError
from ksurgeon.find.inputs import ExampleInputs, as_call, call_model, tensors_of
from ksurgeon.find.unchanged import example_run
from ksurgeon.kernels import chosen_backend
from ksurgeon.report.measure import device_name, in_turns, milliseconds, multiplications
from ksurgeon.surgery.sizes import count_parameters

__all__ = ["Comparison", "compare", "show_comparison"]


@dataclass(frozen=True)
class Comparison:
    """Pairs are of the first and the second model.

    ``outputs`` has for each floating output its shape, and the difference in the norm and the largest one,
    relative to the norm and to the largest entry of the first model's. ``decided_alike`` is the share of
    vectors along the last dimension of the first output whose largest entry is the same one. ``modules``
    lists paths at which classes differ. Latency is in milliseconds for the batch.
    """

    outputs: list[dict[str, Any]]
    decided_alike: float | None
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    multiplications: tuple[int, int]
    latency: tuple[float, float]
    batch: int
    device: str
    threads: int
    backend: str
    modules: dict[str, tuple[str, str]]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def compare(first: nn.Module, second: nn.Module, example_inputs: ExampleInputs) -> Comparison:
    """Run both models on the inputs, and in turns for the latency.

    Raises:
        InputError: one of them does not run on the inputs, or they give different things.
    """
    outputs = []
    for model in (first, second):
        with example_run(model):
            outputs.append([t for t in tensors_of(call_model(model, example_inputs)) if _is_number(t)])
    shapes = [[tuple(t.shape) for t in given] for given in outputs]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"the models give outputs of shapes {shapes[0]} and {shapes[1]}; they cannot be compared"
        )
    latency = in_turns(
        lambda: milliseconds(first, example_inputs), lambda: milliseconds(second, example_inputs)
    )
    tensors = tensors_of(as_call(example_inputs))
    device = tensors[0].device if tensors else torch.device("cpu")
    return Comparison(
        outputs=[_difference(a, b) for a, b in zip(*outputs, strict=True)],
        decided_alike=_decided_alike(*(given[0] for given in outputs)) if outputs[0] else None,
        parameters=_both(count_parameters, first, second),
        bytes=_both(lambda model: sum(t.nbytes for t in _stored(model)), first, second),
        multiplications=_both(lambda model: multiplications(model, example_inputs), first, second),
        latency=(median(latency[0]), median(latency[1])),
        batch=tensors[0].shape[0] if tensors and tensors[0].dim() else 1,
        device=device_name(device),
        threads=torch.get_num_threads(),
        backend=chosen_backend(device),
        modules=_modules(first, second),
    )


def _both(count: Any, first: nn.Module, second: nn.Module) -> tuple[int, int]:
    return count(first), count(second)


def _stored(model: nn.Module) -> list[Tensor]:
    tensors = [t for t in model.state_dict().values() if isinstance(t, Tensor)]
    return list({(t.data_ptr(), t.shape): t for t in tensors}.values())


def _is_number(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _difference(a: Tensor, b: Tensor) -> dict[str, Any]:
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    norm, largest = float(a.norm()), float(a.abs().max()) if a.numel() else 0.0
    return {
        "shape": list(a.shape),
        "relative": float((a - b).norm()) / norm if norm else float((a - b).norm()),
        "largest": float((a - b).abs().max()) / (largest or 1.0) if a.numel() else 0.0,
    }


def _decided_alike(a: Tensor, b: Tensor) -> float | None:
    if a.is_complex() or not a.numel() or a.dim() < 2 or a.shape[-1] < 2:
        return None
    return float((a.argmax(-1) == b.argmax(-1)).double().mean())


def _modules(first: nn.Module, second: nn.Module) -> dict[str, tuple[str, str]]:
    """Paths that differ, without what lies below one that does."""
    classes = [{path: type(module).__name__ for path, module in m.named_modules()} for m in (first, second)]
    different: dict[str, tuple[str, str]] = {}
    for path in sorted({*classes[0], *classes[1]}):
        pair = classes[0].get(path, "–"), classes[1].get(path, "–")
        if pair[0] != pair[1] and not any(path.startswith(f"{above}.") for above in different):
            different[path] = pair
    return different


def show_comparison(
    console: Console, names: tuple[str, str], comparison: Comparison, *, everything: bool = False
) -> None:
    """The comparison on the terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(("", *map(escape, names), "second / first")):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for label, pair, shown in (
        ("parameters", comparison.parameters, "{:,}"),
        ("bytes of tensors", comparison.bytes, "{:,}"),
        ("multiplications", comparison.multiplications, "{:,}"),
        (f"latency, batch {comparison.batch}, ms", comparison.latency, "{:.2f}"),
    ):
        ratio = f"{pair[1] / pair[0]:.2f}×" if pair[0] else "–"
        table.add_row(label, shown.format(pair[0]), shown.format(pair[1]), ratio)
    console.print(table)
    outputs = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        title="\nOutputs",
        title_justify="left",
        title_style="bold",
    )
    for number, column in enumerate(("output", "shape", "relative difference", "largest / largest entry")):
        outputs.add_column(column, justify="right" if number > 1 else "left")
    for number, output in enumerate(comparison.outputs):
        shape = " × ".join(map(str, output["shape"]))
        outputs.add_row(str(number), shape, f"{output['relative']:.2g}", f"{output['largest']:.2g}")
    console.print(outputs)
    if comparison.decided_alike is not None:
        console.print(f"largest entry of the first output is the same one for {comparison.decided_alike:.1%}")
    kinds = Counter(f"{a} → {b}" for a, b in comparison.modules.values())
    if kinds:
        console.print("\n[bold]Modules that differ[/]")
    for kind, number in kinds.most_common():
        console.print(Text(f"  {number} × {kind}"))
    if everything:
        for path, (a, b) in comparison.modules.items():
            console.print(Text(f"  {path}: {a} → {b}", style="dim"))
    console.print(
        f"[dim]latency: median of interleaved runs, {comparison.device}, {comparison.threads} "
        f"thread{'s' * (comparison.threads != 1)}, {comparison.backend} kernels[/]",
        highlight=False,
    )
