"""LoRA on K-layers: peft adds its low-rank update beside the K-matrix, which stays frozen."""

import warnings
from typing import Any, NoReturn

from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ksurgeon.errors import SurgeryError
from ksurgeon.kmatrix.linear import KLinear

__all__ = ["KLoraLinear", "register_with_peft"]

_REWRITING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class KLoraLinear(lora.Linear):  # type: ignore[misc]
    """A ``KLinear`` and low-rank updates beside it. A K-matrix cannot take an update up, so none is
    merged, and none starts by taking something out of the layer's weight."""

    def update_layer(self, *args: Any, config: Any, **options: Any) -> None:
        """Add an adapter.

        Raises:
            SurgeryError: its start rewrites the weight of the layer, which is a K-matrix.
        """
        try:
            super().update_layer(*args, config=config, **options)
        except SurgeryError as error:
            _refuse(config, error)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the updates into the layer, once it is dense.

        Raises:
            SurgeryError: the layer is a K-matrix.
        """
        if isinstance(self.get_base_layer(), KLinear):
            raise SurgeryError(
                "a low-rank update cannot be merged into a K-matrix; keep the adapter unmerged, or make the "
                "layers dense first: ksurgeon.revert(model.get_base_model())"
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


def register_with_peft() -> None:
    """Let peft's choice of a LoRA layer know ``KLinear``, and refuse what cannot be before any is put in."""
    default, prepare = lora_model.dispatch_default, lora_model.LoraModel._pre_injection_hook

    def dispatch(
        target: nn.Module, adapter_name: str, config: Any, parameter_name: str | None = None, **options: Any
    ) -> nn.Module | None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if parameter_name is not None or not isinstance(base, KLinear):
            return default(target, adapter_name, config=config, parameter_name=parameter_name, **options)
        config.fan_in_fan_out = base.transposed
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unsupported layer type")
            return KLoraLinear(target, adapter_name, config=config, **options)

    def check(self: Any, model: nn.Module, config: Any, adapter_name: str) -> None:
        if str(config.init_lora_weights).lower().startswith(_REWRITING):
            for path, module in model.named_modules():
                base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
                if isinstance(base, KLinear) and self._check_target_module_exists(config, path):
                    _refuse(config, None)
        prepare(self, model, config, adapter_name)

    lora_model.dispatch_default = dispatch
    lora_model.LoraModel._pre_injection_hook = check


def _refuse(config: Any, cause: Exception | None) -> NoReturn:
    raise SurgeryError(
        f"init_lora_weights={config.init_lora_weights!r} moves a part of the layer's weight into the "
        "adapter, and the weight of a K-matrix cannot be rewritten; leave init_lora_weights at its default, "
        "or make the layers dense first: ksurgeon.revert(model)"
    ) from cause
