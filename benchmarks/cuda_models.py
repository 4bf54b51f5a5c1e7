"""Transformers of K-matrices on a GPU and dense ones: ``python -m benchmarks.cuda_models --json FILE``.

Random weights; every projection of attention and MLP is a K-matrix, or dense. Rows count images or tokens of
a batch.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import results
from benchmarks.cuda import TITLE
from benchmarks.timing import eager
from benchmarks.turns import compared
from ksurgeon.kmatrix.linear import KLinear

DEVICE = "cuda"
Make = Callable[[int, int], nn.Module]


class Shape(NamedTuple):
    """Sizes of a transformer, and what one batch of its inputs is."""

    width: int
    heads: int
    layers: int
    batch: int
    tokens: int
    causal: bool
    unit: str


SHAPES = {
    "ViT-B/16": Shape(768, 12, 12, 128, 197, False, "images"),
    "GPT-2 medium": Shape(1024, 16, 24, 8, 1024, True, "tokens"),
}


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a skip."""

    def __init__(self, shape: Shape, make: Make) -> None:
        super().__init__()
        self.heads, self.causal = shape.heads, shape.causal
        self.norm, self.second_norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.query, self.key, self.value, self.output = (make(shape.width, shape.width) for _ in range(4))
        self.rise, self.fall = make(shape.width, 4 * shape.width), make(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.fall(F.gelu(self.rise(self.second_norm(x))))


def transformer(shape: Shape, make: Make) -> nn.Module:
    """The blocks of a model, without what comes before and after them."""
    return nn.Sequential(*(Block(shape, make) for _ in range(shape.layers)))


def train_step(model: nn.Module, x: Tensor) -> None:
    """Gradients of every parameter."""
    model.zero_grad()
    model(x).square().mean().backward()


def rates(name: str, shape: Shape, compiled: bool) -> list[dict[str, Any]]:
    """Times of one batch through the network of K-matrices and the dense one, forward and for training."""
    forward: dict[str, dict[str, float]] = {}
    training: dict[str, dict[str, float]] = {}
    x = torch.randn(shape.batch, shape.tokens, shape.width, device=DEVICE, dtype=torch.bfloat16)
    for kind_name, kind in (("KLinear", KLinear), ("nn.Linear", nn.Linear)):
        model = transformer(shape, kind).to(DEVICE, torch.bfloat16)
        run = torch.compile(model) if compiled else model
        training[kind_name] = eager(partial(train_step, run), [x])
        model.requires_grad_(False)
        forward[kind_name] = eager(run, [x])
    units = shape.batch * (1 if shape.unit == "images" else shape.tokens)
    case = f"{name}, {shape.unit}, {'compiled' if compiled else 'eager'}"
    return [
        compared("whole model, forward", case, units, forward, {}),
        compared("whole model, training", case, units, training, {}),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also add the figures to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure on")
    done: list[dict[str, Any]] = []
    for (name, shape), compiled in product(SHAPES.items(), (False, True)):
        found = rates(name, shape, compiled)
        done += found
        print("·", found[-1]["case"], flush=True)
        if arguments.json:
            results.add(arguments.json, TITLE, results.gpu_setting(), found)
    results.show(TITLE, done)


if __name__ == "__main__":
    main()
