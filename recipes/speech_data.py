"""The data of the recipe speech: recorded prompts, TIMIT, or Speech Commands, in one file of NumPy."""

import gzip
import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

unpack_deb = find_function("fetch.py:unpack_deb", RecipeError, Path(__file__).parent)

_log = logging.getLogger(__name__)

_RATE, _HOP = 16_000, 160  # samples a second, and samples from one label to the next
_TESTED = 15  # of a hundred utterances, where the data do not say which
_FOLDED = {  # TIMIT's 61 labels to 39, as Lee and Hon (1989)
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m",
    "en": "n", "nx": "n", "eng": "ng", "zh": "sh", "ux": "uw", "pcl": "sil", "tcl": "sil", "kcl": "sil",
    "bcl": "sil", "dcl": "sil", "gcl": "sil", "h#": "sil", "pau": "sil", "epi": "sil",
}  # fmt: skip
_GLOTTAL = "q"  # has the label of what is before it
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


Labelled = tuple[np.ndarray, list[str]]
"""Samples (16 kHz, int16), and a label for every 10 ms."""


def prompts(folder: Path) -> dict[str, Path]:
    """478 prompts of a telephone exchange, 16 minutes by one speaker, from Debian. Their phones were aligned
    by a hidden Markov model (pocketsphinx), not by hand.

    Raises:
        RecipeError: what decodes or aligns them is not installed, or they cannot be downloaded.
    """
    return _written(folder / "prompts.npz", lambda left_out: _aligned(*_downloaded(folder), left_out))


def timit(folder: Path) -> dict[str, Path]:
    """TIMIT (LDC93S1), unpacked in the working directory; without the sentences that all speakers say.

    Raises:
        RecipeError: it is not there.
    """
    root = _unpacked("TIMIT", "it is LDC93S1 of the Linguistic Data Consortium")
    return _written(folder / "timit.npz", lambda left_out: _read(_timit_files(root), left_out))


def speech_commands(folder: Path) -> dict[str, Path]:
    """Speech Commands, unpacked in the working directory; every 10 ms of a word has the word for a label.

    Raises:
        RecipeError: it is not there.
    """
    archive = "https://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    root = _unpacked("speech_commands_v0.02", f"download {archive}")
    return _written(folder / "speech_commands.npz", lambda left_out: _read(_command_files(root), left_out))


def _unpacked(name: str, how: str) -> Path:
    for root in (Path(name), Path(name.lower())):
        if root.is_dir():
            return root.absolute()
    raise RecipeError(f"there is no folder {name} in {Path.cwd()}; {how}, and unpack it there")


def _written(file: Path, read: Callable[[Counter[str]], dict[str, Labelled]]) -> dict[str, Path]:
    """The file of all utterances, written if it is not there. Names of the test's begin with "test/"; where
    none does, the names' hashes decide.

    Args:
        read: utterances by name; counts what it leaves out, by reason.
    """
    if file.is_file():
        return {"speech": file}
    left_out = Counter[str]()
    found = read(left_out)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    if not found:
        raise RecipeError(f"no utterance is left; left out were {told or 'none'}")
    if told:
        _log.warning("left out of %d utterances: %s", len(found) + left_out.total(), told)
    names = sorted({label for _, labels in found.values() for label in labels})
    numbers = {name: number for number, name in enumerate(names)}
    says = any(key.startswith("test/") for key in found)
    tested = [
        key.startswith("test/") if says else int(md5(key.encode()).hexdigest(), 16) % 100 < _TESTED
        for key in found
    ]
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as stream:
        np.savez_compressed(
            stream,
            samples=np.concatenate([samples for samples, _ in found.values()]),
            labels=np.array([numbers[label] for _, labels in found.values() for label in labels], np.uint8),
            lengths=np.array([(len(samples), len(labels)) for samples, labels in found.values()]),
            tested=np.array(tested),
            names=np.array(names),
            left_out=np.array(told),
        )
    part.replace(file)
    return {"speech": file}


def _read(
    files: Iterable[tuple[str, Path, Callable[[int], list[str]]]], left_out: Counter[str]
) -> dict[str, Labelled]:
    """Recordings of files, whatever their rates and channels; damaged, silent and empty ones are left out.

    Args:
        files: names, paths, and what tells the labels from the number of samples at 16 kHz.
    """
    import soundfile
    from scipy.signal import resample_poly

    found: dict[str, Labelled] = {}
    for name, file, labels_of in files:
        try:
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError):
            left_out["damaged"] += 1
            continue
        mono = samples.mean(1)
        if rate != _RATE:
            mono = resample_poly(mono, _RATE, rate)
        if not mono.any():  # of no sample, too
            left_out["silent"] += 1
            continue
        try:
            labels = labels_of(len(mono))
        except (OSError, ValueError):
            left_out["without labels, or shorter than they say"] += 1
            continue
        found[name] = (mono.clip(-1, 1 - 2**-15) * 2**15).astype(np.int16), labels
    return found


def _timit_files(root: Path) -> Iterable[tuple[str, Path, Callable[[int], list[str]]]]:
    for file in sorted(path for path in root.rglob("*") if path.suffix.lower() == ".wav"):
        parts = [part.lower() for part in file.relative_to(root).with_suffix("").parts]
        if not parts[-1].startswith("sa"):
            phones = file.with_suffix(".PHN" if file.suffix.isupper() else ".phn")
            yield "/".join(parts), file, lambda count, phones=phones: _timit_labels(phones, count)


def _timit_labels(file: Path, samples: int) -> list[str]:
    """A label for every 10 ms, that of its middle."""
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    ends = [int(end) for _, end, _ in rows]
    if samples < ends[-1] - _HOP:
        raise ValueError(f"{samples} samples, and {ends[-1]} have labels")
    names = []
    for _, _, label in rows:
        names.append(names[-1] if label == _GLOTTAL and names else _FOLDED.get(label, label))
    middles = np.arange(_HOP // 2, min(samples, ends[-1]), _HOP)
    return [names[at] for at in np.searchsorted(ends, middles, side="right")]


def _command_files(root: Path) -> Iterable[tuple[str, Path, Callable[[int], list[str]]]]:
    tested = set((root / "testing_list.txt").read_text().split())
    for file in sorted(root.glob("[!_]*/*.wav")):
        name = str(file.relative_to(root))
        split = "test" if name in tested else "train"
        yield f"{split}/{name}", file, lambda count, word=file.parent.name: [word] * max(count // _HOP, 1)


def _downloaded(folder: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """The prompts' texts and recordings (G.722) by name, from Debian."""
    list_file = next(unpack_deb("asterisk-core-sounds-en", folder).rglob("core-sounds-en.txt.gz"))
    lines = gzip.decompress(list_file.read_bytes()).decode("utf-8", "replace").splitlines()
    texts = dict(found.groups() for line in lines if (found := re.match(r"([^;:\s]+): (.*)$", line)))
    files = list(unpack_deb("asterisk-core-sounds-en-g722", folder).rglob("*.g722"))
    root = next(part for part in files[0].parents if part.name.startswith("en_US"))
    return texts, {str(file.relative_to(root).with_suffix("")): file.read_bytes() for file in files}


def _aligned(
    texts: dict[str, str], recordings: dict[str, bytes], left_out: Counter[str]
) -> dict[str, Labelled]:
    try:
        import av
        from pocketsphinx import Decoder
    except ImportError as error:
        raise RecipeError(
            f"{error.name} is not installed, which this recipe's data are made with: pip install "
            "'ksurgeon[speech]'"
        ) from error
    decoder = Decoder(lm=None, loglevel="FATAL")
    found: dict[str, Labelled] = {}
    for name, text in sorted(texts.items()):
        if name not in recordings:
            left_out["without a recording"] += 1
            continue
        words = _words(text)
        if not words or any(decoder.lookup_word(word) is None for word in words):
            left_out["not speech, or with a word outside the dictionary"] += 1
            continue
        with av.open(io.BytesIO(recordings[name]), format="g722") as stream:
            frames = [frame.to_ndarray().reshape(-1) for frame in stream.decode(audio=0)]
        samples = np.concatenate(frames).astype(np.int16)
        phones = _phones(decoder, words, samples)
        if phones is None:
            left_out["that could not be aligned"] += 1
        else:
            found[name] = samples, phones
    return found


def _words(text: str) -> list[str]:
    if "[" in text:  # a beep, music
        return []
    spelt = re.sub(r"\b(\d)\b", lambda found: _DIGITS[int(found[1])], text.lower().replace("\u2019", "'"))
    return [] if re.search(r"\d", spelt) else re.findall(r"[a-z']+", spelt.replace("-", " "))


def _phones(decoder: Any, words: list[str], samples: np.ndarray) -> list[str] | None:
    """The phone of every 10 ms; None where the words could not be found in the samples."""
    try:
        decoder.set_align_text(" ".join(words))
        for stage in ("words", "phones"):
            if stage == "phones":
                decoder.set_alignment()
            decoder.start_utt()
            decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
            decoder.end_utt()
            if stage == "words" and decoder.hyp() is None:
                return None
        return [
            phone.name for word in decoder.get_alignment() for phone in word for _ in range(phone.duration)
        ]
    except RuntimeError:
        return None
