"""Open the model that a command names, on its device, with example inputs."""

import logging
import warnings
from functools import partial

import torch

from ksurgeon.calibrate import Batches, open_data
from ksurgeon.cli.commands import Convert, Diff, Find, Plan
from ksurgeon.cli.console import err, status
from ksurgeon.errors import InputError, WeightsError
from ksurgeon.kernels import chosen_backend
from ksurgeon.models.inputs import inputs_for
from ksurgeon.models.names import parse
from ksurgeon.models.opening import LoadedModel, open_model
from ksurgeon.report.terminal import warn
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.recorded import inputs_like
from ksurgeon.surgery.storage import load

__all__ = ["open_asked", "open_batches", "open_on"]


def open_on(
    name: str, weights: str, input_size: str | None, seed: int, device: str, trust_remote_code: bool
) -> LoadedModel:
    """Open a model, warn of what the user has to know, and move it to a device.

    The example inputs of a converted model are those that its record tells of, if no size is asked for.

    Raises:
        InputError: an input size or a device that makes no sense, or a device that is not there.
    """
    chosen_backend()  # what the environment asks for is there
    where = _device(device)
    sizes = _sizes(input_size)
    logging.getLogger("timm").setLevel(logging.ERROR)
    with status(f"opening {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind, _ = parse(name)
        if kind == "ksurgeon":
            loaded = _open_converted(name, weights, sizes, seed, trust_remote_code)
        else:
            options = {"trust_remote_code": True} if trust_remote_code and kind == "transformers" else None
            loaded = open_model(name, weights=weights, seed=seed, input_size=sizes, options=options)
    for note in loaded.notes:
        warn(err, note, "RANDOM WEIGHTS" if "RANDOM" in note else "warning")
    loaded.model.to(where)
    return loaded


def open_asked(name: str, asked: Convert | Diff | Find | Plan, weights: str | None = None) -> LoadedModel:
    """``open_on`` as a command is asked to, but for the weights where others are named."""
    weights = asked.weights if weights is None else weights
    return open_on(name, weights, asked.input_size, asked.seed, asked.device, asked.trust_remote_code)


def open_batches(data: str, loaded: LoadedModel, asked: Convert | Plan, batch_size: int = 16) -> Batches:
    """The data that a command is given, for the model; what cannot be read is said."""
    with status("reading data"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        batches = open_data(
            data,
            loaded.model,
            examples=asked.examples,
            batch_size=batch_size,
            tokenizer=asked.tokenizer,
            max_length=asked.max_length,
            source=loaded.source,
            example_inputs=None if loaded.guesses else loaded.example_inputs,
        )
    if batches.warning:
        warn(err, batches.warning)
    return batches


def _open_converted(
    folder: str, weights: str, sizes: tuple[int, ...] | None, seed: int, trust_remote_code: bool
) -> LoadedModel:
    if weights not in ("auto", "pretrained"):
        raise WeightsError(f"{folder} is a converted model and has its own weights; leave --weights at auto")
    model = load(folder, trust_remote_code=trust_remote_code)
    record = record_of(model)
    assert record is not None and record.source is not None  # or it could not have been loaded
    source, described = record.source, record.inputs
    notes = [source.weights_note] if source.weights_note else []
    if sizes is None and described is not None:
        make_inputs = partial(inputs_like, source=source, described=described, seed=seed)
        return LoadedModel(model, source, make_inputs, notes)
    make_inputs = partial(inputs_for, source=source, input_size=sizes, seed=seed)
    return LoadedModel(model, source, make_inputs, notes, source.kind == "function" and sizes is None)


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
