"""Output heads, known by the names that timm, torchvision and transformers give them."""

import re

__all__ = ["is_head"]

# Of an nn.Sequential called "classifier" only the first layer, often the largest, is surely not the output.
_HEADS = re.compile(
    r"""
    fc | last_linear | logits
    | (\w+_)?classifier(\.[1-9]\d*(\..*)?|\.out_proj|\.(low|high)_classifier)?
    | heads?(\..*)? | head_.*
    | pred_layer\..* | decode_head\.classifier
    | (.*\.)?(cls | predictions
        | lm_head | embed_out | output_projection | qa_outputs | score | proj_out | logits_proj
        | generator_lm_head | generator_predictions | vocab_transform | vocab_projector)(\..*)?
    """,
    re.VERBOSE,
)


def is_head(*paths: str) -> bool:
    """Whether a module or parameter under one of these paths makes a model's final outputs."""
    return any(_HEADS.fullmatch(path) for path in paths)
