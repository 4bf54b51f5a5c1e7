"""Transformers of K-matrices on a GPU and dense ones: ``python -m benchmarks.cuda_models --json FILE``."""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import eager
from ksurgeon.kmatrix.linear import KLinear

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


def rates(shape: Shape, kind: type[nn.Module], compiled: bool, device: str) -> dict[str, float]:
    """Units a second, for inference and for training."""
    model = transformer(shape, kind).to(device, torch.bfloat16)
    x = torch.randn(shape.batch, shape.tokens, shape.width, device=device, dtype=torch.bfloat16)
    units = shape.batch * (1 if shape.unit == "images" else shape.tokens)
    run = torch.compile(model) if compiled else model
    training = units / eager(partial(train_step, run), [x]) * 1e6
    model.requires_grad_(False)
    return {"forward": units / eager(run, [x]) * 1e6, "training": training}


def main() -> None:
    os.environ.setdefault("KSURGEON_BACKEND", "cuda")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to measure on")
    results: list[dict[str, object]] = []
    for name, shape in SHAPES.items():
        for compiled in (False, True):
            for kind in (nn.Linear, KLinear):
                found = rates(shape, kind, compiled, "cuda")
                row = {
                    "model": name,
                    "layers": kind.__name__,
                    "compiled": compiled,
                    "unit": shape.unit,
                    **found,
                }
                results.append(row)
                print(json.dumps(row), flush=True)
                if arguments.json:
                    setting = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
                    arguments.json.write_text(json.dumps(setting | {"rates": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
