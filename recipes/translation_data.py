"""The data of the recipe translation: German sentences, English translations, and a joint vocabulary."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import md5
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.surgery.folders import written_whole

__all__ = ["debian", "libreoffice", "parallel"]

_log = logging.getLogger(__name__)

_SPLITS = ("train", "valid", "test")
_VALID, _TEST = 94, 97  # the first of a hundred documents that are valid, and that are test
_VOCABULARY = 8000
_PAD, _END = "<pad>", "</s>"
_EMPTY, _BROKEN = "with an empty side", "with bytes that are no UTF-8"

Line = tuple[str, str, str]
"""Split, German and English."""
Read = Callable[[Counter[str]], Iterable[Line]]
"""Gives the pairs; counts what it leaves out, by reason."""


class _Limits(NamedTuple):
    """Which pairs are taken: words of a side, and characters of one side for each of the other."""

    fewest: int = 1
    most: int = 250
    ratio: float = 0.0


_TALKS, _MANUALS = _Limits(), _Limits(fewest=3, most=60, ratio=1 / 2.2)


def libreoffice(folder: Path) -> dict[str, Path]:
    """36,000 pairs of the help of LibreOffice, 5 MB to download from Debian.

    Raises:
        RecipeError: this is no Debian, it cannot be downloaded, or sacrebleu is not installed.
    """
    return _from_debian(folder, "libreoffice")


def debian(folder: Path) -> dict[str, Path]:
    """97,000 pairs of manuals and package descriptions, 160 MB to download from Debian.

    Raises:
        RecipeError: this is no Debian, they cannot be downloaded, or sacrebleu is not installed.
    """
    return _from_debian(folder, "everything")


def parallel(folder: Path) -> dict[str, Path]:
    """IWSLT'14, WMT and others in their usual format: the files train.de, train.en, valid.de, valid.en,
    test.de and test.en with a sentence in each line, in a folder ``parallel`` of the working directory.

    Pairs of the test that are empty or longer than 250 words are left out of it, which is logged.

    Raises:
        RecipeError: a file is not there, two have not as many lines, or sacrebleu is not installed.
    """
    _require_measures()
    root = Path("parallel").absolute()
    files = [root / f"{split}.{language}" for split in _SPLITS for language in ("de", "en")]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise RecipeError(
            f"there is no {', '.join(absent)} in {root}; put the sentences there, one in each line"
        )
    digest = md5(b"".join(md5(file.read_bytes()).digest() for file in files)).hexdigest()[:12]
    return _written(folder / f"parallel-{digest}", lambda left_out: _lines_of(root, left_out), _TALKS)


def _from_debian(folder: Path, name: str) -> dict[str, Path]:
    _require_measures()
    pairs = find_function(f"translation_debian.py:{name}", RecipeError, Path(__file__).parent)

    def read(left_out: Counter[str]) -> Iterable[Line]:
        lines = [(_split_of(pair.document), pair.german, pair.english) for pair in pairs(folder)]
        return _apart(list(_once(lines, left_out)), left_out)

    return _written(folder / f"pairs-{name}", read, _MANUALS)


def _require_measures() -> None:
    """Return if sacrebleu is installed, rather than say so after hours of training."""
    if find_spec("sacrebleu") is None:
        raise RecipeError(
            "sacrebleu is not installed, with which translations are measured: pip install "
            "'ksurgeon[translation]'"
        )


def _split_of(document: str) -> str:
    """A document is in one split, which its name tells."""
    number = int(md5(document.encode()).hexdigest(), 16) % 100
    return "train" if number < _VALID else "valid" if number < _TEST else "test"


def _once(lines: Iterable[Line], left_out: Counter[str]) -> Iterator[Line]:
    seen = set()
    for line in lines:
        _, german, english = line
        if german == english:
            left_out["that are the same in both languages"] += 1
        elif (german, english) in seen:
            left_out["that were there before"] += 1
        else:
            seen.add((german, english))
            yield line


def _apart(lines: list[Line], left_out: Counter[str]) -> Iterator[Line]:
    """No sentence that is held out stands in training, in neither language."""
    german = {ours for split, ours, _ in lines if split == "train"}
    english = {theirs for split, _, theirs in lines if split == "train"}
    for line in lines:
        split, ours, theirs = line
        if split != "train" and (ours in german or theirs in english):
            left_out["held out that stand in training"] += 1
        else:
            yield line


def _lines_of(root: Path, left_out: Counter[str]) -> Iterator[Line]:
    for split in _SPLITS:
        with (root / f"{split}.de").open("rb") as german, (root / f"{split}.en").open("rb") as english:
            for number, sides in enumerate(zip_longest(german, english), 1):
                if None in sides:
                    raise RecipeError(
                        f"{split}.de and {split}.en in {root} have not as many lines: one ends before line "
                        f"{number}; give files of which each line is a translation of the other's"
                    )
                with suppress(UnicodeDecodeError):
                    ours, theirs = (side.decode("utf-8-sig" if number == 1 else "utf-8") for side in sides)
                    yield split, ours, theirs
                    continue
                left_out[_BROKEN] += 1


def _sound(lines: Iterable[Line], limits: _Limits, left_out: Counter[str]) -> Iterator[Line]:
    for split, *sides in lines:
        german, english = (" ".join(side.split()) for side in sides)
        words = [len(side.split()) for side in (german, english)]
        if not min(words):
            left_out[_EMPTY] += 1
        elif any(sign in side for sign in ("\ufffd", "\0") for side in (german, english)):
            left_out[_BROKEN] += 1
        elif any(token in side for token in (_PAD, _END) for side in (german, english)):
            left_out[f"with {_PAD} or {_END} in them"] += 1
        elif max(words) > limits.most:
            left_out[f"of more than {limits.most} words"] += 1
        elif min(words) < limits.fewest:
            left_out[f"of fewer than {limits.fewest} words"] += 1
        elif min(len(german), len(english)) < limits.ratio * max(len(german), len(english)):
            left_out["of which one side is much longer"] += 1
        else:
            yield split, german, english


def _written(place: Path, read: Read, limits: _Limits, vocabulary: int = _VOCABULARY) -> dict[str, Path]:
    """A folder of the three splits, ``SPLIT.jsonl``, and of a tokenizer and a configuration in ``model``;
    written if it is not there.

    Raises:
        RecipeError: a split has no pair.
    """
    if not place.is_dir():
        left_out = Counter[str]()
        splits: dict[str, list[tuple[str, str]]] = {split: [] for split in _SPLITS}
        for split, german, english in _sound(read(left_out), limits, left_out):
            splits[split].append((german, english))
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        empty = [split for split, pairs in splits.items() if not pairs]
        if empty:
            raise RecipeError(f"no pair is left for {', '.join(empty)}; left out were {told or 'none'}")
        if told:
            _log.warning("left out of %d pairs: %s", sum(map(len, splits.values())) + left_out.total(), told)
        with written_whole(place) as temporary:
            for split, pairs in splits.items():
                records = (json.dumps({"source": s, "target": t}, ensure_ascii=False) for s, t in pairs)
                text = "\n".join(records) + "\n"
                (temporary / f"{split}.jsonl").write_text(text, encoding="utf-8")
            counts = {split: len(pairs) for split, pairs in splits.items()} | {"left_out": dict(left_out)}
            (temporary / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
            _write_model(temporary / "model", [text for pair in splits["train"] for text in pair], vocabulary)
    return {**{split: place / f"{split}.jsonl" for split in _SPLITS}, "model": place / "model"}


def _write_model(place: Path, texts: list[str], vocabulary: int) -> None:
    """Byte pairs of both languages, merged as often as they occur, and a configuration with that many."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import MarianConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PAD, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, end = tokenizer.token_to_id(_PAD), tokenizer.token_to_id(_END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(place)
    MarianConfig(
        architectures=["MarianMTModel"],
        vocab_size=tokenizer.get_vocab_size(),
        decoder_vocab_size=tokenizer.get_vocab_size(),
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
        forced_eos_token_id=None,
        decoder_start_token_id=pad,
        activation_function="relu",
        scale_embedding=True,
        max_position_embeddings=512,
    ).save_pretrained(place)
