"""Open the model that a command names, on its device, with example inputs."""

import logging
import warnings

import torch
from torch.utils import _pytree as pytree

from ksurgeon.cli.console import err, status
from ksurgeon.errors import InputError, WeightsError
from ksurgeon.models.inputs import inputs_for
from ksurgeon.models.names import parse
from ksurgeon.models.opening import LoadedModel, open_model
from ksurgeon.report.terminal import warn
from ksurgeon.surgery.record_file import read_record
from ksurgeon.surgery.storage import load

__all__ = ["open_on"]


def open_on(
    name: str, weights: str, input_size: str | None, seed: int, device: str, trust_remote_code: bool = False
) -> LoadedModel:
    """Open a model, warn of what the user has to know, and move it to a device.

    Raises:
        InputError: an input size or a device that makes no sense, or a device that is not there.
    """
    where = _device(device)
    sizes = _sizes(input_size)
    logging.getLogger("timm").setLevel(logging.ERROR)
    with status(f"opening {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind, _ = parse(name)
        if kind == "ksurgeon":
            loaded = _open_converted(name, weights, sizes, seed, trust_remote_code)
        else:
            options = {"trust_remote_code": True} if trust_remote_code else None
            if options and kind != "transformers":
                raise InputError(
                    f"--trust-remote-code is for models of transformers; {name} is one of {kind}"
                )
            loaded = open_model(name, weights=weights, seed=seed, input_size=sizes, options=options)
    for note in loaded.notes:
        warn(err, note, "RANDOM WEIGHTS" if "RANDOM" in note else "warning")
    loaded.model.to(where)
    inputs = pytree.tree_map(
        lambda leaf: leaf.to(where) if isinstance(leaf, torch.Tensor) else leaf, loaded.example_inputs
    )
    return LoadedModel(loaded.model, loaded.source, inputs, loaded.notes)


def _open_converted(
    folder: str, weights: str, sizes: tuple[int, ...] | None, seed: int, trust_remote_code: bool
) -> LoadedModel:
    if weights not in ("auto", "pretrained"):
        raise WeightsError(f"{folder} is a converted model and has its own weights; leave --weights at auto")
    model = load(folder, trust_remote_code=trust_remote_code)
    source = read_record(folder).source
    assert source is not None  # or it could not have been loaded
    notes = [source.weights_note] if source.weights_note else []
    return LoadedModel(model, source, inputs_for(model, source, sizes, seed), notes)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--device {name}: {reason}; `ksurgeon doctor` shows the devices there are"
        ) from error
    return device


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        raise InputError(f"--input-size {text}: expected numbers such as 224, 224x160 or 3x224x224") from None
