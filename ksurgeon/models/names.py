"""What a user may write for a model, and which library that means."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, cast

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.files import parse_json, read_regular
from ksurgeon.models import from_timm, from_torchvision
from ksurgeon.models.source import Kind

__all__ = ["parse"]

_LIBRARIES = {"timm": from_timm, "torchvision": from_torchvision}
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")


def parse(name: str) -> tuple[Kind | Literal["ksurgeon"], str]:
    """Kind of source and name there; "ksurgeon" for a converted folder.

    ``timm:NAME``, ``torchvision:NAME``, ``hf:ID``, a folder with ksurgeon.json or config.json,
    ``package.module:function`` or ``FILE.py:function``; a bare name is looked up in timm, then
    in torchvision.

    Raises:
        ModelNotFoundError: none of these has it; the message lists the nearest names.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in _LIBRARIES:
        return _search(rest, prefix), rest
    if colon and prefix == "hf":
        if not rest:
            raise ModelNotFoundError(
                '"hf:" lacks an ID; expected one such as hf:google-bert/bert-base-uncased'
            )
        return "transformers", rest
    folder = Path(name)
    if name and (folder / "ksurgeon.json").is_file():
        return "ksurgeon", name
    if name and (folder / "config.json").is_file():
        return "ksurgeon" if _holds_record(folder / "config.json") else "transformers", name
    if _FUNCTION.fullmatch(name):
        return "function", name
    if name and (folder.name != name or name == ".."):
        if folder.is_dir():
            raise ModelNotFoundError(f'the folder "{name}" has neither ksurgeon.json nor config.json')
        raise ModelNotFoundError(
            f'there is no folder "{name}"; a model on the Hugging Face hub is written hf:{name.strip("/")}'
        )
    return _search(name, *_LIBRARIES), name


def _holds_record(config: Path) -> bool:
    """Whether ``save_pretrained`` of a converted model wrote the file."""
    try:
        method = parse_json(read_regular(config))["quantization_config"]
        return bool(method["quant_method"] == "ksurgeon" and "record" in method)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _search(name: str, *kinds: str) -> Kind:
    """First of the libraries ``kinds`` that has the name, or an error with the nearest names."""
    for kind in kinds:
        if _LIBRARIES[kind].has(name):
            return cast(Kind, kind)
    stem, _, tag = name.partition(".")
    near = []
    for kind in sorted(_LIBRARIES, key=lambda kind: kind not in kinds):
        found = get_close_matches(stem.lower(), _LIBRARIES[kind].names(), n=3)
        near += [f"{kind}:{match}" if kind == "torchvision" else match for match in found]
    hint = f"the nearest names are {', '.join(near)}" if near else "no name comes near"
    if tag and "timm" in kinds and from_timm.has(stem):
        hint = f'timm knows "{stem}", but no weights of it with the tag "{tag}"'
    raise ModelNotFoundError(
        f'no model is called "{name}" in {" and ".join(kinds)}; {hint}. A model may also be given as '
        f"torchvision:NAME, hf:ID, a folder, or package.module:function"
    )
