"""Greedy translation by a Marian model token by token, with no more than it takes: a static cache, in which
the position is a tensor, so that the step can be compiled and exported.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Source", "Step", "greedy", "greedy_dynamic"]

Run = Callable[..., Any]


class Source(nn.Module):
    """The encoder, and what each layer of the decoder looks at.

    Args:
        model: ``MarianMTModel``; its modules are used, not copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self.layers = model.model.encoder, model.model.decoder.layers
        self.heads = model.config.decoder_attention_heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, ``(layers, batch, heads, source, width of a head)``."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        keys = [_heads(layer.encoder_attn.k_proj(hidden), self.heads) for layer in self.layers]
        values = [_heads(layer.encoder_attn.v_proj(hidden), self.heads) for layer in self.layers]
        return torch.stack(keys), torch.stack(values)


class Step(nn.Module):
    """The decoder for one token, and the output head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.head = model.model.decoder, model.lm_head
        self.heads, self.scale = model.config.decoder_attention_heads, model.model.decoder.embed_scale
        self.activation = model.model.decoder.layers[0].activation_fn
        self.register_buffer("bias", model.final_logits_bias, persistent=False)

    def forward(
        self, token: Tensor, position: Tensor, mask: Tensor, keys: Tensor, values: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits ``(batch, vocabulary)`` after a token ``(batch, 1)``, and the past with it.

        Args:
            position: of the token, ``(1,)``.
            mask: of the source, ``(batch, source)``.
            keys, values: as ``Source`` gives them.
            past: keys and values of the tokens before, and places for others, where this token's are
                written, ``(layers, 2, batch, heads, places, width of a head)``.
        """
        x = self.decoder.embed_tokens(token) * self.scale + self.decoder.embed_positions.weight[position]
        shown = mask[:, None, None].bool()
        before = (torch.arange(past.shape[-2], device=past.device) <= position)[None, None, None]
        for layer, each_keys, each_values, own in zip(self.decoder.layers, keys, values, past, strict=True):
            attention = layer.self_attn
            mine = torch.stack([_heads(p(x), self.heads) for p in (attention.k_proj, attention.v_proj)])
            own.index_copy_(3, position, mine)
            x = layer.self_attn_layer_norm(x + self._look(attention, x, own[0], own[1], before))
            mixed = self._look(layer.encoder_attn, x, each_keys, each_values, shown)
            x = layer.encoder_attn_layer_norm(x + mixed)
            x = layer.final_layer_norm(x + layer.fc2(self.activation(layer.fc1(x))))
        return self.head(x)[:, 0] + self.bias, past

    def _look(self, attention: Any, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        query = _heads(attention.q_proj(x), self.heads)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        output: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return output


@torch.inference_mode()
def greedy(
    source: Run, step: Run, config: Any, inputs: dict[str, Tensor], tokens: int, dtype: torch.dtype
) -> Tensor:
    """So many tokens of each translation, ``(batch, tokens)``, those after an end included.

    Args:
        source, step: modules of this file, or what stands for them.
    """
    mask = inputs["attention_mask"]
    keys, values = source(inputs["input_ids"], mask)
    layers, batch, heads, _, width = keys.shape
    past = torch.zeros(layers, 2, batch, heads, tokens, width, dtype=dtype)
    token, found = torch.full((batch, 1), config.decoder_start_token_id), []
    for position in torch.arange(tokens).split(1):
        logits, past = step(token, position, mask, keys, values, past)
        token = logits.argmax(-1, keepdim=True)
        found.append(token)
    return torch.cat(found, 1)


@torch.inference_mode()
def greedy_dynamic(model: Any, inputs: dict[str, Tensor], tokens: int) -> Tensor:
    """The same by the recipe translation's ``DynamicConvModel``, which keeps windows in place of a cache."""
    source, mask = model.encode(inputs["input_ids"], inputs["attention_mask"])
    token, states = torch.full_like(inputs["input_ids"][:, :1], model.config.decoder_start_token_id), None
    found = []
    for at in range(tokens):
        logits, states = model.step(token, at, states or model.begin(source), mask)
        token = logits.argmax(-1, keepdim=True)
        found.append(token)
    return torch.cat(found, 1)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)
