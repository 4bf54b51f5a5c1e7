"""Options of a library's builder that say what a model is, and none that have it read files or run code."""

import re
from collections.abc import Mapping
from typing import Any

from ksurgeon.errors import InputError

__all__ = ["checked_config", "checked_options"]

_FILES = re.compile(r"(use_)?(pretrained|checkpoint|weights|cache|trust|auto_map).*|(.*_)?(file|dir|url)")
_WORD = re.compile(r"[\w.+-]{0,80}", re.ASCII)
_LARGEST = 2**24
_RUNS_CODE = {"auto_map", "custom_pipelines", "trust_remote_code", "use_kernels"}
_ATTENTION = {"eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"}
_BUILDERS = ("model_args", "backbone_kwargs")  # of timm, in a config of transformers


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a builder of timm or torchvision: numbers, words, booleans, and lists and tables of them.

    Raises:
        InputError: another value, or the name of an option that reads a file.
    """
    for name, value in options.items():
        if not isinstance(name, str) or _FILES.fullmatch(name):
            raise InputError(f'the option "{name}" may read a file; give the weights with weights="FILE"')
        problem = _problem(value)
        if problem:
            raise InputError(
                f"the option {name} = {value!r:.80} is {problem}; options are numbers up to {_LARGEST:,}, "
                "booleans, words, and lists and tables of them"
            )
    return dict(options)


def _problem(value: Any, depth: int = 0) -> str | None:
    if value is None or isinstance(value, (bool, float)):
        return None
    if isinstance(value, int):
        return None if abs(value) <= _LARGEST else "too large"
    if isinstance(value, str):
        return None if _WORD.fullmatch(value) else "no plain word"
    if isinstance(value, Mapping):
        checked_options(value)
        return None
    if isinstance(value, (list, tuple)) and depth < 8:
        return next((problem for item in value if (problem := _problem(item, depth + 1))), None)
    return f"a {type(value).__name__}"


def checked_config(config: Any) -> Any:
    """A config of transformers without what names code or weights elsewhere.

    Raises:
        InputError: an integer that no size of a model is, or arguments for timm that ``checked_options``
            refuses.
    """
    if isinstance(config, list):
        return [checked_config(item) for item in config]
    if not isinstance(config, dict):
        return config
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if name in _RUNS_CODE or (str(name).endswith("_implementation") and str(value) not in _ATTENTION):
            continue
        if name in _BUILDERS and isinstance(value, dict):
            value = checked_options(value)
        if name == "use_pretrained_backbone":
            value = False
        if isinstance(value, int) and abs(value) > _LARGEST and not str(name).endswith("theta"):
            raise InputError(f"{name} = {value} in the config: sizes are {_LARGEST:,} at most")
        kept[name] = checked_config(value)
    return kept
