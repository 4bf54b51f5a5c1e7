"""Example inputs that fit a model: what its library says it takes, or what its first layer shows."""

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ksurgeon.errors import InputError
from ksurgeon.models import from_timm, from_torchvision
from ksurgeon.models.source import Source

__all__ = ["InputSize", "Inputs", "inputs_for"]

Inputs = tuple[Any, ...] | dict[str, Any]
InputSize = int | Sequence[int] | None

_TOKENS = 16
_KNOWN = frozenset({"input_ids", "pixel_values", "input_values", "input_features", "pixel_values_videos"})
_AUDIO_SAMPLES = 16_000


def inputs_for(
    model: nn.Module, source: Source | None = None, input_size: InputSize = None, seed: int = 0
) -> Inputs:
    """One random example for the model: a tuple of positional arguments, or keyword arguments.

    What its library does not tell is guessed from the model's first layer. Floating-point inputs have the
    dtype of the model's parameters, and all are on its device.

    Args:
        model: the model.
        source: where it comes from, if known; torchvision's sizes go by name.
        input_size: one number for the side of a square image (or the length of a text or sound), or the
            height and width, or the whole shape of one example.
        seed: of the random numbers; the global random state stays as it is.

    Raises:
        InputError: nothing tells what the model takes, or the size is no size.
    """
    sizes = _sizes(input_size)
    random = _Random(model, seed)
    if _of_transformers(model):
        inputs = _transformers_inputs(model, sizes, random)
        return {name: value.to(random.device) for name, value in inputs.items()}
    shape = _known_shape(model, source) or _shape_of_first_layer(model)
    if shape is None and sizes is None:
        raise InputError(
            f"nothing tells what {type(model).__name__} takes; give example inputs, or the shape of one "
            f"example as the input size"
        )
    if isinstance(shape, int):
        return (random.tokens(shape, sizes[0] if sizes else _TOKENS).to(random.device),)
    return (random.normal(_resized(shape, sizes)),)


def _of_transformers(model: nn.Module) -> bool:
    return hasattr(model, "main_input_name") and hasattr(model, "config")


class _Random:
    """Random tensors for one model, from a generator of their own."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        parameters = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
        self.dtype = parameters[0].dtype if parameters else torch.get_default_dtype()
        self.device = parameters[0].device if parameters else torch.device("cpu")
        if self.device.type == "meta":
            self.device = torch.device("cpu")

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(1, *shape, generator=self.generator).to(self.device, self.dtype)

    def tokens(self, vocabulary: int, length: int) -> Tensor:
        low = min(10, vocabulary - 1)  # below are the special tokens of most vocabularies
        return torch.randint(low, vocabulary, (1, length), generator=self.generator)


def _sizes(input_size: InputSize) -> tuple[int, ...] | None:
    if input_size is None:
        return None
    sizes = (input_size,) if isinstance(input_size, int) else tuple(input_size)
    if not sizes or min(sizes) < 1:
        raise InputError(f"an input size is one or more numbers of at least 1, got {input_size}")
    return sizes


def _resized(shape: tuple[int, ...] | None, sizes: tuple[int, ...] | None) -> tuple[int, ...]:
    """``shape`` with its last entries replaced: one size stands for a square image, too."""
    if sizes is None:
        return shape or ()
    if shape is None or len(sizes) > len(shape):
        return sizes
    if len(sizes) == 1 and len(shape) > 2:
        sizes *= 2
    return (*shape[: -len(sizes)], *sizes)


def _known_shape(model: nn.Module, source: Source | None = None) -> tuple[int, ...] | None:
    """Shape of one example, if the model's library tells it."""
    if source is not None and source.kind == "torchvision":
        return from_torchvision.input_shape(source.name)
    if any(base.__module__.startswith("torchvision.models.") for base in type(model).__mro__):
        return (3, 16, 112, 112) if ".video." in type(model).__module__ else (3, 224, 224)
    return from_timm.input_shape(model)


def _shape_of_first_layer(model: nn.Module) -> tuple[int, ...] | int | None:
    """Shape of one example, or the size of the vocabulary where examples are tokens."""
    for module in model.modules():
        match module:
            case nn.Embedding():
                return module.num_embeddings
            case nn.Linear():
                return (module.in_features,)
            case nn.Conv1d():
                return (module.in_channels, 1024)
            case nn.Conv2d():
                return (module.in_channels, 224, 224)
            case nn.Conv3d():
                return (module.in_channels, 16, 112, 112)
    return None


def _transformers_inputs(model: Any, sizes: tuple[int, ...] | None, random: _Random) -> dict[str, Tensor]:
    config, main = model.config, model.main_input_name
    accepted = signature(model.forward).parameters
    wanted = {main}
    wanted |= {name for name in _KNOWN & accepted.keys() if accepted[name].default is Parameter.empty}
    if (
        "input_ids" in wanted
        and "pixel_values" in accepted
        and not hasattr(config.get_text_config(), "vocab_size")
    ):
        wanted = wanted - {"input_ids"} | {"pixel_values"}
    if (
        hasattr(config, "text_config")
        and hasattr(config, "vision_config")
        and not hasattr(config, "image_token_id")
    ):
        wanted |= {"input_ids", "pixel_values"} & accepted.keys()
    inputs: dict[str, Tensor] = {}
    if "input_ids" in wanted:
        inputs |= _text(config, accepted, sizes if main == "input_ids" and len(wanted) == 1 else None, random)
    if "pixel_values" in wanted:
        inputs["pixel_values"] = random.normal(
            _resized(_image(getattr(config, "vision_config", config)), sizes)
        )
    if "input_values" in wanted:
        mels, length = getattr(config, "num_mel_bins", None), getattr(config, "max_length", None)
        channels = getattr(config, "audio_channels", None)  # of codecs
        plain = (channels, _AUDIO_SAMPLES) if isinstance(channels, int) else (_AUDIO_SAMPLES,)
        sound = (length, mels) if mels and length else plain
        inputs["input_values"] = random.normal(_resized(sound, sizes))
    if "input_features" in wanted:
        inputs["input_features"] = random.normal(_resized(_mels(config), sizes))
    if "pixel_values_videos" in wanted:
        image = _image(getattr(config, "vision_config", config))
        inputs["pixel_values_videos"] = random.normal(_resized((2, *image[-3:]), sizes))
    if not inputs:
        raise InputError(
            f'no example is known for the input "{main}" of {type(model).__name__}; give example inputs'
        )
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        vocabulary = config.get_text_config(decoder=True).vocab_size
        inputs["decoder_input_ids"] = random.tokens(vocabulary, _TOKENS)
    return inputs


def _mels(config: Any) -> tuple[int, int]:
    """Shape of the features of a sound: (mels, time) for Whisper's kin, (time, mels) for all others."""
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return (config.num_mel_bins, 2 * config.max_source_positions)
    inner = [getattr(config, name, None) for name in ("audio_config", "encoder_config", "encoder")]
    for part in (config, *inner):
        for name in ("num_mel_bins", "feature_size", "input_feat_size", "input_dim", "n_mels"):
            if isinstance(getattr(part, name, None), int):
                return (128, getattr(part, name))
    raise InputError(f"nothing tells how many mels a {type(config).__name__} takes; give example inputs")


def _text(config: Any, accepted: Any, sizes: tuple[int, ...] | None, random: _Random) -> dict[str, Tensor]:
    text = config.get_text_config()
    if not isinstance(getattr(text, "vocab_size", None), int):
        raise InputError(f"{type(text).__name__} tells no size of a vocabulary; give example inputs")
    longest = getattr(text, "max_position_embeddings", None) or _TOKENS
    ids = random.tokens(text.vocab_size, sizes[0] if sizes else min(_TOKENS, longest))
    end = getattr(text, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < text.vocab_size:
        ids[:, -1] = end  # some heads read the output at the end of the sentence
    inputs = {"input_ids": ids}
    if "attention_mask" in accepted:
        inputs["attention_mask"] = torch.ones_like(ids)
    return inputs


def _image(config: Any) -> tuple[int, ...]:
    size = getattr(config, "image_size", 224)
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    shape = (getattr(config, "num_channels", 3), height, width)
    frames = getattr(config, "num_frames", None)
    return (frames, *shape) if frames else shape
