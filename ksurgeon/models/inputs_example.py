"""What a model of transformers tells about its inputs."""

from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import InputError
from ksurgeon.models.inputs_random import Random, resized

__all__ = ["SAMPLES", "STEPS", "TOKENS", "Example", "Make", "named", "ones"]

TOKENS = 16
STEPS = 8
SAMPLES = 16_000
_FRAMES = 128
_VISION = (
    "vision_config", "image_config", "vit_config", "visual_config", "vision_encoder_config",
    "backbone_config", "vision_tower_config",
)  # fmt: skip
_AUDIO = (
    "audio_config", "audio_encoder_config", "encoder_config", "encoder", "speech_config", "asr_config",
)  # fmt: skip
_MELS = (
    "num_mel_bins", "feature_size", "input_feat_size", "input_dim", "n_mels", "feature_projection_input_dim",
    "mel_bins", "num_mels", "input_feat_per_channel", "encoder_input_dim",
)  # fmt: skip
_MERGES = ("spatial_merge_size", "merge_size", "merge_kernel_size", "spatial_pool_size")
_IN_AUDIO = ("audio", "encoder", "speech")
_IN_VISION = ("vis", "image", "img", "patch")
_PLACEHOLDER = ("token_id", "token_index", "soft_token_id")
_KINDS = {"image": 1, "video": 2, "audio": 3}


def named(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters that a function names."""
    found = signature(function).parameters
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _parts(config: Any) -> Iterator[Any]:
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield value
            yield from _parts(value)


class Example:
    """One example in the making: the model's parts, and what has been made so far."""

    def __init__(self, model: Any, sizes: tuple[int, ...] | None, random: Random) -> None:
        self.model, self.sizes, self.random = model, sizes, random
        self.config = model.config
        self.accepted = named(model.forward)
        self.packed: Any = self.accepted  # the inputs of the tower that is being made inputs for
        self.values: dict[str, Any] = {}
        main = model.main_input_name
        self.main = (main,) if isinstance(main, str) else tuple(main)
        self.text = self.config.get_text_config()
        if not isinstance(getattr(self.text, "vocab_size", None), int):
            self.text = next((p for p in _parts(self.config) if hasattr(p, "vocab_size")), self.text)
        self.vision = self.part(_VISION)
        self.audio = self.part(_AUDIO)

    def part(self, names: tuple[str, ...]) -> Any:
        found = (getattr(self.config, name, None) for name in names)
        return next((p for p in found if hasattr(p, "to_dict")), None)

    def get(self, *names: str, parts: tuple[Any, ...] | None = None, default: Any = None) -> Any:
        """The first of the attributes that the configuration or one of its parts has."""
        for part in (self.config, self.vision, self.audio, self.text) if parts is None else parts:
            for name in names:
                if (value := getattr(part, name, None)) is not None:
                    return value
        return default

    @property
    def has_text(self) -> bool:
        return isinstance(getattr(self.text, "vocab_size", None), int)

    @property
    def has_pictures(self) -> bool:
        return self.vision is not None or hasattr(self.config, "image_size")

    def placeholder(self, kind: str) -> int | None:
        """The token that stands for a part of a picture, sound or video in a text."""
        found = (getattr(self.config, f"{kind}_{ending}", None) for ending in _PLACEHOLDER)
        token = next((t for t in found if isinstance(t, int)), None)
        return token if "input_ids" in self.accepted else None

    def special(self) -> set[int]:
        """Tokens that must not turn up in a plain text."""
        values = (
            getattr(part, name, None)
            for part in (self.config, self.text)
            for name in vars(part)
            if name.endswith(("token_id", "token_index"))
        )
        return {value for value in values if isinstance(value, int)}

    def tokens(self, length: int | None = None, vocabulary: int | None = None) -> Tensor:
        size = vocabulary or getattr(self.text, "vocab_size", None)
        if not isinstance(size, int):
            raise InputError(f"{type(self.text).__name__} has no vocab_size; give example inputs")
        longest = max(getattr(self.text, "max_position_embeddings", None) or 0, 0) or TOKENS
        alone = self.sizes if self.main == ("input_ids",) else None
        count = length or (alone[0] if alone else min(TOKENS, longest))
        return self.random.tokens(size, count, self.special())

    def input_ids(self) -> Tensor:
        ids = self.tokens()
        end, size = getattr(self.text, "eos_token_id", None), getattr(self.text, "vocab_size", None)
        if isinstance(end, int) and size and 0 <= end < size:
            ids[:, -1] = end  # some heads read the output at the end of the sentence
        return ids

    def text_with(self, parts: list[tuple[str, int, int]]) -> dict[str, Tensor]:
        """Tokens with placeholders, one run for each of (kind, token, count), between them plain text."""
        pieces, kinds = self.tokens(4)[0].tolist(), [0] * 4
        for kind, token, count in parts:
            edges = [getattr(self.config, f"vision_{edge}_token_id", None) for edge in ("start", "end")]
            around = kind != "audio" and all(isinstance(edge, int) for edge in edges)
            pieces += [edges[0]] * around + [token] * count + [edges[1]] * around
            kinds += [0] * around + [_KINDS[kind]] * count + [0] * around
        ids = torch.tensor([pieces + self.tokens(4)[0].tolist()])
        types = torch.tensor([kinds + [0] * 4])
        values = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
        return {n: v for n, v in values.items() if n in self.accepted}

    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        own = self.config if self.vision is None or hasattr(self.config, "image_size") else self.vision
        fixed = next((m.img_size for m in self.model.modules() if getattr(m, "strict_img_size", False)), None)
        size = fixed or self.get("image_size", parts=(own, self.vision, *_parts(self.config)), default=224)
        if isinstance(size, dict):
            size = (size["height"], size["width"])
        height, width = (size, size) if isinstance(size, int) else (size[-2], size[-1])
        names = ("num_channels", "in_channels", "in_chans")
        channels = self.get(*names, parts=(self.vision, self.config), default=3)
        return resized((channels if isinstance(channels, int) else 3, height, width), self.sizes)

    def image(self) -> Tensor:
        shape = self.image_shape()
        frames = self.get("num_frames", parts=(self.config, self.vision))
        return self.random.normal(1, *((frames,) if isinstance(frames, int) else ()), *shape)

    def tiles(self) -> int:
        """How many crops of its picture a model of LLaVA-NeXT's kind takes, the whole picture among them."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        pinpoints, size = self.config.image_grid_pinpoints, self.image_shape()[-2:]
        return image_size_to_num_patches(torch.tensor(size), pinpoints, size[0])

    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of patches: a small picture whose patches can be merged."""
        merge = self.get(*_MERGES, parts=(self.vision, self.config), default=2)
        side = 2 * (merge[0] if isinstance(merge, list | tuple) else merge)
        return (1, side, side)

    def patch_size(self) -> int:
        """Numbers in one patch: the inputs of the first layer of the tower for pictures."""
        for name, module in self.model.named_modules():
            inside = self.vision is None or any(word in name for word in _IN_VISION)
            if inside and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                return module.weight[0].numel()
        raise InputError(
            f"{type(self.model).__name__} has no layer that tells the size of a patch; give example inputs"
        )

    def mels(self) -> int:
        for part in (self.audio, self.config, *_parts(self.config)):
            for name in _MELS:
                if type(value := getattr(part, name, None)) is int:
                    return value
        raise InputError(
            f"cannot guess the number of mels of a {type(self.config).__name__}; give example inputs"
        )

    def sound_features(self) -> Tensor:
        """(1, mels, frames) where a convolution over time comes first, (1, frames, mels) elsewhere."""
        mels = self.mels()
        part = self.audio or self.config
        longest = getattr(part, "max_source_positions", None)
        inside = (
            module
            for name, module in self.model.named_modules()
            if self.audio is None or any(word in name for word in _IN_AUDIO)
        )
        first = next((m for m in inside if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)), None)
        window = getattr(part, "n_window", None)
        if isinstance(window, int):
            shape = (mels, 2 * window)
        elif isinstance(first, nn.Conv1d) and first.in_channels == mels:
            shape = (mels, 2 * longest if isinstance(longest, int) else _FRAMES)
        else:
            shape = (_FRAMES, mels)
        return self.random.normal(
            1, *resized(shape, self.sizes if self.main == ("input_features",) else None)
        )


Make = Callable[[Example], dict[str, Any]]
"""Makes the inputs of one type of model that are out of the ordinary, by name."""


def ones(*shape: int) -> Tensor:
    """A mask that hides nothing, int64."""
    return torch.ones(*shape, dtype=torch.long)
