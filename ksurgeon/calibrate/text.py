"""Lines of a text file as batches of tokens."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from torch import nn

from ksurgeon.errors import InputError

__all__ = ["text_batches"]


def text_batches(
    file: Path, model: nn.Module, batch_size: int, examples: int, tokenizer: str | None, length: int
) -> Iterator[dict[str, Any]]:
    """Batches of lines of about the same length, tokenised by the model's own tokenizer.

    The lines are drawn from the whole file, the same ones each time; empty ones are left out.

    Raises:
        InputError: no tokenizer, or a file that is no text.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            lines = _drawn((line.strip() for line in stream if line.strip()), examples)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    encode = _tokenizer(model, tokenizer)
    if encode.pad_token is None:
        encode.pad_token = encode.eos_token
    lines.sort(key=len)
    groups = [lines[at : at + batch_size] for at in range(0, len(lines), batch_size)]
    for group in groups:
        yield dict(encode(group, padding=True, truncation=True, max_length=length, return_tensors="pt"))


def _drawn(lines: Iterable[str], most: int) -> list[str]:
    """So many of the lines, each as likely as any other, of files of any size: reservoir sampling."""
    random, kept = Random(0), list[str]()
    for number, line in enumerate(lines):
        if number < most:
            kept.append(line)
        elif (place := random.randrange(number + 1)) < most:
            kept[place] = line
    return kept


def _tokenizer(model: nn.Module, folder: str | None) -> Any:
    from transformers import AutoTokenizer

    folder = folder or getattr(getattr(model, "config", None), "_name_or_path", None)
    if not folder or not Path(folder).is_dir():
        raise InputError(
            f"a text file needs a tokenizer, and {type(model).__name__} tells no folder that holds one; name "
            "it with --tokenizer FOLDER"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"no tokenizer can be read from {folder}: {first}") from error
