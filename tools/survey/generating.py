"""Models of transformers that generate, and the tokens that one generates."""

from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.find.inputs import evaluating

__all__ = ["generator_of", "tokens"]

TOKENS = 6


def generator_of(model: nn.Module) -> nn.Module | None:
    """A model of the same configuration with a head that generates, in eval mode; None if there is none."""
    if not type(model).__module__.startswith("transformers."):
        return None
    from transformers.models.auto import modeling_auto

    config: Any = model.config
    for mapping in (
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    ):
        if type(config) in mapping:
            cls = mapping[type(config)]
            torch.manual_seed(0)
            generator = (cls[0] if isinstance(cls, tuple) else cls)(config).eval()
            settings = generator.generation_config
            if settings.decoder_start_token_id is None and settings.bos_token_id is None:
                settings.decoder_start_token_id = 0  # T5's kin begin with the padding
            return generator  # type: ignore[no-any-return]
    return None


def tokens(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Tokens that the model continues its inputs with, the likeliest each time."""
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    with evaluating(model):
        return model.generate(  # type: ignore[operator, no-any-return]
            **given, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, num_beams=1
        )
