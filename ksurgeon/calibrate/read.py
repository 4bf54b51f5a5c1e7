"""Batches of inputs from a source of examples: drawn, prepared, counted where they cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from ksurgeon.calibrate.examples import Source
from ksurgeon.calibrate.preprocess import Features, Preprocess, make_preprocess
from ksurgeon.errors import DataError
from ksurgeon.models.source import Source as ModelSource

__all__ = ["Reading", "read_batches"]


@dataclass(frozen=True)
class Reading:
    """How examples are read; the arguments of ``open_data``, and the examples that could not be."""

    model: nn.Module
    examples: int
    batch_size: int
    tokenizer: str | None = None
    max_length: int = 128
    origin: ModelSource | None = None
    image_size: tuple[int, ...] | None = None
    broken: list[str] = field(default_factory=list)


def read_batches(source: Source, reading: Reading) -> Iterator[Any]:
    """Batches of inputs without labels, each of about equally long examples.

    The examples are drawn from the whole source, the same ones each time.
    """
    model = reading.model
    decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    preprocess = make_preprocess(
        model,
        source,
        origin=reading.origin,
        image_size=reading.image_size,
        task="seq2seq" if decodes else "auto",
        max_length=reading.max_length,
        preprocessor=reading.tokenizer if source.modality == "text" else None,
    )
    reading.broken.extend(source.broken)
    prepared = _prepared(source, preprocess, reading)
    if preprocess.length is not None:
        prepared = iter(sorted(prepared, key=lambda each: each[0]))
    while group := list(islice(prepared, reading.batch_size)):
        yield preprocess.join([(number, features) for _, number, features in group])["inputs"]


def _prepared(
    source: Source, preprocess: Preprocess, reading: Reading
) -> Iterator[tuple[int, int, Features]]:
    """Length, number and features of as many examples as are wanted and can be read."""
    taken = 0
    for number in torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist():
        try:
            example = replace(source.read(number), label=None)
            features = preprocess.prepare(example)
        except DataError:
            raise
        except Exception as error:
            reading.broken.append(source.unreadable(number, error))
            continue
        yield preprocess.length(example) if preprocess.length is not None else 0, number, features
        taken += 1
        if taken == reading.examples:
            return
