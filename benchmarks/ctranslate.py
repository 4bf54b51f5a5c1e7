"""A Marian model of ours in CTranslate2, which would otherwise want padding at the end of the vocabulary."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.workers import Maker

__all__ = ["in_ctranslate2", "written"]


def written(model: Any) -> Path:
    """A folder with the model in CTranslate2's form; its tokens are called by their numbers."""
    from ctranslate2.converters.transformers import BartLoader

    model.config.normalize_before = model.config.normalize_embedding = False
    spec = BartLoader().get_model_spec(model)
    words = [str(number) for number in range(model.config.vocab_size)]
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    start = words[model.config.decoder_start_token_id]
    spec.config.unk_token = spec.config.bos_token = spec.config.decoder_start_token = start
    spec.config.eos_token = words[model.config.eos_token_id]
    folder = Path(tempfile.mkdtemp())
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    return folder


def in_ctranslate2(
    model: Any, inputs: Callable[[int], dict[str, Tensor]], precision: str, tokens: int
) -> Maker:
    """Greedy translations of so many tokens, in float32 or int8."""
    import ctranslate2

    folder = written(model)

    def make(batch: int, threads: int) -> Callable[[], object]:
        translator = ctranslate2.Translator(
            str(folder), device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
        )
        texts = [[str(token) for token in row] for row in inputs(batch)["input_ids"].tolist()]
        lengths = {"min_decoding_length": tokens, "max_decoding_length": tokens}
        return lambda: translator.translate_batch(texts, beam_size=1, **lengths)

    return make
