"""LoRA on K-layers: peft adds its low-rank update beside the K-matrix, which stays frozen."""

import warnings
from typing import Any

from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ksurgeon.errors import SurgeryError
from ksurgeon.kmatrix.linear import KLinear

__all__ = ["KLoraLinear", "register_with_peft"]


class KLoraLinear(lora.Linear):  # type: ignore[misc]
    """A ``KLinear`` and low-rank updates beside it. A K-matrix cannot take an update up, so none is
    merged."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the updates into the layer, once it is dense.

        Raises:
            SurgeryError: the layer is a K-matrix.
        """
        if isinstance(self.get_base_layer(), KLinear):
            raise SurgeryError(
                "a low-rank update cannot be merged into a K-matrix; keep the adapter beside it, or make the "
                "layers dense first: ksurgeon.revert(model.get_base_model())"
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


def register_with_peft() -> None:
    """Let peft's choice of a LoRA layer know ``KLinear``."""
    default = lora_model.dispatch_default

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

    lora_model.dispatch_default = dispatch
