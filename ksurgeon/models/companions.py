"""What stands beside a model's weights and is not the model: tokenizer, processor, chat template, pooling."""

import json
import shutil
from pathlib import Path

from ksurgeon.models.fetch import hub_endpoint

__all__ = ["copy_companions"]

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


def copy_companions(name: str, target: Path) -> list[str]:
    """Copy the companions of a folder, or of an ID on the Hugging Face hub, into ``target``.

    Of a hub that cannot be reached the cache serves. Code is never copied.

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
    copied = []
    for file in sorted(files):
        if file.is_file() and file.suffix != ".py":
            relative = file.relative_to(folder)
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)
            copied.append(relative.as_posix())
    return copied


def _modules_of(folder: Path) -> list[str]:
    """Folders of a sentence-transformers model that hold what comes after the network."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        parts = [module["path"] for module in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [part for part in parts if part and ".." not in Path(part).parts and not Path(part).is_absolute()]


def _snapshot(name: str, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=hub_endpoint() is None))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
