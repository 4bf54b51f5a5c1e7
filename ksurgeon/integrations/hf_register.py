"""Make ksurgeon known to transformers, once its models can be loaded."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from ksurgeon.integrations.hf_config import METHOD, KsurgeonConfig
from ksurgeon.integrations.hf_files import complete_folder, write_beside
from ksurgeon.integrations.hf_quantizer import KsurgeonQuantizer
from ksurgeon.surgery.current import standing_record
from ksurgeon.surgery.readable import require_no_others, require_readable
from ksurgeon.surgery.record import Record, attach, listeners
from ksurgeon.surgery.storage import writers

__all__ = ["register_with_transformers"]


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
    models._upload_modified_files = _completing_before(models._upload_modified_files)


def _tell_config(model: nn.Module, record: Record | None) -> None:
    """The config of a model of transformers says what was done to it, and nothing once that is undone."""
    models: Any = sys.modules["transformers.modeling_utils"].PreTrainedModel
    if not isinstance(model, models):
        return
    config: Any = model.config
    if record is not None and record.changes_something:
        config.quantization_config = KsurgeonConfig(record=record)
    elif isinstance(getattr(config, "quantization_config", None), KsurgeonConfig):
        del config.quantization_config


def _completing(save: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save)
    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, *args: Any, **options: Any
    ) -> None:
        record = _record_to_save(self)
        if record is not None:
            require_readable(self, record)
            require_no_others(self, record)
            options["save_original_format"] = False  # the names of the record are the model's own
        save(self, save_directory, is_main_process, *args, **options)
        if record is not None and is_main_process:
            complete_folder(save_directory, record)

    return save_pretrained


def _completing_before(upload: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upload)
    def _upload_modified_files(self: Any, working_dir: Any, *args: Any, **options: Any) -> Any:
        record = _record_to_save(self)
        if record is not None:  # transformers has just written a card that says nothing
            complete_folder(working_dir, record)
        return upload(self, working_dir, *args, **options)

    return _upload_modified_files


def _record_to_save(model: Any) -> Record | None:
    """The model's record, unless there are no K-modules in what it saves: none are left, or adapters only."""
    record = standing_record(model)
    if record is None or getattr(model, "_hf_peft_config_loaded", False):
        return None
    if not record.changes_something:
        attach(model, record)  # the config is to say nothing of those that others took out
        return None
    return record
