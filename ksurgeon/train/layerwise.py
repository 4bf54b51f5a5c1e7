"""Stage 1: every replaced layer learns its original's outputs on its original's real inputs, on its own."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import cos, pi

import torch
from torch import Tensor, nn

from ksurgeon.find.inputs import as_call, evaluating
from ksurgeon.kmatrix.conv import KPointwiseConv
from ksurgeon.kmatrix.fit import fit_
from ksurgeon.kmatrix.linear import KLinear
from ksurgeon.surgery.build import dense_weight, in_parts
from ksurgeon.train.log import Listener
from ksurgeon.train.parameters import balance_factors
from ksurgeon.train.preprocess import Batch
from ksurgeon.train.settings import Settings

__all__ = ["SiteResult", "collect_rows", "layer_pairs", "train_layers"]

_RATE = 0.02  # of Adam, times the factors' root mean square
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
        if not isinstance(module, (KLinear, KPointwiseConv)):
            continue
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
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    settings: Settings,
    listener: Listener,
    sites: Collection[str] | None = None,
) -> list[SiteResult]:
    """Train every replaced layer for some steps on inputs that one run of the teacher gave it.

    A layer keeps its values where they are not bettered on inputs that were held out. What is kept of the
    inputs stays below ``settings.memory``; layers that get the same input share it. ``sites`` are the paths
    of those to train, all if left out.
    """
    pairs = layer_pairs(student, teacher)
    if sites is not None:
        pairs = {path: pair for path, pair in pairs.items() if path in sites}
    if not pairs or not (settings.layerwise or settings.least_squares):
        return []
    rows = collect_rows(teacher, {path: pair for path, (_, pair) in pairs.items()}, batches, settings)
    listener.stage("layer by layer", len(pairs))
    results = []
    for number, (path, (layer, original)) in enumerate(pairs.items()):
        listener.part(number, path)
        if path in rows:
            results.append(_train_layer(path, layer, original, rows[path], settings))
    listener.part(len(pairs), "")
    balance_factors(student)
    return results


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

    def keep_if_better(self, change: Callable[["_Problem"], None], before: float) -> float:
        """Change the layer, and change it back if that did not better it; its error then."""
        values = [p.detach().clone() for p in self.parameters]
        change(self)
        after = self.judge()
        if after < before:
            return after
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)
        return before


def _train_layer(
    path: str, layer: Layer, original: nn.Module, rows: Tensor, settings: Settings
) -> SiteResult:
    problem = _Problem(layer, original, rows)
    before = after = problem.judge()
    if before > _EXACT and problem.parameters:
        if settings.least_squares:
            after = problem.keep_if_better(_least_squares, after)
        if settings.layerwise:
            after = problem.keep_if_better(partial(_descend, settings=settings), after)
    return SiteResult(path, before, after)


def _least_squares(problem: _Problem) -> None:
    """The fit of least error on the second moment of the inputs; trains the matrix, not the bias."""
    matrix = problem.layer.matrix
    parts = getattr(problem.layer, "parts", 1)
    blocks = problem.rows.double().unflatten(1, (matrix.groups // parts, -1)).movedim(1, 0)
    moment = blocks.mT @ blocks / len(problem.rows)
    fit_(matrix, in_parts(problem.weight, parts), moment=moment[0] if len(moment) == 1 else moment)


def _descend(problem: _Problem, settings: Settings) -> None:
    """Steps of Adam on random rows, half a cosine of them."""
    size = [_RATE * float(p.detach().square().mean().sqrt().clamp_min(1e-8)) for p in problem.parameters]
    optimiser = torch.optim.Adam(
        [{"params": [p], "lr": s, "peak": s} for p, s in zip(problem.parameters, size, strict=True)],
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(settings.seed)
    count = len(problem.rows)
    for step in range(settings.layerwise):
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * (0.5 + 0.5 * cos(pi * step / settings.layerwise))
        chosen = torch.randint(count, (min(_ROWS, count),), generator=generator)
        optimiser.zero_grad()
        problem.error(problem.rows[chosen.to(problem.rows.device)]).backward()
        optimiser.step()
    optimiser.zero_grad()


def _apply(layer: Layer, rows: Tensor) -> Tensor:
    """The layer on vectors, without the activation that it may have taken over."""
    dtype = layer.matrix.factors[0].dtype
    parts = getattr(layer, "parts", 1)
    rows = rows.to(dtype)
    return layer.matrix.affine(torch.cat([rows] * parts, -1), -1, layer.bias).float()
