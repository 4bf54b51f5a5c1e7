"""Translation with dynamic convolutions in place of self-attention (Wu et al., 2019, without gated units)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KERNELS", "DynamicConvModel"]

KERNELS = (3, 7, 15, 31)
"""Widths of the first layers' kernels; the last is that of all further layers."""


@dataclass(frozen=True)
class State:
    """What a decoder layer keeps from one token to the next.

    Attributes:
        keys, values: of the source, ``(batch, heads, source, width of a head)``.
        window: the last inputs of the convolution, ``(batch, at most kernel, width)``.
    """

    keys: Tensor
    values: Tensor
    window: Tensor

    def of(self, rows: Tensor) -> "State":
        """That of some rows of the batch, in another order or more than once."""
        return State(self.keys[rows], self.values[rows], self.window[rows])


class DynamicConvolution(nn.Module):
    """Every position is a mean of those around it, of which a linear layer tells the weights.

    Args:
        causal: whether only the position itself and those before it count.
    """

    def __init__(self, width: int, heads: int, kernel: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.kernel, self.dropout = heads, kernel, dropout
        self.before = kernel - 1 if causal else kernel // 2
        self.input = nn.Linear(width, width)
        self.weights = nn.Linear(width, heads * kernel, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, positions, width)``; positions where ``mask`` is False count as 0."""
        x = self.input(x)
        if mask is not None:
            x = x * mask[..., None]
        positions = torch.arange(x.shape[1], device=x.device)
        offsets = positions - positions[:, None] + self.before
        inside = (offsets >= 0) & (offsets < self.kernel)
        weights = self._weights(x).transpose(1, 2)  # (batch, heads, positions, kernel)
        index = offsets.clamp(0, self.kernel - 1).expand(*weights.shape[:3], -1)
        band = weights.gather(-1, index) * inside
        mixed: Tensor = self.output((band @ _heads(x, self.heads)).transpose(1, 2).flatten(2))
        return mixed

    def step(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """The next position alone, ``(batch, 1, width)``, and the window with it."""
        x = self.input(x)
        window = torch.cat([window, x], 1)[:, -self.kernel :]
        weights = self._weights(x)[:, 0, :, None, -window.shape[1] :]  # (batch, heads, 1, inputs)
        mixed = (weights @ _heads(window, self.heads)).transpose(1, 2).flatten(2)
        return self.output(mixed), window

    def _weights(self, x: Tensor) -> Tensor:
        weights = self.weights(x).unflatten(-1, (self.heads, self.kernel)).softmax(-1)
        return F.dropout(weights, self.dropout, self.training)


class CrossAttention(nn.Module):
    """Attention from the target's positions to the source's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the source."""
        return _heads(self.key(source), self.heads), _heads(self.value(source), self.heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """``(batch, positions, width)``; source positions where ``mask`` is False are not looked at."""
        query = _heads(self.query(x), self.heads)
        shown = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=shown)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Layer(nn.Module):
    """A convolution, in a decoder attention to the source, and two linear layers; norms after each."""

    def __init__(self, options: "Options", kernel: int, decodes: bool) -> None:
        super().__init__()
        width, dropout = options.width, options.dropout
        self.dropout = dropout
        self.conv = DynamicConvolution(width, options.heads, kernel, decodes, options.weight_dropout)
        self.conv_norm = nn.LayerNorm(width)
        if decodes:
            self.cross = CrossAttention(width, options.heads)
            self.cross_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, options.inner), nn.Linear(options.inner, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        """An encoder's layer without ``source``, whose mask is then that of ``x``."""
        x = self.conv_norm(x + self._drop(self.conv(x, mask if source is None else None)))
        return self._rest(x, None if source is None else self.cross.project(source), mask)

    def begin(self, source: Tensor) -> State:
        """What is kept before the first token."""
        return State(*self.cross.project(source), source.new_zeros(source.shape[0], 0, source.shape[2]))

    def step(self, x: Tensor, state: State, mask: Tensor | None) -> tuple[Tensor, State]:
        """A decoder's layer, for the next position alone."""
        mixed, window = self.conv.step(x, state.window)
        x = self._rest(self.conv_norm(x + mixed), (state.keys, state.values), mask)
        return x, replace(state, window=window)

    def _rest(self, x: Tensor, source: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
        if source is not None:
            x = self.cross_norm(x + self._drop(self.cross(x, *source, mask)))
        inner = F.dropout(F.relu(self.fc1(x)), self.dropout, self.training)
        normed: Tensor = self.norm(x + self._drop(self.fc2(inner)))
        return normed

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


@dataclass(frozen=True)
class Options:
    """Sizes of a model: the width of its linear layers, heads, layers of each side, and dropout."""

    width: int = 512
    inner: int = 1024
    heads: int = 4
    encoder_layers: int = 7
    decoder_layers: int = 6
    dropout: float = 0.3
    weight_dropout: float = 0.1


class Stack(nn.Module):
    """The layers of one side."""

    def __init__(self, options: Options, decodes: bool) -> None:
        super().__init__()
        count = options.decoder_layers if decodes else options.encoder_layers
        kernels = (KERNELS + (KERNELS[-1],) * count)[:count]
        self.layers = nn.ModuleList(Layer(options, kernel, decodes) for kernel in kernels)

    def forward(self, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, source, mask)
        return x


class DynamicConvModel(nn.Module):
    """From tokens of one language to those of another.

    Args:
        config: of transformers, of which it has the numbers of the tokens, and where the tokenizer is.
    """

    def __init__(self, config: Any, options: Options) -> None:
        super().__init__()
        self.config, self.options = config, options
        self.shared = nn.Embedding(config.vocab_size, options.width, padding_idx=config.pad_token_id)
        self.encoder, self.decoder = Stack(options, decodes=False), Stack(options, decodes=True)
        nn.init.normal_(self.shared.weight, std=options.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``logits`` ``(batch, target, vocabulary)`` of tokens ``(batch, source)`` and ``(batch, target)``.

        Without a target the source is the target, as for BART.
        """
        if decoder_input_ids is None:
            start = torch.full_like(input_ids[:, :1], self.config.decoder_start_token_id)
            decoder_input_ids = torch.cat([start, input_ids[:, :-1]], 1)
        source, mask = self.encode(input_ids, attention_mask)
        return {"logits": self._logits(self.decoder(self._embed(decoder_input_ids), source, mask))}

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The source ``(batch, source, width)``, and which of its positions count, None for all."""
        mask = None if attention_mask is None else attention_mask.bool()
        return self.encoder(self._embed(input_ids), None, mask), mask

    def begin(self, source: Tensor) -> list[State]:
        """What the decoder's layers keep before the first token."""
        return [layer.begin(source) for layer in self.decoder.layers]  # type: ignore[operator]

    def step(
        self, token: Tensor, at: int, states: Sequence[State], mask: Tensor | None
    ) -> tuple[Tensor, list[State]]:
        """Logits ``(batch, vocabulary)`` after token number ``at``, ``(batch, 1)``, and what is kept then."""
        x, kept = self._embed(token, at), []
        for layer, state in zip(self.decoder.layers, states, strict=True):
            x, state = layer.step(x, state, mask)  # type: ignore[operator]
            kept.append(state)
        return self._logits(x)[:, 0], kept

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_beams: int = 1,
        max_new_tokens: int = 128,
    ) -> Tensor:
        """Translations ``(batch, tokens)``, with the first token and padding as transformers gives them."""
        source, mask = self.encode(input_ids, attention_mask)
        rows = torch.arange(len(input_ids), device=source.device).repeat_interleave(num_beams)
        mask = None if mask is None else mask[rows]

        def step(token: Tensor, at: int, states: list[State]) -> tuple[Tensor, list[State]]:
            return self.step(token, at, states, mask)

        states = [state.of(rows) for state in self.begin(source)]
        return search(step, states, len(input_ids), num_beams, max_new_tokens, self.config)

    def _embed(self, tokens: Tensor, first: int = 0) -> Tensor:
        width = self.options.width
        places = torch.arange(first, first + tokens.shape[1], device=tokens.device)[:, None]
        rates = 10_000 ** (-torch.arange(0, width, 2, device=tokens.device) / width)
        angles = places * rates
        x = self.shared(tokens) * width**0.5 + torch.cat([angles.sin(), angles.cos()], 1).to(
            self.shared.weight
        )
        return F.dropout(x, self.options.dropout, self.training)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.shared.weight)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


Step = Callable[[Tensor, int, list[State]], tuple[Tensor, list[State]]]


@torch.no_grad()
def search(step: Step, states: list[State], count: int, beams: int, longest: int, config: Any) -> Tensor:
    """The translations of greatest mean log-probability that a beam search finds, ``(count, tokens)``.

    Args:
        step: gives logits of ``count · beams`` rows, those of one sentence after another.
        longest: tokens after the first.
    """
    device = states[0].keys.device
    tokens = torch.full((count * beams, 1), config.decoder_start_token_id, device=device)
    scores = torch.full((count, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # all beams are the same at first
    ended = torch.full((count, beams), -torch.inf, device=device)  # mean log-probabilities, the best first
    best = torch.full((count, beams, longest + 1), config.pad_token_id, device=device)
    first = torch.arange(count, device=device)[:, None]
    done = torch.zeros(count, 1, dtype=torch.bool, device=device)
    for length in range(1, longest + 1):
        logits, states = step(tokens[:, -1:], length - 1, states)
        logits[:, config.pad_token_id] = -torch.inf
        total = scores[..., None] + logits.float().log_softmax(-1).view(count, beams, -1)
        total, choice = total.flatten(1).topk(2 * beams)
        row, token = choice // logits.shape[-1], choice % logits.shape[-1]
        grown = torch.cat([tokens.view(count, beams, -1)[first, row], token[..., None]], -1)
        ends = (token == config.eos_token_id) | (length == longest)
        among = torch.where(ends & ~done, total / length, -torch.inf)
        among[:, beams:] = -torch.inf  # as transformers: what ends must be of the best
        padded = F.pad(grown, (0, longest - length), value=config.pad_token_id)
        ended, order = torch.cat([ended, among], 1).topk(beams)
        best = torch.cat([best, padded], 1)[first, order]
        scores, order = total.masked_fill(ends, -torch.inf).topk(beams)
        done |= ended[:, -1:] >= scores[:, :1] / length
        if bool(done.all()):
            break
        tokens = grown[first, order].flatten(0, 1)
        rows = (first * beams + row.gather(1, order)).flatten()
        states = [state.of(rows) for state in states] if beams > 1 else states
    used = int((best[:, 0] != config.pad_token_id).any(0).nonzero().max()) + 1
    return best[:, 0, :used]
