"""Whole models with one thread and with all, dense and converted: ``python -m benchmarks.threads``.

The four of a case run in turns in one process. "beside a busy core" repeats it with all threads while another
process keeps one core busy: what a converted model loses there is compared with what the dense one loses.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import results
from benchmarks.quiet import check_quiet
from benchmarks.turns import compared, measure
from ksurgeon import convert
from ksurgeon.find.inputs import call_model

TITLE = "Threads: whole models on CPU"
Inputs = Callable[[int], Any]
Case = tuple[nn.Module, nn.Module, Inputs]


def minilm(folder: Path | None) -> Case:
    """MiniLM-L6 planned at half of its linear parameters, on STS-B's sentences."""
    from transformers import AutoModel

    from benchmarks.data import minilm as dense_minilm
    from benchmarks.plan import sentences
    from benchmarks.sentences import converted

    dense, tokenizer = dense_minilm()
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            folder = Path(made) / "half"
            converted(None, "params=0.5", folder)
        half = AutoModel.from_pretrained(folder).eval()
    texts = sentences()
    return (
        dense,
        half,
        lambda batch: dict(tokenizer(texts[:batch], padding=True, return_tensors="pt")),
    )


def resnet50() -> Case:
    """What ``make demo`` makes."""
    import timm

    return _by_rule(timm.create_model("resnet50"), "shuffle", lambda batch: torch.randn(batch, 3, 224, 224))


def vit_base() -> Case:
    """ViT-B/16 by the rule ``linear``."""
    import timm

    return _by_rule(
        timm.create_model("vit_base_patch16_224"), "linear", lambda batch: torch.randn(batch, 3, 224, 224)
    )


def gpt2() -> Case:
    """GPT-2 (124 million parameters) by the rule ``linear``, on 64 tokens."""
    from benchmarks.generate import gpt2 as dense_gpt2

    return _by_rule(dense_gpt2(), "linear", lambda batch: {"input_ids": torch.randint(10, 1000, (batch, 64))})


def _by_rule(dense: nn.Module, rule: str, inputs: Inputs) -> Case:
    dense = dense.eval()
    model = copy.deepcopy(dense)
    convert(model, rule, inputs(1))
    return dense, model, inputs


BATCHES = {"minilm": (1, 32), "resnet50": (1, 32), "gpt2": (1, 32), "vit_base": (1, 8)}


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as burner:
        try:
            yield
        finally:
            burner.kill()


def run(case: str, models: Case, batch: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Two rows: on the quiet machine, and beside a busy core."""
    dense, model, make = models
    inputs = make(batch)
    calls = {
        f"converted, {threads} threads": (model, threads),
        "converted, one thread": (model, 1),
        "dense, one thread": (dense, 1),
        f"dense, {threads} threads": (dense, threads),
    }

    def times(names: list[str]) -> dict[str, dict[str, float]]:
        chosen = {name: calls[name] for name in names}
        return measure(
            {name: lambda m=m: call_model(m, inputs) for name, (m, _) in chosen.items()},  # type: ignore[misc]
            seconds,
            {name: lambda n=n: torch.set_num_threads(n) for name, (_, n) in chosen.items()},  # type: ignore[misc]
        )

    ours, one, dense_one, dense_all = calls
    with torch.inference_mode():
        quiet = times(list(calls))
        with busy_core():
            busy = times([ours, dense_all])
    torch.set_num_threads(threads)
    single = quiet[dense_one]["median"] / quiet[one]["median"]
    several = quiet[dense_all]["median"] / quiet[ours]["median"]
    row = compared("quiet", case, batch, quiet, {one: 1, dense_all: max(1, 0.75 * single)})
    row["ratio, one thread"] = single
    return [row, compared("beside a busy core", case, batch, busy, {dense_all: 0.8 * several})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also add the figures to this file")
    parser.add_argument("--only", nargs="+", choices=tuple(BATCHES), default=tuple(BATCHES), metavar="MODEL")
    parser.add_argument(
        "--minilm", type=Path, metavar="FOLDER", help="a converted MiniLM instead of a new plan"
    )
    parser.add_argument("--seconds", type=float, default=8, help="per candidate")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, too")
    given = parser.parse_args()
    torch.manual_seed(0)
    share = check_quiet(given.busy)
    torch.set_num_threads(given.threads)
    setting = results.cpu_setting(given.threads)
    done: list[dict[str, Any]] = []
    makers = {
        "minilm": partial(minilm, given.minilm),
        "resnet50": resnet50,
        "gpt2": gpt2,
        "vit_base": vit_base,
    }
    for name in given.only:
        models = makers[name]()
        for batch in BATCHES[name]:
            found = run(name, models, batch, given.threads, given.seconds)
            rows = [row | {"busy before": share} for row in found]
            done += rows
            results.show(f"{name}, batch {batch}", rows)
            if given.json:
                results.add(given.json, TITLE, setting, rows)
    results.show(TITLE, done)


if __name__ == "__main__":
    main()
