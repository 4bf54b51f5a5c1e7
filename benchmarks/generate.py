"""Tokens a second of ``generate``: dense layers against K-matrices, in turns, on one CPU thread.

``python -m benchmarks.generate [--tokens N] [--batch N] [MODEL …]``. The models have their full sizes and
random weights; what they write means nothing, how long it takes does.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import transformers
from torch import nn

import ksurgeon
from ksurgeon import Rule
from ksurgeon.report.measure import device_name

ROUNDS = 5
PROMPT = 16


def gpt2() -> nn.Module:
    """GPT-2, 124 million parameters."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def t5_base() -> nn.Module:
    """T5 base, 223 million parameters."""
    sizes = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, **sizes))


def marian() -> nn.Module:
    """Marian's base size, its vocabulary that of opus-mt-de-en."""
    sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 58101}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    wide = {"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
    tokens = {"pad_token_id": 58100, "decoder_start_token_id": 58100, "eos_token_id": 0}
    return transformers.MarianMTModel(transformers.MarianConfig(**sizes, **heads, **wide, **tokens))


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt2": gpt2, "t5-base": t5_base, "marian": marian}
STRUCTURES = {
    "K, radix auto": {"structure": "kaleidoscope", "radix": "auto"},
    "K, radix 16": {"structure": "kaleidoscope", "radix": 16},
}


def rule(structure: dict[str, object]) -> Rule:
    """All linear layers but the head, whose weight is the embedding's; nothing is fitted."""
    head = ["re:(.*\\.)?lm_head"]
    part = {"find": "linear", "ignore": head, "with": structure, "start": "orthogonal"}
    return Rule.model_validate({"schema": 1, "name": "generate", "replace": [part]})


def seconds(model: nn.Module, ids: torch.Tensor, tokens: int) -> float:
    """Time that the model takes to write so many tokens, greedily."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    begin = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
    return time.perf_counter() - begin


def measure(name: str, label: str, tokens: int, batch: int) -> str:
    """One row: tokens a second before and after."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ids = torch.randint(10, 1000, (batch, PROMPT))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    before = sum(p.numel() for p in model.parameters())
    conversion = ksurgeon.convert(model, rule(STRUCTURES[label]), inputs)
    after = sum(p.numel() for p in model.parameters())
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):  # the first warms up
        with conversion.undone():
            dense = seconds(model, ids, tokens)
        converted = seconds(model, ids, tokens)
        if number:
            times[0].append(dense)
            times[1].append(converted)
    rates = [batch * tokens / median(each) for each in times]
    gain = median(d / k for d, k in zip(*times, strict=True))
    return (
        f"| {name} | {label} | {before / 1e6:.0f} M → {after / 1e6:.0f} M | {rates[0]:.1f} | {rates[1]:.1f} "
        f"| {gain:.2f}× |"
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    print(
        f"{device_name(torch.device('cpu'))}, 1 thread; batch {options.batch}, {options.tokens} tokens after "
        f"{PROMPT}\n"
    )
    print(
        "| model | structure | parameters | dense, tokens/s | converted, tokens/s | dense / converted time |"
    )
    print("|---|---|---:|---:|---:|---:|")
    for name in options.models:
        for label in STRUCTURES:
            print(measure(name, label, options.tokens, options.batch), flush=True)


if __name__ == "__main__":
    main()
