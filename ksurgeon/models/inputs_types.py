"""Inputs of the few model types that neither names nor configurations tell enough about."""

from typing import Any

import torch

from ksurgeon.models.inputs_example import STEPS, TOKENS, Example, Make, ones
from ksurgeon.models.inputs_types_sound import SOUND
from ksurgeon.models.inputs_types_vision import VISION

__all__ = ["OF_TYPE"]


def _omdet(e: Example) -> dict[str, Any]:
    classes, task = e.tokens(16, e.config.text_config.vocab_size).view(2, 8), e.tokens(8)
    return {
        "classes_input_ids": classes,
        "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": task,
        "tasks_attention_mask": torch.ones_like(task),
        "classes_structure": torch.tensor([2]),
    }


def _kosmos(e: Example) -> dict[str, Any]:
    queries = e.config.latent_query_num
    mask = torch.cat([torch.zeros(1, 4), torch.ones(1, queries), torch.zeros(1, 4)], 1).long()
    ids = e.tokens(queries + 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_embeds_position_mask": mask}


def _timesfm(e: Example) -> dict[str, Any]:
    values = e.random.normal(1, e.config.context_length)
    return {
        "past_values": values,
        "past_values_padding": torch.zeros_like(values, dtype=torch.long),
        "freq": torch.zeros(1, 1, dtype=torch.long),
    }


def _luke(e: Example) -> dict[str, Any]:
    positions = torch.full((1, 2, 4), -1)
    positions[0, 0, :2], positions[0, 1, 0] = torch.tensor([1, 2]), 3
    return {
        "entity_ids": torch.tensor([[1, 2]]),
        "entity_position_ids": positions,
        "entity_attention_mask": ones(1, 2),
    }


def _pi0(e: Example) -> dict[str, Any]:
    images = e.random.normal(1, 1, *e.image_shape())
    with torch.no_grad():
        count = e.model.vlm.get_image_features(images[0].to(e.random.home)).pooler_output.shape[1]
    ids = torch.cat([torch.full((1, count), e.config.vlm_config.image_token_id), e.tokens(STEPS)], 1)
    actions = e.random.normal(1, STEPS, e.config.dit_config.hidden_size)
    return {
        "action_embeds": actions,
        "pixel_values": images,
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def _flash(e: Example) -> dict[str, Any]:
    width = e.config.hidden_size
    return {
        "noise_embeds": e.random.normal(1, STEPS, width),
        "context_hidden_states": e.random.normal(1, STEPS, width * len(e.config.target_layer_ids)),
    }


def _longformer(e: Example) -> dict[str, Any]:
    ids = e.input_ids()
    mask = torch.zeros_like(ids)
    mask[:, 0] = 1
    return {"input_ids": ids, "global_attention_mask": mask}


_NAMES: tuple[tuple[Make, tuple[str, ...]], ...] = (
    (lambda e: {"input_ids": e.random.tokens(1000, 4 * TOKENS)}, ("canine",)),
    (lambda e: {"use_cache": False}, ("blt",)),  # its configuration does not tell the layers of a cache
    (_kosmos, ("kosmos-2",)),
    (_pi0, ("pi0",)),
    (_omdet, ("omdet-turbo",)),
    (_longformer, ("led", "longformer")),
    (_luke, ("luke",)),
    (_timesfm, ("timesfm", "timesfm2_5")),
    (_flash, ("muse_glimmer_assistant",)),
)
OF_TYPE: dict[str, Make] = {name: make for make, names in _NAMES for name in names} | SOUND | VISION
