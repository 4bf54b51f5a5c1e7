"""Make ksurgeon known to transformers, once its models can be loaded."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from ksurgeon.integrations.hf_config import METHOD, KsurgeonConfig
from ksurgeon.integrations.hf_files import complete_folder, write_beside
from ksurgeon.integrations.hf_quantizer import KsurgeonQuantizer
from ksurgeon.surgery.record import Record, listeners, record_of
from ksurgeon.surgery.storage import writers

__all__ = ["register_with_transformers"]

_HUB = {"repo_id", "commit_message", "create_pr"}


def register_with_transformers() -> None:
    """Register config and quantizer, and let ``save_pretrained`` write what a converted model needs."""
    from transformers.quantizers.auto import (
        AUTO_QUANTIZER_MAPPING,
        register_quantization_config,
        register_quantizer,
    )

    if METHOD in AUTO_QUANTIZER_MAPPING:
        return
    register_quantization_config(METHOD)(KsurgeonConfig)
    register_quantizer(METHOD)(KsurgeonQuantizer)
    listeners.append(_tell_config)
    writers.append(write_beside)
    models: Any = sys.modules["transformers.modeling_utils"].PreTrainedModel
    models.save_pretrained = _completing(models.save_pretrained)


def _tell_config(model: nn.Module, record: Record | None) -> None:
    """The config of a model of transformers says what was done to it, and nothing once that is undone."""
    models: Any = sys.modules["transformers.modeling_utils"].PreTrainedModel
    if not isinstance(model, models):
        return
    config: Any = model.config
    if record is not None and record.operations:
        config.quantization_config = KsurgeonConfig(record=record)
    elif isinstance(getattr(config, "quantization_config", None), KsurgeonConfig):
        del config.quantization_config


def _completing(save: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **options: Any) -> None:
        record = record_of(self)
        if record is None or not record.operations or getattr(self, "_hf_peft_config_loaded", False):
            return save(self, save_directory, *args, **options)
        options["save_original_format"] = False  # the names of the record are the model's own
        push = options.pop("push_to_hub", False)
        hub: dict[str, Any] = {name: options.pop(name) for name in _HUB & options.keys()}
        save(self, save_directory, *args, **options)
        complete_folder(save_directory, record)
        if push:
            _upload(save_directory, options.get("token"), hub)

    return save_pretrained


def _upload(folder: Any, token: Any, options: dict[str, Any]) -> None:
    from pathlib import Path

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repository = api.create_repo(options.pop("repo_id", Path(folder).name), exist_ok=True).repo_id
    api.upload_folder(folder_path=folder, repo_id=repository, **options)
