"""``ksurgeon doctor``."""

import json as json_module
import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from ksurgeon.cli.console import out
from ksurgeon.kernels import available_backends, chosen_backend, cpu, cuda
from ksurgeon.kernels.cache import may_tune

__all__ = ["run"]

_PACKAGES = (
    "ksurgeon",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "triton",
    "safetensors",
    "einops",
    "torchaudio",
    "nnAudio",
    "torchlibrosa",
    "speechbrain",
    "librosa",
)
_TEAMS = {
    "libgomp": "they run on PyTorch's threads (libgomp)",
    "libomp": "they run on PyTorch's threads (libomp, LLVM's or Intel's)",
    "own": "they run on threads of their own, as this PyTorch was built without OpenMP",
}
_UNUSED = "nothing, unless your models use it"
_COSTS = {
    "torchvision": "models of torchvision and timm do not work",
    "timm": "bare model names are looked up in torchvision only",
    "transformers": "hf: models do not work",
    "triton": "no CUDA kernels; the reference backend runs on the device",
    "einops": _UNUSED,
    **dict.fromkeys(("torchaudio", "nnAudio", "torchlibrosa", "speechbrain"), _UNUSED),
    "librosa": "some feature extractors of transformers do not work",
}


def run(json: bool) -> None:
    found = {name: _version(name) for name in _PACKAGES}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "python": platform.python_version(),
        "packages": found,
        "backends": list(available_backends()),
        "backend": chosen_backend(),
        "cpu_kernels": cpu.instruction_set() if cpu.is_available() else None,
        "cpu_threads": cpu.team() if cpu.is_available() else None,
        "KSURGEON_BACKEND": os.environ.get("KSURGEON_BACKEND"),
        "threads": torch.get_num_threads(),
        "tuning": _tuning(),
        "gpus": gpus,
        "kernels_on_gpus": [chosen_backend(torch.device("cuda", i)) for i in range(len(gpus))],
        "choices_on_gpus": [_choices(i) for i in range(len(gpus))],
    }
    if json:
        print(json_module.dumps(facts, indent=1))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(style="dim")
    table.add_row("python", platform.python_version(), "")
    for name, number in found.items():
        table.add_row(name, number or "[yellow]missing[/]", _package_note(name, number))
    table.add_row(
        "threads", str(torch.get_num_threads()), "torch.set_num_threads or OMP_NUM_THREADS changes it"
    )
    table.add_row("GPU", ", ".join(gpus) or "none", "" if gpus else "everything runs on the CPU")
    for index in range(len(gpus)):
        chosen = chosen_backend(torch.device("cuda", index))
        table.add_row(f"kernels on GPU {index}", chosen, _gpu_note(index))
    table.add_row("cpu kernels", *_cpu_kernels())
    tuning = _tuning()
    table.add_row("tuning", "on" if tuning["on"] else "off", _tuning_note(tuning))
    asked = os.environ.get("KSURGEON_BACKEND")
    table.add_row(
        "kernels",
        chosen_backend(),
        f"KSURGEON_BACKEND={asked}" if asked else "of " + ", ".join(available_backends()),
    )
    out.print(table)


def _package_note(name: str, number: str | None) -> str:
    if number is None:
        return _COSTS.get(name, "")
    if name == "torchaudio":  # refuses a torch that was built for another CUDA, and speechbrain needs it
        try:
            import_module(name)
        except Exception as error:
            return f"[yellow]cannot be imported[/]: {escape(str(error).strip())}"
    return ""


def _gpu_note(index: int) -> str:
    reason = cuda.why_not(index)
    if reason is not None:
        return reason
    choices = _choices(index)
    return (
        f"each kind of product is checked and measured at its first use; {len(choices['measured'])} "
        f"measured so far, kept in {choices['cache']}"
    )


def _choices(index: int) -> dict[str, Any]:
    """What was chosen on a GPU, by kind of product, and where that is kept."""
    if cuda.why_not(index) is not None:
        return {"cache": None, "measured": {}}
    from ksurgeon.kernels.cuda.trial import cache_of

    cache = cache_of(index)
    return {"cache": str(cache.path), "measured": cache.all()}


def _cpu_kernels() -> tuple[str, str]:
    if cpu.is_available():
        return cpu.instruction_set(), (
            f"compiled at installation, instruction set chosen at run time; {_TEAMS[cpu.team()]}"
        )
    return "[yellow]missing[/]", (
        f"{cpu.why_missing()}; the reference runs instead, with the same results and several times slower on "
        "CPU: install a C++ compiler, then `pip install --force-reinstall --no-deps ksurgeon`"
    )


def _tuning() -> dict[str, Any]:
    """Whether ways to merge are measured, which classes of products were, and where that is kept."""
    if not cpu.is_available():
        return {"on": False, "cache": None, "measured": {}}
    from ksurgeon.kernels.cpu.tune import tuner

    return {"on": may_tune(), "cache": str(tuner.cache.path), "measured": tuner.cache.all()}


def _tuning_note(tuning: dict[str, Any]) -> str:
    if tuning["cache"] is None:
        return "there is nothing to tune without compiled kernels"
    count = len(tuning["measured"])
    kept = (
        f"{count} class{'es' * (count != 1)} of products measured on this machine, kept in {tuning['cache']}"
    )
    return kept if tuning["on"] else f"KSURGEON_TUNE=0: fixed choices; {kept}"


def _version(name: str) -> str | None:
    if name == "torch":
        return torch.__version__  # tells the build, too
    try:
        return version(name)
    except PackageNotFoundError:
        return None
