"""From examples to a model's inputs: the preprocessing that belongs to the model."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ksurgeon.calibrate.examples import Example, Source
from ksurgeon.errors import DataError
from ksurgeon.models.fetch import hub_endpoint, hub_offline
from ksurgeon.models.source import Source as ModelSource

__all__ = ["IGNORED", "IMAGE_MEAN", "IMAGE_STD", "Batch", "Features", "Preprocess", "make_preprocess"]

Features = dict[str, Any]
"""What one example became: ``inputs``, and ``labels`` where there are some."""

Batch = dict[str, Any]
"""``inputs`` (a tuple of positional or a mapping of keyword arguments), ``labels`` (a tensor or None),
``index`` (the examples' numbers, a tensor), and ``broken`` (examples that could not be read, as text)."""

IGNORED = -100  # a label that counts for nothing, as in torch and transformers

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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

    def join(self, examples: Sequence[tuple[int, Features]]) -> Batch:
        """The batch of examples, each with its number.

        Raises:
            DataError: they are of several shapes.
        """
        try:
            return self.collate([features for _, features in examples])
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            names = ", ".join(str(number) for number, _ in examples[:4])
            raise DataError(f"examples {names}, … make no batch: {error}") from error


def make_preprocess(
    model: nn.Module,
    source: Source,
    *,
    origin: ModelSource | None = None,
    image_size: Sequence[int] | None = None,
    task: str = "auto",
    max_length: int = 128,
    preprocessor: Any = None,
) -> Preprocess:
    """The preprocessing of a model for a source's modality.

    Args:
        model: tells by its class and config what it takes.
        origin: where it comes from: its tokenizer or processor lies there.
        image_size: height and width of its images, where nothing else tells them.
        task: of a training; texts for "seq2seq", "causal-lm" and "masked-lm" have tokens for labels.
        max_length: tokens after which texts are cut; no more than the tokenizer and the model's positions
            allow.
        preprocessor: in place of what is found: a tokenizer or processor of transformers or its folder, or
            for pictures and other examples a function.

    Raises:
        DataError: nothing tells how the model wants such examples.
    """
    match source.modality:
        case "text":
            return _texts(model, origin, task, max_length, preprocessor)
        case "image":
            return _pictures(model, origin, image_size, preprocessor)
        case "audio":
            return _sounds(model, origin, preprocessor)
    return Preprocess(lambda example: _as_features(example, preprocessor), _collate)


def _as_features(example: Example, function: Any) -> Features:
    value = function(example.value) if function is not None else example.value
    if isinstance(value, Mapping):
        inputs = dict(value)
        label = inputs.pop("labels", example.label)
        return _labelled({"inputs": inputs}, label)
    return _labelled({"inputs": value if isinstance(value, tuple) else (value,)}, example.label)


def _labelled(features: Features, label: Any) -> Features:
    if isinstance(label, str):
        raise ValueError(f'the label "{label}" is no number')
    if label is not None:
        features["labels"] = label if isinstance(label, Tensor) else torch.tensor(label)
    return features


def _collate(features: list[Features]) -> Batch:
    return default_collate(features)


def _texts(
    model: nn.Module, origin: ModelSource | None, task: str, max_length: int, given: Any
) -> Preprocess:
    tokenizer = _given_or_own(model, origin, "AutoTokenizer", given)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    config = getattr(model, "config", None)
    longest = min(max_length, tokenizer.model_max_length, _positions(model) or max_length)
    decoder_start = getattr(config, "decoder_start_token_id", None) if task == "seq2seq" else None
    takes, takes_any = _arguments(model)

    def prepare(example: Example) -> Features:
        texts = example.value if isinstance(example.value, (tuple, list)) else (example.value,)
        coded = tokenizer(*texts, truncation=True, max_length=longest)
        everything = takes_any and "input_ids" not in takes
        features: Features = {"inputs": {k: v for k, v in coded.items() if everything or k in takes}}
        if not features["inputs"]:
            raise DataError(
                f"{type(model).__name__}.forward takes {', '.join(takes)}, and texts become "
                f"{', '.join(coded)}; give data whose examples are tensors"
            )
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


def _positions(model: nn.Module) -> int | None:
    """Tokens that a model has positions for; None where it has no table of them, or tells none."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    # Where the table has an entry for padding, positions begin behind it (RoBERTa and its kin).
    before = (
        module.padding_idx + 1
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "pos" in name.rpartition(".")[2]
        if module.num_embeddings == positions and module.padding_idx is not None
    )
    return positions - max(before, default=0)


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


def _pictures(
    model: nn.Module, origin: ModelSource | None, size: Sequence[int] | None, given: Any
) -> Preprocess:
    transform = given
    main = None
    if transform is None and hasattr(model, "main_input_name") and hasattr(model, "config"):
        processor, main = _given_or_own(model, origin, "AutoImageProcessor"), model.main_input_name

        def transform(picture: Any) -> Tensor:
            pixels: Tensor = processor(picture, return_tensors="pt")[main][0]
            return pixels

    elif transform is None:
        transform = _timm_transform(model) or _torchvision_transform(origin, size)

    def prepare(example: Example) -> Features:
        pixels = transform(example.value)
        return _labelled({"inputs": {main: pixels} if main else (pixels,)}, example.label)

    return Preprocess(prepare, _collate)


def _timm_transform(model: nn.Module) -> Any:
    if not isinstance(getattr(model, "pretrained_cfg", None), dict):
        return None
    from timm.data import create_transform, resolve_model_data_config

    return create_transform(**resolve_model_data_config(model), is_training=False)


def _torchvision_transform(origin: ModelSource | None, size: Sequence[int] | None) -> Any:
    """What the model's default weights want, or ImageNet's usual crop at the size given."""
    import torchvision
    from torchvision.transforms import v2

    if origin is not None and origin.kind == "torchvision":
        weights = getattr(torchvision.models.get_model_weights(origin.name), "DEFAULT", None)
        if weights is not None:
            return weights.transforms()
    size = list(size or (224, 224))
    return v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(min(size)),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGE_MEAN, IMAGE_STD),
        ]
    )


def _sounds(model: nn.Module, origin: ModelSource | None, given: Any) -> Preprocess:
    extractor = _given_or_own(model, origin, "AutoFeatureExtractor", given)
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


def _given_or_own(model: nn.Module, origin: ModelSource | None, loader: str, given: Any = None) -> Any:
    """Tokenizer or processor: the one given, or read from its folder, or from beside the model."""
    if given is not None and not isinstance(given, (str, Path)):
        return given
    place = given or (origin.name if origin is not None and origin.kind == "transformers" else None)
    place = place or getattr(getattr(model, "config", None), "name_or_path", None)
    if not place:
        what = {"AutoTokenizer": "texts", "AutoImageProcessor": "images"}.get(loader, "sounds")
        option = " (--tokenizer FOLDER)" if loader == "AutoTokenizer" else ""
        raise DataError(
            f"cannot guess how {type(model).__name__} takes {what}: name its folder{option}, in Python pass "
            "a tokenizer, processor or function, or give data whose examples are tensors"
        )
    trusted = origin is not None and origin.is_trusted and bool(origin.options.get("trust_remote_code"))
    try:
        return _from_place(loader, str(place), trusted)
    except Exception as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        more = "" if Path(place).exists() else f"; there is no folder {place} here"
        raise DataError(f"no {loader} with the model {place}: {first}{more}") from error


def _from_place(loader: str, place: str, trusted: bool) -> Any:
    import transformers

    load = getattr(transformers, loader).from_pretrained
    try:
        with hub_offline():
            return load(place, trust_remote_code=trusted)
    except OSError:
        if Path(place).is_dir() or hub_endpoint() is None:
            raise
        return load(place, trust_remote_code=trusted)


def _arguments(model: nn.Module) -> tuple[list[str], bool]:
    """The names of what ``forward`` takes, and whether it takes any other, too."""
    found = signature(model.forward).parameters
    return list(found), any(parameter.kind == Parameter.VAR_KEYWORD for parameter in found.values())
