"""Models, loss and measures of the recipe translation."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ksurgeon.calibrate.preprocess import IGNORED
from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

__all__ = ["dynamic_conv", "evaluate", "evaluate_some", "marian", "sequences", "smoothed", "translated"]

_SMOOTHING = 0.1
_BATCH = 64
_LONGEST = 128  # tokens of a sentence, as in training
_SOME = 16  # sentences of a quick run
_BEAMS = 4


def marian(
    folder: str,
    width: int = 256,
    inner: int = 1024,
    decoder_inner: int | None = None,
    encoder_layers: int = 3,
    decoder_layers: int = 3,
    heads: int = 4,
    dropout: float = 0.1,
) -> nn.Module:
    """A Transformer (transformers' Marian) with random weights.

    Args:
        folder: of its vocabulary, the place ``model`` of ``translation_data.py``.
        inner: features between the feed-forward layers; ``decoder_inner`` those of the decoder, if others.
    """
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig.from_pretrained(
        folder,
        name_or_path=folder,  # where the tokenizer is looked for
        d_model=width,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=decoder_inner or inner,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        dropout=dropout,
    )
    model: nn.Module = MarianMTModel(config)
    return model


def dynamic_conv(folder: str, **options: Any) -> nn.Module:
    """The same with dynamic convolutions in place of self-attention.

    Args:
        folder: of its vocabulary, the place ``model`` of ``translation_data.py``.
        options: of ``Options`` in ``translation_dynamic.py``.
    """
    from transformers import MarianConfig

    made = (
        find_function(f"translation_dynamic.py:{name}", RecipeError, Path(__file__).parent)
        for name in ("DynamicConvModel", "Options")
    )
    model_of, options_of = made
    config = MarianConfig.from_pretrained(folder, name_or_path=folder)
    model: nn.Module = model_of(config, options_of(**options))
    return model


def smoothed(model: nn.Module, inputs: dict[str, Tensor], _: float) -> Tensor:
    """Cross-entropy with smoothed labels, the mean over all tokens of the batch."""
    logits = model(**inputs)["logits"].float()
    labels = _labels(inputs["decoder_input_ids"], model.config)
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=_SMOOTHING
    )


def _labels(given: Tensor, config: Any) -> Tensor:
    """What comes after each token of the target, ``(batch, tokens)``; the end after the last one."""
    without = torch.tensor([config.pad_token_id, config.eos_token_id], device=given.device)
    lengths = (~torch.isin(given[:, 1:], without)).sum(1, keepdim=True)
    positions = torch.arange(given.shape[1], device=given.device)
    labels = given.roll(-1, 1).masked_fill(positions == lengths, config.eos_token_id)
    return labels.masked_fill(positions > lengths, IGNORED)


def evaluate(model: nn.Module, places: dict[str, str]) -> dict[str, float | str]:
    """BLEU and chrF (sacrebleu) of the test's translations, greedy and with a beam of 4, the share of its
    tokens that come first after the right ones, and sacrebleu's signatures.

    Raises:
        RecipeError: sacrebleu is not installed.
    """
    return _evaluated(model, _pairs(places["test"]))


def evaluate_some(model: nn.Module, places: dict[str, str]) -> dict[str, float | str]:
    """The same of some sentences of the test; raises what ``evaluate`` does."""
    return _evaluated(model, _pairs(places["test"])[:_SOME])


def _evaluated(model: nn.Module, pairs: list[tuple[str, str]]) -> dict[str, float | str]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise RecipeError(
            "sacrebleu is not installed, with which translations are measured: pip install "
            "'ksurgeon[translation]'"
        ) from error
    german, english = [source for source, _ in pairs], [target for _, target in pairs]
    found: dict[str, float | str] = {"token_accuracy": _token_accuracy(model, pairs)}
    for ending, beams in (("", 1), (f"_beam{_BEAMS}", _BEAMS)):
        ours = translated(model, german, beams)
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            found[f"{name}{ending}"] = metric.corpus_score(ours, [english]).score
            found[f"{name}_signature"] = str(metric.get_signature())
    return found


def sequences(places: dict[str, str], teacher: nn.Module) -> list[dict[str, str]]:
    """The training's German sentences with the teacher's own translations (Kim and Rush, 2016), greedy.

    Those of which it gives nothing are left out.
    """
    german = [source for source, _ in _pairs(places["train"])]
    ours = translated(teacher.eval(), german)
    return [{"source": s, "target": t} for s, t in zip(german, ours, strict=True) if t]


@torch.no_grad()
def translated(model: Any, texts: Sequence[str], beams: int = 1, batch: int = _BATCH) -> list[str]:
    """Translations of German sentences, greedy or with a beam."""
    tokenizer, found = _tokenizer(model), [""] * len(texts)
    for numbers, source in _batches(tokenizer, texts, batch):
        source = source.to(model.device if hasattr(model, "device") else next(model.parameters()).device)
        longest = min(2 * source["input_ids"].shape[1] + 10, _LONGEST)
        tokens = model.generate(**source, num_beams=beams, max_new_tokens=longest)
        for number, text in zip(
            numbers, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True
        ):
            found[number] = text.strip()
    return found


@torch.no_grad()
def _token_accuracy(model: Any, pairs: list[tuple[str, str]]) -> float:
    tokenizer, right, count = _tokenizer(model), 0, 0
    device = next(model.parameters()).device
    for numbers, source in _batches(tokenizer, [german for german, _ in pairs], _BATCH):
        target = _coded(tokenizer, [pairs[number][1] for number in numbers])["input_ids"]
        given = target.roll(1, 1)
        given[:, 0] = model.config.decoder_start_token_id
        labels = _labels(given, model.config).to(device)
        logits = model(**source.to(device), decoder_input_ids=given.to(device))["logits"]
        right += int((logits.argmax(-1) == labels).sum())
        count += int((labels != IGNORED).sum())
    return right / count


def _batches(tokenizer: Any, texts: Sequence[str], size: int) -> Iterator[tuple[list[int], Any]]:
    """Numbers of the texts, and their tokens, of about equally long ones together."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        yield numbers, _coded(tokenizer, [texts[number] for number in numbers])


def _coded(tokenizer: Any, texts: list[str]) -> Any:
    return tokenizer(texts, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.config.name_or_path)


def _pairs(file: str) -> list[tuple[str, str]]:
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return [(record["source"], record["target"]) for record in map(json.loads, lines)]
