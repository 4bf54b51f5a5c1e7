"""Models of timm."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.models.fetch import Unavailable, hub_cached, hub_endpoint, reachable, torch_cached
from ksurgeon.models.options import checked_options
from ksurgeon.models.source import Source

__all__ = ["build", "has", "infer", "input_shape", "names", "pretrained"]

_FEATURES = {
    "FeatureListNet": "list",
    "FeatureDictNet": "dict",
    "FeatureHookNet": "hook",
    "FeatureGetterNet": "getter",
    "FeatureGraphNet": "fx",
}


def names() -> list[str]:
    """All model names, without tags of weights."""
    import timm

    return list(timm.list_models())


def has(name: str) -> bool:
    """Whether timm knows the model, and the tag of weights if the name has one."""
    import timm

    try:
        return timm.is_model(name) and timm.get_pretrained_cfg(name) is not None
    except RuntimeError:  # no such tag
        return False


def build(source: Source) -> nn.Module:
    """The architecture with fresh weights."""
    import timm

    _require_own(source.name)
    model: nn.Module = timm.create_model(source.name, pretrained=False, **checked_options(source.options))
    return model


def pretrained(source: Source) -> tuple[nn.Module, list[str]]:
    """The model with its pretrained weights, from the caches or downloaded.

    Raises:
        Unavailable: there are none, or they are neither cached nor to be downloaded.
    """
    import timm

    _require_own(source.name)
    config = timm.get_pretrained_cfg(source.name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise Unavailable(f"timm has no pretrained weights for {source.name}")
    overlay: dict[str, Any] = {}
    cached = None
    if config.hf_hub_id:
        named = config.hf_hub_filename
        files = (named,) if named else ("model.safetensors", "pytorch_model.bin")
        cached = hub_cached(config.hf_hub_id, *files)
    if cached is None and config.url:
        cached = torch_cached(config.url)
    if cached is not None:
        overlay = {"file": str(cached)}
    elif config.hf_hub_id:
        if hub_endpoint() is None:
            raise Unavailable(f"{config.hf_hub_id} is not cached and the Hugging Face hub cannot be reached")
    elif config.url and not reachable(config.url):
        raise Unavailable(f"{config.url} is not cached and cannot be reached")
    model: nn.Module = timm.create_model(
        source.name, pretrained=True, pretrained_cfg_overlay=overlay, **checked_options(source.options)
    )
    return model, []


def _require_own(name: str) -> None:
    """timm takes folders and hub IDs for names, too: local-dir:…, hf-hub:…"""
    import timm

    if not timm.is_model(name):
        raise ModelNotFoundError(f'timm has no model "{name}"')


def infer(model: nn.Module) -> Iterator[Source]:
    """Sources that the model's own ``pretrained_cfg``, class and sizes point to, the plainest first."""
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or not config.get("architecture"):
        return
    name = ".".join(filter(None, (config["architecture"], config.get("tag"))))
    options: dict[str, Any] = _sizes(model)
    taps = getattr(getattr(model, "feature_info", None), "out_indices", None)
    if taps is not None:
        options |= {"features_only": True, "out_indices": list(taps)}
    elif getattr(model, "num_classes", None) not in (None, config.get("num_classes")):
        options["num_classes"] = model.num_classes
    for further in ({}, *_habits(model)):
        yield Source(kind="timm", name=name, options=options | further)
        if taps is not None and type(model).__name__ in _FEATURES:
            kind = {"feature_cls": _FEATURES[type(model).__name__]}
            yield Source(kind="timm", name=name, options=options | further | kind)


def _sizes(model: nn.Module) -> dict[str, Any]:
    options: dict[str, Any] = {}
    channels, *size = input_shape(model) or (3, 224, 224)
    stem = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is not None and stem.in_channels != channels:
        options["in_chans"] = stem.in_channels
    inside = next((m for m in model.modules() if hasattr(m, "patch_embed")), None)
    image = getattr(getattr(inside, "patch_embed", None), "img_size", None)
    if image is not None and list(image) != size:
        options["img_size"] = list(image)
    return options


def _habits(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What a builder may have been told about training, and about pooling."""
    options: dict[str, Any] = {}
    paths = [m for m in model.modules() if type(m).__name__ == "DropPath"]
    if paths:  # the last of them drops most
        options["drop_path_rate"] = round(max(float(getattr(m, "drop_prob", None) or 0.0) for m in paths), 6)
    if getattr(model, "drop_rate", 0.0):
        options["drop_rate"] = model.drop_rate
    if options:
        yield options
    for part in (model, getattr(model, "head", None)):
        pool = getattr(part, "global_pool", None)
        pool = getattr(pool, "pool_type", pool)
        if isinstance(pool, str) and pool:
            yield options | {"global_pool": pool}


def input_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Channels, height and width that the model's ``pretrained_cfg`` names."""
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    return tuple(size) if size else None
