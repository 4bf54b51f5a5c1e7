"""What stands beside a model's weights and is not the model: tokenizer, processor, chat template, pooling."""

import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from ksurgeon.files import parse_json, read_regular
from ksurgeon.models.fetch import hub_endpoint

__all__ = ["copy_companions", "is_companion"]

_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "*processor_config.json",
    "chat_template*",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)
_PART = re.compile(
    r"(\w{1,60}_)?\d{1,4}_\w{1,60}"
)  # sentence-transformers' names of the folders in a model's own


def is_companion(name: str) -> bool:
    """Whether ``copy_companions`` may give a copy this name: that of no other file."""
    parts = Path(name).parts
    if len(parts) == 1:
        return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)
    return bool(parts and _PART.fullmatch(parts[0]) and ".." not in parts)


def copy_companions(name: str, target: Path) -> list[str]:
    """Copy the companions of a folder, or of an ID on the Hugging Face hub, into ``target``.

    Of a hub that cannot be reached the cache serves. Code is never copied, nor what a link that leads out of
    the folder leads to.

    Returns:
        Paths of the copies, from ``target``.
    """
    folder = Path(name)
    if not folder.is_dir():
        found = _snapshot(name, list(_PATTERNS))
        if found is None:
            return []
        parts = [f"{part}/*" for part in _modules_of(found)]
        folder = (_snapshot(name, [*_PATTERNS, *parts]) if parts else found) or found
    files = {file for pattern in _PATTERNS for file in folder.glob(pattern)}
    files |= {file for part in _modules_of(folder) for file in (folder / part).rglob("*")}
    inside = _root(folder.resolve())
    copied = []
    for file in sorted(files):
        if file.is_file() and file.suffix != ".py" and file.resolve().is_relative_to(inside):
            relative = file.relative_to(folder)
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)
            copied.append(relative.as_posix())
    return copied


def _modules_of(folder: Path) -> list[str]:
    """Folders of a sentence-transformers model that hold what comes after the network."""
    try:
        listed = parse_json(read_regular(folder / "modules.json"))
        parts = [module["path"] for module in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [part for part in parts if isinstance(part, str) and _PART.fullmatch(part)]


def _root(folder: Path) -> Path:
    """The folder that links may not lead out of: of a snapshot in the hub's cache, which is made of links to
    files beside it, the repository's."""
    repository = folder.parent.parent
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if cached else folder


def _snapshot(name: str, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=hub_endpoint() is None))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
