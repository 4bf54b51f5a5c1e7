"""Small models with random weights of every model type of transformers."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tools.survey.tiny_exceptions import EXCEPTIONS, SIZES

__all__ = ["NotInstalledError", "build", "names", "small_config"]

_VOCABULARY = 128
_LARGEST = 130_000_000
_DEPTHS = frozenset((
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_decoder_layers", "num_encoder_layers", "depth", "num_blocks", "num_hidden_groups",
    "transformer_layers", "num_transformer_layers", "speech_encoder_layers", "t2u_encoder_layers",
    "t2u_decoder_layers",
))  # fmt: skip
_HEADED = (
    ("hidden_size", "num_attention_heads"), ("hidden_size", "num_heads"), ("embed_dim", "num_heads"),
    ("n_embd", "n_head"), ("d_model", "num_heads"),
)  # fmt: skip
_MOST_DISTINCT = 4


class NotInstalledError(RuntimeError):
    """The model's code needs a library that is not installed."""


def names() -> list[str]:
    """Every model type that has a base model."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


def build(name: str) -> Iterator[nn.Module]:
    """The model in eval mode; then, if there are any, other sizes of it.

    Raises:
        NotInstalledError: its code needs a library that is not installed.
        RuntimeError: none can be built that is small.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    failures: list[str] = []
    for sizes in SIZES:
        try:
            config = small_config(name, sizes)
            classes = MODEL_MAPPING[type(config)]
            cls = classes[0] if isinstance(classes, tuple) else classes
            with torch.device("meta"):
                count = sum(p.numel() for p in cls(_of(cls, config)).parameters())
            if count > _LARGEST:
                raise RuntimeError(f"{count / 1e6:.0f} million parameters")
            torch.manual_seed(0)
            model = cls(_of(cls, small_config(name, sizes))).eval()
        except ImportError as error:
            raise NotInstalledError(str(error).strip().splitlines()[0]) from error
        except Exception as error:
            failures.append(f"{type(error).__name__}: {str(error).strip()[:80]}")
        else:
            yield model
    if len(failures) == len(SIZES):
        raise RuntimeError(f"no small configuration: {'; '.join(failures)}")


def small_config(name: str, sizes: Mapping[str, int]) -> Any:
    """The default configuration of a model type with small sizes, consistent within it and in its parts."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[name]
    exceptions = EXCEPTIONS.get(name, {})
    default = cls(**exceptions)
    return cls(**_merged(_Shrink(sizes).arguments(default), exceptions))


def _of(cls: Any, config: Any) -> Any:
    """The configuration, or the part of it that the class takes: Musicgen's base model is its decoder."""
    if isinstance(config, cls.config_class):
        return config
    return next((part for part in vars(config).values() if isinstance(part, cls.config_class)), config)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


class _Shrink:
    """Arguments that make a configuration and those in it small; equal tokens stay equal."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.tokens: dict[int, int] = {}

    def arguments(self, config: Any) -> dict[str, Any]:
        values = {k: v for k, v in vars(config).items() if not k.startswith("_")}
        small: dict[str, Any] = {}
        for key, value in values.items():
            if hasattr(value, "to_dict") and hasattr(value, "model_type"):
                small[key] = self.part(config, key, value)
            elif type(value) is int and value > self.sizes.get(key, value):
                small[key] = self.sizes[key]
            elif key.endswith("depths") and isinstance(value, list | tuple):
                small[key] = type(value)(min(v, 2) if type(v) is int else v for v in value)
            elif key.endswith(("token_id", "token_ids", "token_index")):
                small[key] = self.token(value)
        small |= self.heads(values)
        small |= self.absent(values | small)
        staged = {"depths", "patch_sizes"} & values.keys() or getattr(config, "_out_indices", None)
        if not staged:
            small |= self.layers(values)
        return _merged(small, EXCEPTIONS.get(config.model_type, {}))

    def part(self, config: Any, key: str, part: Any) -> Any:
        if part.model_type.startswith("timm"):
            return part
        spec = config.sub_configs_defaults.get(key)
        given = spec.init_kwargs if spec and spec.model_type == part.model_type else {}
        return given | {"model_type": part.model_type} | self.arguments(part)

    def absent(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Sizes that checkpoints always give and default configurations leave out."""
        width, heads = values.get("hidden_size"), values.get("num_attention_heads")
        sizes = {"vocab_size": _VOCABULARY}
        if type(width) is int and type(heads) is int:
            sizes |= {"head_dim": width // heads, "num_key_value_heads": heads}
        return {k: v for k, v in sizes.items() if k in values and values[k] is None}

    def token(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self.token(v) for v in value)
        if type(value) is int and value >= _VOCABULARY:
            return self.tokens.setdefault(value, _VOCABULARY - 2 - len(self.tokens))
        return value

    def layers(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Two layers, or one of each kind where lists tell the kinds; indices of layers that remain."""
        small: dict[str, Any] = {}
        for key in _DEPTHS & values.keys():
            depth = values[key]
            if type(depth) is not int or depth <= 2:
                continue
            lists = {
                k: v
                for k, v in values.items()
                if isinstance(v, list | tuple)
                and len(v) == depth
                and {type(x) for x in v} <= {str, int, bool}
            }
            kinds = [v for v in lists.values() if len(set(v)) <= _MOST_DISTINCT]
            rows = list(zip(*kinds, strict=True))
            kept = sorted({rows.index(row) for row in rows}) or [0, 1]
            if len(kept) == 1:
                kept.append(next(i for i in range(depth) if i not in kept))
            kept.sort()
            small[key] = len(kept)
            small |= {k: type(v)(v[i] for i in kept) for k, v in lists.items()}
            small |= {
                k: sorted({i for i in v if i < len(kept)} | {len(kept) - 1})
                for k, v in values.items()
                if isinstance(v, list | tuple)
                and v
                and k.endswith(("indexes", "indices"))
                and k[:4] != "out_"
            }
        return small

    def heads(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """As many heads as leave their size alone, which rotary embeddings are cut to."""
        for width, heads in _HEADED:
            wide, many = values.get(width), values.get(heads)
            if type(wide) is not int or type(many) is not int or wide <= self.sizes.get(width, wide):
                continue
            new = self.sizes[width]
            size = wide // max(many, 1)
            count = new // size if new % size == 0 and new // size > 1 else self.sizes.get(heads, many)
            small = {heads: min(many, count)}
            pairs = values.get("num_key_value_heads")
            if type(pairs) is int and pairs > 1:
                small["num_key_value_heads"] = small[heads] if pairs == many else max(1, small[heads] // 2)
            return small
        return {}
