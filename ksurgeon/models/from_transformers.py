"""Models of transformers: an ID on the Hugging Face hub, or a folder."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.models.fetch import Unavailable, hub_endpoint, hub_offline
from ksurgeon.models.options import checked_config
from ksurgeon.models.source import Source

__all__ = ["build", "describe", "infer", "pretrained"]


def describe(name: str, options: dict[str, Any]) -> Source:
    """Source with the config of an ID or folder, ``options`` put over it.

    Of the options ``trust_remote_code`` is no entry of the config: it allows to run model code that lies in
    the repository.

    Raises:
        ModelNotFoundError: there is no config there, or one of no known architecture, or of code in the
            repository without leave to run it, or the hub cannot be reached and has not been before.
    """
    from transformers import AutoConfig

    trusted = bool(options.get("trust_remote_code", False))
    options = options | {"trust_remote_code": trusted}
    try:
        try:
            with hub_offline():
                config = AutoConfig.from_pretrained(name, **options)
        except OSError:
            if Path(name).is_dir():
                raise
            if hub_endpoint() is None:
                raise ModelNotFoundError(
                    f'"{name}" is not in the local cache of the Hugging Face hub, and the hub cannot be '
                    f"reached; check the network, or give a folder with config.json and model.safetensors"
                ) from None
            config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        if not trusted and "custom code" in str(error):
            raise ModelNotFoundError(
                f'"{name}" brings model code of its own, which is not run unless you ask for it: '
                "read it, then give --trust-remote-code"
            ) from error
        raise ModelNotFoundError(
            f'transformers cannot read a config from "{name}": {_first_line(error)}'
        ) from error
    kept: dict[str, Any] = {"config": _plain(config)}
    if trusted and _is_remote(config):
        kept["trust_remote_code"] = True
    return Source(kind="transformers", name=name, options=kept)


def build(source: Source) -> nn.Module:
    """The architecture of ``source.options["config"]`` with fresh weights; asks no hub."""
    config = _config(source)
    model: nn.Module = _class(source)._from_config(config)
    return model


def pretrained(source: Source) -> tuple[nn.Module, list[str]]:
    """The model with the weights of its ID or folder, and a note if they do not hold all of it.

    Raises:
        Unavailable: they are neither cached nor to be downloaded.
    """
    load = _class(source).from_pretrained
    settings: dict[str, Any] = {"config": _config(source), "output_loading_info": True}
    folder = Path(source.name)
    if folder.is_dir() and not source.options.get("trust_remote_code"):
        settings["use_safetensors"] = True  # no pickle of a folder is read
        if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
            raise Unavailable(
                f"{folder} holds pickled weights only, which are not read: load it with transformers, and "
                "save_pretrained writes safetensors"
            )
    try:
        with hub_offline():
            model, info = load(source.name, **settings)
    except OSError as error:
        if Path(source.name).is_dir():
            raise Unavailable(_first_line(error)) from error
        if hub_endpoint() is None:
            raise Unavailable(
                f"{source.name} is not cached and the Hugging Face hub cannot be reached"
            ) from error
        model, info = load(source.name, **settings)
    missing = sorted(info["missing_keys"])
    notes = []
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        notes.append(f"{len(missing)} tensors are not in the pretrained weights and are RANDOM: {shown}")
    return model, notes


def infer(model: nn.Module) -> Iterator[Source]:
    """The source that the model's own config tells, if its class is one of transformers' own."""
    import transformers

    if isinstance(model, transformers.PreTrainedModel) and hasattr(transformers, type(model).__name__):
        config = _plain(model.config) | {"architectures": [type(model).__name__]}
        yield Source(
            kind="transformers",
            name=model.config.name_or_path or type(model).__name__,
            options={"config": config},
        )


def _plain(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(config.to_json_string())
    plain.pop("transformers_weights", None)
    if (plain.get("quantization_config") or {}).get("quant_method") == "ksurgeon":
        del plain["quantization_config"]
    return plain


def _is_remote(config: Any) -> bool:
    return type(config).__module__.startswith("transformers_modules.")


def _config(source: Source) -> Any:
    from transformers import AutoConfig

    if source.options.get("trust_remote_code"):
        return AutoConfig.from_pretrained(source.name, trust_remote_code=True)
    config = source.options.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelNotFoundError(f"{source.name}: its config has no model_type")
    plain = checked_config(config)
    kind = plain.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **plain)
    except ValueError as error:
        raise ModelNotFoundError(
            f'the installed transformers has no model type "{kind}" (model code from a repository is not run)'
        ) from error


def _class(source: Source) -> Any:
    import transformers

    if source.options.get("trust_remote_code"):
        return _remote_class(source)
    config = _config(source)
    architectures = config.architectures
    if not architectures:
        return transformers.AutoModel._model_mapping[type(config)]
    found = getattr(transformers, str(architectures[0]), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelNotFoundError(
            f'the installed transformers has no class "{architectures[0]}", of {source.name}'
        )
    return found


def _remote_class(source: Source) -> Any:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    config = source.options["config"]
    references = {
        reference.rpartition(".")[2]: reference
        for name, reference in (config.get("auto_map") or {}).items()
        if isinstance(reference, str) and name.startswith("AutoModel")
    }
    wanted = (config.get("architectures") or list(references) or [""])[0]
    if wanted not in references:
        raise ModelNotFoundError(
            f"the code of {source.name} has no model class {wanted!r}; its auto_map names "
            f"{', '.join(references) or 'none'}"
        )
    return get_class_from_dynamic_module(references[wanted], source.name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
