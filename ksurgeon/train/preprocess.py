"""From examples to a model's inputs: the preprocessing that belongs to the model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ksurgeon.errors import DataError
from ksurgeon.models.source import Source as ModelSource
from ksurgeon.surgery.record import record_of
from ksurgeon.train.examples import Example, Source
from ksurgeon.train.settings import Task

__all__ = ["IGNORED", "Batch", "Features", "Preprocess", "make_preprocess"]

Features = dict[str, Any]
"""What one example became: ``inputs``, and ``labels`` where there are some."""

Batch = dict[str, Any]
"""``inputs`` (a tuple of positional or a mapping of keyword arguments), ``labels`` (a tensor or None),
``index`` (the examples' numbers, a tensor), and ``broken`` (examples that could not be read, as text)."""

IGNORED = -100  # a label that counts for nothing, as in torch and transformers

_IMAGE_MEAN, _IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocess:
    """Turns examples into features, and features into batches.

    Args:
        prepare: turns one example into features.
        collate: joins the features of several examples.
        length: tells how long an example is, where batches are better made of equally long ones.
    """

    def __init__(
        self,
        prepare: Callable[[Example], Features],
        collate: Callable[[list[Features]], Batch],
        length: Callable[[Example], int] | None = None,
    ) -> None:
        self.prepare, self.collate, self.length = prepare, collate, length


def make_preprocess(
    model: nn.Module, source: Source, task: Task, max_length: int, preprocessor: Any = None
) -> Preprocess:
    """The preprocessing of a model for a source's modality.

    Args:
        model: tells by its class, config and record what it takes.
        preprocessor: in place of what is found: a tokenizer or processor of transformers, or for pictures
            and other examples a function.

    Raises:
        DataError: nothing tells how the model wants such examples.
    """
    match source.modality:
        case "text":
            return _texts(model, source, task, max_length, preprocessor)
        case "image":
            return _pictures(model, preprocessor)
        case "audio":
            return _sounds(model, max_length, preprocessor)
    return Preprocess(lambda example: _as_features(example, preprocessor), _collate)


def _as_features(example: Example, function: Any) -> Features:
    value = function(example.value) if function is not None else example.value
    if isinstance(value, Mapping):
        inputs = dict(value)
        label = inputs.pop("labels", example.label)
        return _labelled({"inputs": inputs}, label)
    return _labelled({"inputs": value if isinstance(value, tuple) else (value,)}, example.label)


def _labelled(features: Features, label: Any) -> Features:
    if label is not None:
        features["labels"] = label if isinstance(label, Tensor) else torch.tensor(label)
    return features


def _collate(features: list[Features]) -> Batch:
    return default_collate(features)


def _texts(model: nn.Module, source: Source, task: Task, max_length: int, given: Any) -> Preprocess:
    tokenizer = given if given is not None else _of_transformers(model, "AutoTokenizer", source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    config = getattr(model, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or max_length
    longest = min(max_length, longest, tokenizer.model_max_length)
    decoder_start = getattr(config, "decoder_start_token_id", None) if task == "seq2seq" else None
    wanted = set(_arguments(model))

    def prepare(example: Example) -> Features:
        texts = example.value if isinstance(example.value, (tuple, list)) else (example.value,)
        coded = tokenizer(*texts, truncation=True, max_length=longest)
        features: Features = {"inputs": {k: v for k, v in coded.items() if k in wanted}}
        if task == "seq2seq":
            target = tokenizer(text_target=example.target or texts[0], truncation=True, max_length=longest)
            features["labels"] = torch.tensor(target["input_ids"])
        elif task in ("causal-lm", "masked-lm"):
            features["labels"] = torch.tensor(coded["input_ids"])
        else:
            _labelled(features, example.label)
        return features

    def collate(features: list[Features]) -> Batch:
        padded = dict(tokenizer.pad([f["inputs"] for f in features], padding=True, return_tensors="pt"))
        batch: Batch = {"inputs": padded}
        if "labels" in features[0]:
            labels = [f["labels"] for f in features]
            batch["labels"] = (
                nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
                if labels[0].dim()
                else torch.stack(labels)
            )
        if task == "masked-lm":
            _mask(batch, tokenizer)
        if task == "seq2seq":
            start = decoder_start if decoder_start is not None else tokenizer.pad_token_id
            shifted = batch["labels"].roll(1, 1)
            shifted[:, 0] = start
            padded["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED, tokenizer.pad_token_id)
        return batch

    return Preprocess(prepare, collate, _characters)


def _characters(example: Example) -> int:
    """Near enough to the number of tokens to sort by, and had without a tokenizer."""
    texts = example.value if isinstance(example.value, (tuple, list)) else (example.value,)
    return sum(map(len, texts))


def _mask(batch: Batch, tokenizer: Any, share: float = 0.15) -> None:
    """Hide a share of the tokens; only they keep their labels. The same text is always masked the same."""
    ids, labels = batch["inputs"]["input_ids"], batch["labels"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    generator = torch.Generator().manual_seed(int(ids.sum()))
    hidden = (torch.rand(ids.shape, generator=generator) < share) & ~special
    batch["labels"] = torch.where(hidden, labels, IGNORED)
    batch["inputs"]["input_ids"] = torch.where(hidden, tokenizer.mask_token_id, ids)


def _pictures(model: nn.Module, given: Any) -> Preprocess:
    transform = given
    main = None
    if transform is None and hasattr(model, "main_input_name") and hasattr(model, "config"):
        processor, main = _of_transformers(model, "AutoImageProcessor", None), model.main_input_name

        def transform(picture: Any) -> Tensor:
            pixels: Tensor = processor(picture, return_tensors="pt")[main][0]
            return pixels

    elif transform is None:
        transform = _timm_transform(model) or _torchvision_transform(model)

    def prepare(example: Example) -> Features:
        pixels = transform(example.value)
        return _labelled({"inputs": {main: pixels} if main else (pixels,)}, example.label)

    return Preprocess(prepare, _collate)


def _timm_transform(model: nn.Module) -> Any:
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        return None
    from timm.data import create_transform, resolve_model_data_config

    return create_transform(**resolve_model_data_config(model), is_training=False)


def _torchvision_transform(model: nn.Module) -> Any:
    """What the model's default weights want, or ImageNet's usual crop at the size of its examples."""
    import torchvision
    from torchvision.transforms import v2

    source = _model_source(model)
    if source is not None and source.kind == "torchvision":
        weights = getattr(torchvision.models.get_model_weights(source.name), "DEFAULT", None)
        if weights is not None:
            return weights.transforms()
    size = _example_size(model)
    return v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(min(size)),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_IMAGE_MEAN, _IMAGE_STD),
        ]
    )


def _example_size(model: nn.Module) -> list[int]:
    record = record_of(model)
    described = record.inputs if record is not None else None
    if described is not None and described["args"] and len(described["args"][0].get("tensor", ())) == 4:
        return list(described["args"][0]["tensor"][2:])
    return [224, 224]


def _sounds(model: nn.Module, max_length: int, given: Any) -> Preprocess:
    extractor = given if given is not None else _of_transformers(model, "AutoFeatureExtractor", None)
    main = getattr(model, "main_input_name", "input_values")

    def prepare(example: Example) -> Features:
        rate = extractor.sampling_rate
        wave, own = _wave(example.value)
        if own != rate:
            wave = nn.functional.interpolate(wave[None, None], scale_factor=rate / own, mode="linear")[0, 0]
        coded = extractor(wave.numpy(), sampling_rate=rate)
        return _labelled({"inputs": {main: coded[main][0]}}, example.label)

    def collate(features: list[Features]) -> Batch:
        padded = extractor.pad([f["inputs"] for f in features], padding=True, return_tensors="pt")
        batch: Batch = {"inputs": dict(padded)}
        if "labels" in features[0]:
            batch["labels"] = torch.stack([f["labels"] for f in features])
        return batch

    return Preprocess(prepare, collate)


def _wave(value: Any) -> tuple[Tensor, int]:
    """Samples of one channel, and their rate, of a path or of what ``datasets`` decoded."""
    if isinstance(value, Mapping):
        return torch.as_tensor(value["array"], dtype=torch.float32), int(value["sampling_rate"])
    try:
        import soundfile
    except ImportError as error:
        raise DataError("sounds are read with soundfile: pip install 'ksurgeon[train]'") from error
    samples, rate = soundfile.read(value, dtype="float32", always_2d=True)
    return torch.from_numpy(samples).mean(1), rate


def _of_transformers(model: nn.Module, loader: str, source: Source | None) -> Any:
    """Tokenizer or processor that lies beside the model."""
    import transformers

    found = _model_source(model)
    place = found.name if found is not None and found.kind == "transformers" else None
    place = place or getattr(getattr(model, "config", None), "name_or_path", None)
    what = "texts" if loader == "AutoTokenizer" else "pictures" if "Image" in loader else "sounds"
    if not place:
        raise DataError(
            f"nothing tells how {type(model).__name__} wants {what}; in Python give a tokenizer, processor "
            "or function as preprocessor=…, or give data whose examples are tensors"
        )
    try:
        return getattr(transformers, loader).from_pretrained(place)
    except Exception as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        more = "" if Path(place).exists() else f"; there is no folder {place} here"
        raise DataError(f"no {loader} beside the model {place}: {first}{more}") from error


def _model_source(model: nn.Module) -> ModelSource | None:
    record = record_of(model)
    return record.source if record is not None else None


def _arguments(model: nn.Module) -> Sequence[str]:
    from inspect import signature

    return list(signature(model.forward).parameters)
