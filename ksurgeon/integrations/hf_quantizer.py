"""ksurgeon as a quantisation method of transformers: what ``from_pretrained`` asks while it loads."""

from collections.abc import Sequence
from typing import Any

import transformers
from torch import nn
from transformers.quantizers.base import HfQuantizer

from ksurgeon.integrations.hf_config import KsurgeonConfig
from ksurgeon.integrations.hf_on_load import ConvertOnLoad, Planned, finish, plan_for
from ksurgeon.integrations.hf_rebuild import rebuild, restore
from ksurgeon.integrations.hf_versions import require_transformers
from ksurgeon.surgery.record import Record, attach

__all__ = ["KsurgeonQuantizer"]


class KsurgeonQuantizer(HfQuantizer):  # type: ignore[misc]
    """Rebuilds the K-modules of a record before their values are loaded, or converts dense weights as they
    are."""

    quantization_config: KsurgeonConfig

    def __init__(self, quantization_config: KsurgeonConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        # A config.json with a rule and dense weights beside it is converted while it loads.
        self.pre_quantized = quantization_config.record is not None
        self.planned: dict[str, Planned] = {}
        self._record: Record | None = None
        self._kept: dict[str, Any] = {}

    def validate_environment(self, *args: Any, **options: Any) -> None:
        require_transformers()

    def update_attn_implementation(self, config: Any) -> Any:
        """Sees the config first: the file name that stops a loader without ksurgeon goes."""
        if hasattr(config, "transformers_weights"):
            del config.transformers_weights
        return config

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **options: Any
    ) -> None:
        if self.quantization_config.record is not None:
            self._record, self._kept = rebuild(model, self.quantization_config.record, checkpoint_files)
        else:
            assert self.quantization_config.rule is not None
            self._record, self.planned = plan_for(model, self.quantization_config)

    def update_weight_conversions(self, weight_conversions: list[Any], model: nn.Module) -> list[Any]:
        """What a converted model saved has the model's own names: nothing is to be renamed or joined."""
        return [] if self.pre_quantized else super().update_weight_conversions(weight_conversions, model)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **options: Any) -> bool:
        return param_name in self.planned

    def get_quantize_ops(self) -> ConvertOnLoad:
        return ConvertOnLoad(self.planned, self.quantization_config.seed)

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> None:
        """A converted model is an ordinary one: it trains, moves and changes its dtype like any other."""
        self.remove_quantization_config(model)
        for module in model.modules():
            if isinstance(module, transformers.PreTrainedModel) and hasattr(module.config, "_is_quantized"):
                del module.config._is_quantized
        assert self._record is not None
        if self.pre_quantized:
            restore(model, self._kept)
            attach(model, self._record)
        else:
            finish(model, self._record, self.planned, self.quantization_config)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
