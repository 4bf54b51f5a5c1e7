"""Stage 1: every replaced layer learns its original's outputs on its original's real inputs, on its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.find.inputs import as_call, evaluating
from ksurgeon.fit import fit_
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.int8 import Int8Matrix
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.kmatrix.rotations import Rotations
from ksurgeon.kmatrix.structured import StructuredMatrix
from ksurgeon.surgery.build import dense_weight, in_parts
from ksurgeon.train.log import Listener
from ksurgeon.train.settings import Settings

__all__ = ["SiteResult", "collect_rows", "descend", "layer_pairs", "least_squares", "train_layers"]

_RATE = 0.02  # of Adam, times the parameter's size
_ROWS = 512  # of a step
_HELD_OUT = 8  # one row of so many tells whether a layer got better
_EXACT = 1e-5

Layer = KLinear | KPointwiseConv


@dataclass(frozen=True)
class SiteResult:
    """Relative error of a layer's outputs on held-out inputs, before and after."""

    path: str
    before: float
    after: float


def layer_pairs(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[Layer, nn.Module]]:
    """The student's K-layers and the dense layers of the teacher at the same paths, of the same sizes."""
    pairs = {}
    for path, module in student.named_modules():
        if not isinstance(module, (KLinear, KPointwiseConv)) or isinstance(module.matrix, Int8Matrix):
            continue  # what is in int8 is not trained
        try:
            original = teacher.get_submodule(path)
        except AttributeError:
            continue
        weight = getattr(original, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(original, nn.Embedding):
            continue
        if tuple(dense_weight(original).shape) == (module.out_features, module.in_features):
            pairs[path] = (module, original)
    return pairs


def train_layers(
    name: str,
    pairs: Mapping[str, tuple[Layer, nn.Module]],
    rows: Mapping[str, Tensor],
    change: "Change",
    results: list[SiteResult],
    listener: Listener,
    is_over: Callable[[], bool],
) -> None:
    """Change every layer, on its own; it keeps its values where they are not bettered on rows held out.

    Args:
        pairs: as ``layer_pairs`` gives them.
        rows: input vectors, as ``collect_rows`` gives them; layers without any stay as they are.
        results: gets one for every layer that was tried.
        is_over: asked before every layer; those that are left then stay as they are.
    """
    listener.stage(name, len(pairs))
    for number, (path, (layer, original)) in enumerate(pairs.items()):
        if is_over():
            listener.note(f"{name}: there was time for {number} of {len(pairs)} layers")
            break
        listener.part(number, path)
        if path in rows:
            results.append(_train_layer(path, layer, original, rows[path], change))
    listener.part(len(pairs), "")


def collect_rows(
    teacher: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Batch], settings: Settings
) -> dict[str, Tensor]:
    """Input vectors of the layers, ``(rows, in_features)``, from runs of the model on the batches."""
    widths = sum(dense_weight(layer).shape[1] for layer in layers.values())
    rows = max(64, min(settings.rows, settings.memory * 2**20 // (4 * widths)))
    batches = list(batches)
    each = max(1, rows // max(len(batches), 1))
    kept: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(settings.seed + number)
        with _watching(layers, kept, each, generator), evaluating(teacher):
            args, kwargs = as_call(batch["inputs"])
            teacher(*args, **kwargs)
    return {path: torch.cat(parts) for path, parts in kept.items()}


@contextmanager
def _watching(
    layers: dict[str, nn.Module], kept: dict[str, list[Tensor]], each: int, generator: torch.Generator
) -> Iterator[None]:
    shared: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}

    def watch(path: str, layer: nn.Module) -> object:
        def hook(_: nn.Module, args: tuple[object, ...]) -> None:
            if not args or not isinstance(args[0], Tensor):
                return
            x = args[0]
            key = (x.data_ptr(), x.shape)
            if key not in shared:  # the input is held too, so that its memory is not given to another
                shared[key] = (x, _sample(_rows_of(layer, x), each, generator))
            kept.setdefault(path, []).append(shared[key][1])

        return layer.register_forward_pre_hook(hook)

    handles = [watch(path, layer) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def _rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.modules.conv._ConvNd):
        x = x.movedim(-len(layer.kernel_size) - 1, -1)
    return x.reshape(-1, x.shape[-1])


def _sample(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if len(rows) <= count:
        return rows.detach().float().clone()
    chosen = torch.randint(len(rows), (count,), generator=generator)
    return rows[chosen.to(rows.device)].detach().float()


class _Problem:
    """One layer, what it is to give, and the inputs on which that is judged.

    Errors are relative to the original's outputs without its bias, mean squares over vectors.
    """

    def __init__(self, layer: Layer, original: nn.Module, rows: Tensor) -> None:
        bias = original.bias
        assert bias is None or isinstance(bias, Tensor)
        self.layer, self.weight = layer, dense_weight(original).float()
        self.bias = None if bias is None else bias.detach().float()
        mask = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        mask[::_HELD_OUT] = False
        self.held = rows[::_HELD_OUT]
        self.rows = rows[mask] if len(rows) > 1 else rows
        self.parameters = [p for p in layer.parameters() if p.requires_grad]
        wanted = nn.functional.linear(self.held, self.weight)
        self._scale = wanted.square().mean().clamp_min(1e-20)

    def error(self, rows: Tensor) -> Tensor:
        """Mean squared error on the rows, differentiable."""
        target = nn.functional.linear(rows, self.weight, self.bias)
        return (_apply(self.layer, rows) - target).square().mean() / self._scale

    @torch.no_grad()
    def judge(self) -> float:
        """Relative error on the rows held out."""
        return float(self.error(self.held).sqrt())

    def keep_if_better(self, change: "Change", before: float) -> float:
        """Change the layer, and change it back if that did not better it; its error then."""
        state = [*self.layer.parameters(), *self.layer.buffers()]
        values = [tensor.detach().clone() for tensor in state]
        change(self)
        after = self.judge()
        if after < before:
            return after
        with torch.no_grad():
            for tensor, value in zip(state, values, strict=True):
                tensor.copy_(value)
        return before


Change = Callable[[_Problem], None]


def _train_layer(path: str, layer: Layer, original: nn.Module, rows: Tensor, change: Change) -> SiteResult:
    problem = _Problem(layer, original, rows)
    before = after = problem.judge()
    if before > _EXACT and problem.parameters:
        after = problem.keep_if_better(change, before)
    return SiteResult(path, before, after)


def least_squares(problem: _Problem) -> None:
    """The fit of least error on the second moment of the inputs; trains the matrix, not the bias."""
    matrix = problem.layer.matrix
    parts = getattr(problem.layer, "parts", 1)
    blocks = problem.rows.double().unflatten(1, (matrix.groups // parts, -1)).movedim(1, 0)
    moment = blocks.mT @ blocks / len(problem.rows)
    fit_(matrix, in_parts(problem.weight, parts), moment=moment[0] if len(moment) == 1 else moment)


def descend(problem: _Problem, steps: int, seed: int) -> None:
    """Steps of Adam on random rows, half a cosine of them."""
    size = [_RATE * _size(p, problem.layer.matrix) for p in problem.parameters]
    optimiser = torch.optim.Adam(
        [{"params": [p], "lr": s, "peak": s} for p, s in zip(problem.parameters, size, strict=True)],
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(seed)
    count = len(problem.rows)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * (0.5 + 0.5 * cos(pi * step / steps))
        chosen = torch.randint(count, (min(_ROWS, count),), generator=generator)
        optimiser.zero_grad()
        problem.error(problem.rows[chosen.to(problem.rows.device)]).backward()
        optimiser.step()
    optimiser.zero_grad()


def _size(parameter: nn.Parameter, matrix: StructuredMatrix) -> float:
    """Root mean square; 1 for angles, as a radian changes a rotation by about its own norm."""
    factors = getattr(matrix, "factors", None)
    if isinstance(factors, Rotations) and parameter is factors.angles:
        return 1.0
    return float(parameter.detach().square().mean().sqrt().clamp_min(1e-8))


def _apply(layer: Layer, rows: Tensor) -> Tensor:
    """The layer on vectors, whatever the layout of its inputs."""
    dtype = next(layer.matrix.parameters()).dtype
    parts = getattr(layer, "parts", 1)
    rows = rows.to(dtype)
    return layer.matrix.affine(torch.cat([rows] * parts, -1), -1, layer.bias).float()
