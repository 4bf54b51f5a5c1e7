"""Whole translations by a Transformer and by a DynamicConv model, their decoders dense and of K-matrices, and
what could be run instead.

``python -m benchmarks.translation [MODEL …] --json FILE``. Greedy, with a cache, 24 tokens after 24, with
random weights: what is written means nothing, how long it takes does. "generate" is transformers' own;
"step" a loop over the decoder with a static cache, also prepacked, compiled, in bfloat16, int8 and ONNX
Runtime. A dense decoder of fewer layers and one that is narrower are what could be trained in place of
K-matrices, CTranslate2 is what the dense one is deployed in. Candidates are processes of their own that take
turns. ``--profile`` tells instead where the time goes.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.ctranslate import in_ctranslate2
from benchmarks.decoding import Source, Step, greedy, greedy_dynamic
from benchmarks.instead import rows_of
from benchmarks.prepared import recipe_named
from benchmarks.profiled import profile_rows
from benchmarks.quiet import check_quiet
from benchmarks.runtimes import is_there, run_named
from benchmarks.workers import Maker, measure_in_turns, serve
from ksurgeon import Rule, convert, prepack, quantize
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.rules import load_rule

__all__ = ["MODELS", "built", "opened"]

TITLE = "Translation on CPU: a decoder of K-matrices, and what could be run instead"
_TOKENS, _WORDS = 24, 8000
_WANTED = {1: 2.5, 32: 1.5}  # how many times as fast as the dense model that is run in the same way

MODELS: dict[str, dict[str, int]] = {
    "translate 256": {"width": 256, "inner": 1024, "encoder_layers": 3, "decoder_layers": 3},
    "translate 512": {"width": 512, "inner": 1024, "encoder_layers": 6, "decoder_layers": 6},
    "translate 512, 2048": {"width": 512, "inner": 2048, "encoder_layers": 6, "decoder_layers": 6},
    "DynamicConv 512": {"width": 512, "inner": 1024, "encoder_layers": 7, "decoder_layers": 6},
}
_BOTH = (
    "generate float32", "generate bfloat16", "step float32", "step bfloat16", "step int8",
    "prepacked float32", "prepacked bfloat16", "compiled float32", "ONNX float32", "ONNX int8",
)  # fmt: skip
_DENSE = (
    "torch-int8 float32",
    "CTranslate2 float32",
    "CTranslate2 int8",
    "shallower float32",
    "narrower float32",
)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A vocabulary of numbers, of which the models read no more than how many there are."""
    from transformers import MarianConfig

    place = tempfile.TemporaryDirectory()
    MarianConfig(
        vocab_size=_WORDS,
        decoder_vocab_size=_WORDS,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        forced_eos_token_id=None,
        decoder_start_token_id=0,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=512,
    ).save_pretrained(place.name)
    return place


def _inputs(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, _WORDS, (batch, _TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def built(name: str, kind: str, **changes: int) -> Any:
    """The recipe's Transformer of a size of ``MODELS``; "converted" by the rule "decoder", without a fit, or
    "converted with head", as the recipe's variant distilled-head is."""
    torch.manual_seed(0)
    function = "dynamic_conv" if _is_dynamic(name) else "marian"
    build = find_function(f"translation.py:{function}", RecipeError, recipe_named("translation").folder)
    model = build(_folder().name, **(MODELS[name] | changes)).eval()
    if kind != "dense":
        recipe = recipe_named("translation")
        head = next(variant for variant in recipe.variants if variant.name == "distilled-head").replace
        parts = load_rule("decoder").replace if kind == "converted" else head
        starts = {"kaleidoscope": "orthogonal", "low_rank": "random"}
        unfitted = [part.model_dump() | {"start": starts[part.structure.structure]} for part in parts]
        rule = {"name": "unfitted", "replace": unfitted}
        inputs = _inputs(1)
        convert(model, Rule.model_validate(rule), {**inputs, "decoder_input_ids": inputs["input_ids"][:, :4]})
    return model


def _is_dynamic(name: str) -> bool:
    return name.startswith("DynamicConv")


def _ways(name: str, runtimes: list[str] | None) -> list[str]:
    """The candidates of a model; of a DynamicConv model, whose head is no layer, those of the loop alone."""
    ways = {"converted": _BOTH, "converted with head": _BOTH, "dense": (*_BOTH, *_DENSE)}
    if _is_dynamic(name):
        ways = dict.fromkeys(("converted", "dense"), ("step float32", "step bfloat16"))
    return [
        f"{kind}, {way}"
        for kind, each in ways.items()
        for way in each
        if is_there(way) and (runtimes is None or way.split(" ")[0] in runtimes)
    ]


def opened(name: str) -> Maker:
    """A candidate, whose name says model, kind, runtime and precision."""
    model_name, way = name.split(": ")
    kind, way = way.split(", ")
    runtime, precision = way.split(" ")
    changes = {
        "shallower": {"decoder_layers": max(MODELS[model_name]["decoder_layers"] // 3, 1)},
        "narrower": {"decoder_inner": MODELS[model_name]["width"] // 4},
    }.get(runtime, {})
    model = built(model_name, kind, **changes)
    if runtime == "CTranslate2":
        return in_ctranslate2(model, _inputs, precision, _TOKENS)
    kernels = kind != "dense"
    if precision == "int8":  # for a head that is tied to the embedding would stay in float32
        if isinstance(model.lm_head, nn.Linear):
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        if runtime != "ONNX" or kernels:
            quantize(model)
    if runtime == "ONNX":
        return _in_onnx(model, "float32" if kernels else precision, kernels)
    if runtime == "torch-int8":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = model.to(dtype)
    if runtime == "prepacked":
        prepack(model)

    def make(batch: int, threads: int) -> Callable[[], object]:
        given = _inputs(batch)
        if _is_dynamic(model_name):
            return lambda: greedy_dynamic(model, given, _TOKENS)
        if runtime == "generate":
            asked = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False, "num_beams": 1}
            return lambda: model.generate(**given, **asked)
        source, step = Source(model), Step(model)
        if runtime == "compiled":
            torch.compiler.reset()  # each case has code for its own sizes
            step = torch.compile(step, fullgraph=True)  # type: ignore[assignment]
        return lambda: greedy(source, step, model.config, given, _TOKENS, dtype)

    return make


def _in_onnx(model: Any, precision: str, kernels: bool) -> Maker:
    def make(batch: int, threads: int) -> Callable[[], object]:
        given, config = _inputs(batch), model.config
        source, step = Source(model), Step(model)
        with torch.inference_mode():
            keys, values = (part.clone() for part in source(*given.values()))
        layers, _, heads, _, width = keys.shape
        asked = {
            "token": given["input_ids"][:, :1],
            "position": torch.tensor([1]),
            "mask": given["attention_mask"],
            "keys": keys,
            "values": values,
            "past": torch.zeros(layers, 2, batch, heads, _TOKENS, width),
        }
        first = run_named(source, given, precision, threads, kernels)
        each = run_named(step, asked, precision, threads, kernels)
        return lambda: greedy(first, each, config, given, _TOKENS, torch.float32)

    return make


def _rows(name: str, case: tuple[int, int], times: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    rows = rows_of(name, *case, times)
    for row in rows:
        same = f"dense, {row['case'].rpartition(', ')[2]}"
        row["wanted"] = {same: _WANTED[case[0]]} if same in row["ratios"] and case[1] == 1 else {}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="; ".join(MODELS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also add the figures to this file")
    parser.add_argument(
        "--runtimes",
        nargs="+",
        metavar="RUNTIME",
        help="generate, step, ONNX …; all, which takes 24 GB of memory",
    )
    parser.add_argument("--profile", action="store_true", help="where the time goes, on one thread")
    parser.add_argument("--seconds", type=float, default=10, help="of each candidate in each case")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, too")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return serve(lambda: opened(given.worker))
    if unknown := set(given.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    share = check_quiet(given.busy)
    cases = [(batch, threads) for threads in sorted({1, given.threads}) for batch in _WANTED]
    for name in given.models or MODELS:
        if given.profile:
            if _is_dynamic(name):
                continue  # its parts have other names
            models = {kind: built(name, kind) for kind in ("converted", "converted with head", "dense")}
            rows = [
                row
                for batch in _WANTED
                for row in profile_rows(name, models, _inputs(batch), _TOKENS, given.seconds)
            ]
        else:
            ways = [f"{name}: {way}" for way in _ways(name, given.runtimes)]
            found = measure_in_turns(__spec__.name, ways, cases, given.seconds, [])
            rows = [row for case, times in found.items() for row in _rows(name, case, times)]
        results.show(name, rows)
        if given.json:
            told = [row | {"busy before": share} for row in rows]
            results.add(given.json, TITLE, results.cpu_setting(given.threads), told)
    return None


if __name__ == "__main__":
    main()
