"""The files of a converted model of transformers that its own ``save_pretrained`` does not write."""

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ksurgeon.integrations.card import CARD_FILE, is_replaceable, model_card
from ksurgeon.integrations.hf_config import KsurgeonConfig
from ksurgeon.surgery.record import Record

__all__ = ["NEEDS_KSURGEON", "complete_folder", "write_beside"]

NEEDS_KSURGEON = "this-model-needs-pip-install-ksurgeon-and-import-ksurgeon.safetensors"
"""What ``config.json`` calls the file of weights. transformers skips a quantisation method that it does not
know and fills the layers that are missing with random numbers under a warning; a file that is not there stops
it, and says why. The quantizer takes the name out before transformers looks."""


def write_beside(model: nn.Module, record: Record, folder: Path) -> None:
    """Write what ``from_pretrained`` reads beside the tensors, if the model is one of transformers."""
    if not isinstance(model, PreTrainedModel):
        return
    config = {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}
    config |= {"dtype": str(model.dtype).removeprefix("torch.")}
    config.pop("quantization_config", None)
    _write_json(folder / "config.json", config)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    if record.changes_something:
        complete_folder(folder, record)


def complete_folder(folder: str | Path, record: Record) -> None:
    """Add to what ``save_pretrained`` wrote: the guard in ``config.json``, and a model card.

    A model card that somebody wrote is left as it is.
    """
    file = Path(folder) / "config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        config["quantization_config"] = KsurgeonConfig(record=record).to_dict()
        _write_json(file, config | {"transformers_weights": NEEDS_KSURGEON})
    card = Path(folder) / CARD_FILE
    if not card.exists() or is_replaceable(card):
        card.write_text(model_card(record), encoding="utf-8")


def _write_json(file: Path, plain: dict[str, Any]) -> None:
    file.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
