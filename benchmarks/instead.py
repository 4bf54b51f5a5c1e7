"""What a user could run instead: ``python -m benchmarks.instead [MODEL …] --json FILE``.

Every model converted and as it was; eagerly, compiled and in ONNX Runtime; in float32, bfloat16 and int8,
on one thread and on all. Each candidate is a process of its own, and they take turns. For MiniLM
``--half FOLDER`` and ``--quarter FOLDER`` are the conversions that are looked at; without them they are
planned at half and a quarter of the linear parameters.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import results
from benchmarks.data import minilm_folder
from benchmarks.quiet import check_quiet
from benchmarks.runtimes import in_ctranslate2, in_onnx, in_openvino, is_there
from benchmarks.workers import Maker, measure_in_turns, serve
from ksurgeon import fold, prepack, quantize
from ksurgeon.find.inputs import call_model

TITLE = "What could be run instead: whole models on CPU"
_TORCH = ("eager float32", "eager bfloat16", "compiled float32", "compiled bfloat16")
_FOLDED = ("folded float32", "folded bfloat16")
_INT8 = ("eager int8", "compiled int8")
_ONNX = ("ONNX float32", "ONNX int8")
_OTHERS = ("OpenVINO float32", "OpenVINO bfloat16", "CTranslate2 float32", "CTranslate2 int8")
_MINILM = ((*_TORCH, *_INT8, *_ONNX), ("torch-int8 float32", *_OTHERS), (1, 32))
_DECODED = ("eager float32", "eager bfloat16", "prepacked float32", "prepacked bfloat16")
_TOKENS, _PROMPT = 16, 16

# Runtimes and precisions of each model, of both kinds; what only the dense one is run in; batch sizes. "ONNX"
# of the converted model has our operators, "ONNX int8" of the dense one is ONNX Runtime's quantization. What
# needs a package of the extra "bench" that is not installed is left out.
MODELS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]] = {
    "minilm": _MINILM,
    "minilm quarter": _MINILM,
    "resnet50": ((*_TORCH, *_FOLDED, "ONNX float32"), (), (1, 8)),
    "vit_base": (_TORCH, (), (1,)),
    "gpt2": (_TORCH, (), (1,)),
    "decode gpt2": (_DECODED, (), (1,)),
    "decode llama": (_DECODED, (), (1,)),
    "decode marian": (_DECODED, (), (1,)),
    "decode t5": (_DECODED, (), (1,)),
}

_BUDGETS = {"minilm": "half", "minilm quarter": "quarter"}  # options that name the folder of a conversion
_SHARES = {"half": 0.5, "quarter": 0.25}

# How many times ours is to be as fast as what is named, for all batches or for each.
WANTED: dict[tuple[str, str], dict[str, float | dict[int, float]]] = {
    ("minilm", "eager bfloat16"): {"dense, eager bfloat16": 1.4},
    ("minilm", "compiled bfloat16"): {"dense, compiled bfloat16": 1.4},
    ("minilm", "eager int8"): {"dense, torch-int8 float32": {1: 1.3, 32: 1.2}},
    ("minilm", "ONNX int8"): {"dense, ONNX int8": 1.25},
    ("resnet50", "folded float32"): {"dense, eager float32": 1.25},
    ("decode gpt2", "prepacked bfloat16"): {"dense, eager bfloat16": 2.5},
    ("decode llama", "prepacked bfloat16"): {"dense, eager bfloat16": 2.5},
    ("decode marian", "prepacked bfloat16"): {"dense, eager bfloat16": 1.8},
    ("decode t5", "prepacked bfloat16"): {"dense, eager bfloat16": 2.2},
}


def _llama() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "vocab_size": 4000}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))


def _minilm(kind: str, folder: Path) -> tuple[nn.Module, Callable[[int], Any]]:
    from transformers import AutoModel

    from benchmarks.data import minilm
    from benchmarks.plan import sentences

    dense, tokenizer = minilm()
    model = dense if kind == "dense" else AutoModel.from_pretrained(folder).eval()
    texts = sentences()
    return model, lambda batch: dict(tokenizer(texts[:batch], padding=True, return_tensors="pt"))


def _random(name: str, kind: str) -> tuple[nn.Module, Callable[[int], Any]]:
    """With random weights and converted without a fit, which change nothing about times."""
    import timm

    from benchmarks import generate
    from ksurgeon import convert

    inputs: Callable[[int], Any]
    if name in ("resnet50", "vit_base"):
        # As after training: at its start norms that end a residual branch multiply by zero.
        of = ("resnet50", {"zero_init_last": False}) if name == "resnet50" else ("vit_base_patch16_224", {})
        model = timm.create_model(of[0], **of[1]).eval()
        inputs = lambda batch: torch.randn(batch, 3, 224, 224)  # noqa: E731
    else:
        models = {"gpt2": generate.gpt2, "t5": generate.t5_base, "marian": generate.marian, "llama": _llama}
        model = models[name.removeprefix("decode ")]().eval()
        inputs = lambda batch: {"input_ids": torch.randint(10, 1000, (batch, 64))}  # noqa: E731
    if kind != "dense":
        example = inputs(1)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            example["decoder_input_ids"] = example["input_ids"][:, :4]
        rule = generate.rule(generate.STRUCTURES["K, radix auto"])
        convert(model, "shuffle" if name == "resnet50" else rule, example)
    return model, inputs


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return inputs.to(dtype) if isinstance(inputs, torch.Tensor) else inputs


def opened(name: str, folders: dict[str, Path]) -> Maker:
    """A candidate, whose name says model, kind, runtime and precision."""
    model_name, kind, way = name.split(": ")[0], *name.split(": ")[1].split(", ")
    runtime, precision = way.split(" ")
    torch.manual_seed(0)
    model, inputs = _minilm(kind, folders[model_name]) if model_name in folders else _random(model_name, kind)
    if runtime == "folded" or (model_name, kind, runtime) == ("resnet50", "converted", "ONNX"):
        fold(model, inputs(1))  # of the dense one ONNX Runtime does so itself
    if runtime == "ONNX":
        return in_onnx(model, inputs, precision, kernels=kind != "dense")
    if runtime == "OpenVINO":
        return in_openvino(model, inputs, precision)
    if runtime == "CTranslate2":
        return in_ctranslate2(minilm_folder(), inputs, precision)
    if precision == "int8":
        quantize(model)
    if runtime == "torch-int8":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = model.to(dtype)
    if runtime == "prepacked":
        prepack(model)

    def make(batch: int, threads: int) -> Callable[[], object]:
        given = _cast(inputs(batch), dtype)
        if model_name.startswith("decode"):
            ids = given["input_ids"][:, :_PROMPT]
            asked = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False}
            return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **asked)  # type: ignore[operator]
        if runtime != "compiled":
            return lambda: call_model(model, given)
        torch.compiler.reset()  # each case has code for its own sizes
        compiled = torch.compile(model)
        return lambda: call_model(compiled, given)  # type: ignore[arg-type]

    return make


def rows_of(name: str, batch: int, threads: int, times: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each way in which the converted model was run, beside all that could be run instead."""
    short = {candidate.split(": ")[1]: found for candidate, found in times.items()}
    dense = {way: found for way, found in short.items() if way.startswith("dense")}
    rows = []
    for way, found in short.items():
        if way in dense:
            continue
        ours = way.removeprefix("converted, ")
        ratios = {other: times["median"] / found["median"] for other, times in dense.items()}
        rows.append(
            {
                "part": f"{name}, {'one thread' if threads == 1 else f'{threads} threads'}",
                "case": ours,
                "rows": batch,
                "us": {way: found, **dense},
                "ratios": ratios,
                "wanted": {
                    other: least[batch] if isinstance(least, dict) else least
                    for other, least in WANTED.get((name, ours), {}).items()
                },
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also add the figures to this file")
    for name in _BUDGETS.values():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help="a converted MiniLM")
    parser.add_argument("--runtimes", nargs="+", metavar="RUNTIME", help="eager, compiled, ONNX …; all")
    parser.add_argument("--seconds", type=float, default=3, help="of each candidate in each case")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine, too")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return serve(lambda: opened(given.worker, {model: vars(given)[n] for model, n in _BUDGETS.items()}))
    if unknown := set(given.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    share = check_quiet(given.busy)
    setting = results.cpu_setting(given.threads)
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        for model, name in _BUDGETS.items():
            place = vars(given)[name] or Path(folder) / name
            if model in (given.models or MODELS) and vars(given)[name] is None:
                from benchmarks.sentences import converted

                converted(None, f"params={_SHARES[name]}", place)
            arguments += [f"--{name}", str(place)]
        for name in given.models or MODELS:
            both, alone, batches = MODELS[name]
            both, alone = (
                tuple(
                    w
                    for w in ways
                    if is_there(w) and w.split(" ")[0] in (given.runtimes or [w.split(" ")[0]])
                )
                for ways in (both, alone)
            )
            ways = [*(f"converted, {way}" for way in both), *(f"dense, {way}" for way in (*both, *alone))]
            cases = [(batch, threads) for threads in sorted({1, given.threads}) for batch in batches]
            names = [f"{name}: {way}" for way in dict.fromkeys(ways)]
            found = measure_in_turns(__spec__.name, names, cases, given.seconds, arguments)
            rows = [
                row
                for (batch, threads), times in found.items()
                for row in rows_of(name, batch, threads, times)
            ]
            done += [row | {"busy before": share} for row in rows]
            results.show(name, rows)
            if given.json:
                results.add(given.json, TITLE, setting, rows)
    return None


if __name__ == "__main__":
    main()
