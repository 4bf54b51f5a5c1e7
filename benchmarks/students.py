"""Training steps of MiniLM's students against the dense model: ``python -m benchmarks.students``.

Students have the structures of the recipe ``minilm`` with random factors, which take the time that fitted
ones take. A step is what the recipe's training does: forward without dropout, the loss of the embeddings,
backward, and AdamW, with the embedding tables frozen, on batches of 32 of the recipe's sentences of about one
length. In turns with the dense model.
"""

import argparse
import json
import random
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import minilm
from benchmarks.prepared import prepared, recipe_named
from benchmarks.results import cpu_setting
from benchmarks.turns import Call, measure
from ksurgeon import convert
from ksurgeon.recipes.schema import Recipe
from ksurgeon.rules.schema import Rule
from ksurgeon.train.parameters import freeze, make_optimiser
from ksurgeon.train.settings import make_settings

_BATCH, _BATCHES = 32, 8
Batch = dict[str, Tensor]


def students(recipe: Recipe, names: list[str], example: Batch) -> dict[str, nn.Module]:
    """The dense model, and the recipe's variants of these names."""
    dense = minilm()[0]
    made = {"dense": dense}
    variants = {variant.name: variant for variant in recipe.variants if variant.replace}
    for name in names:
        replace = tuple(part.model_copy(update={"start": "random"}) for part in variants[name].replace)
        made[name] = deepcopy(dense)
        convert(made[name], Rule(name=name, replace=replace), example)
    return made


def step(model: nn.Module, batches: list[Batch], targets: Tensor) -> Call:
    """One step of the training on each batch."""
    with freeze(model, ("embeddings",)):
        optimiser = make_optimiser(model, make_settings(lr=1e-6))
    trained = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)

    def call() -> None:
        for batch, target in zip(batches, targets, strict=True):
            mask = batch["attention_mask"][..., None]
            found = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            loss = 1 - F.cosine_similarity(found, target).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", nargs="*", default=["k+low-rank-50", "monarch-50", "low-rank-50"])
    parser.add_argument("--seconds", type=float, default=30, help="of timing, for each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/students.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    tokenizer: Any = minilm()[1]
    recipe = recipe_named("minilm")
    sentences = prepared(recipe)["sentences"].read_text(encoding="utf-8").splitlines()
    texts = sorted(random.Random(0).sample(sentences, _BATCH * _BATCHES), key=len)
    batches = [
        dict(tokenizer(texts[at : at + _BATCH], padding=True, return_tensors="pt"))
        for at in range(0, len(texts), _BATCH)
    ]
    targets = torch.randn(_BATCHES, _BATCH, 384)
    calls = {
        name: step(model, batches, targets)
        for name, model in students(recipe, given.variants, batches[0]).items()
    }
    clock = time.process_time if given.threads == 1 else time.perf_counter
    times = measure(calls, given.seconds, clock=clock)
    per_second = {name: 1e6 * len(texts) / found["median"] for name, found in times.items()}
    row = {
        "setting": cpu_setting(given.threads),
        "tokens": sum(batch["attention_mask"].numel() for batch in batches),
        "sentences a second": per_second,
        "ratio to dense": {name: value / per_second["dense"] for name, value in per_second.items()},
    }
    print(json.dumps(row, indent=1))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
