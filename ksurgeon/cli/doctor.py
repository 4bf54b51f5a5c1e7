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

from ksurgeon.cli.commands import Doctor
from ksurgeon.cli.console import out
from ksurgeon.kernels import available_backends, broken_backends, chosen_backend, registered_backends

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


def run(asked: Doctor) -> None:
    found = {name: _version(name) for name in _PACKAGES}
    backends, gpus = registered_backends(), _gpus()
    names = [_name_of(gpu) for gpu in gpus]
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "packages": found,
        "backends": list(available_backends()),
        "backend": chosen_backend(),
        "registered_backends": {
            each.name: {"device_types": list(each.device_types), "missing": each.why_missing() or None}
            for each in backends
        },
        "broken_backends": broken_backends(),
        "KSURGEON_BACKEND": os.environ.get("KSURGEON_BACKEND"),
        "threads": torch.get_num_threads(),
        "gpus": names,
        "kernels_on_gpus": [chosen_backend(gpu) for gpu in gpus],
    }
    for backend in backends:
        facts |= backend.facts()
    if asked.json:
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
    table.add_row("GPU", ", ".join(names) or "none", "" if gpus else "everything runs on the CPU")
    for index, gpu in enumerate(gpus):
        notes = [escape(each.about(gpu)) for each in backends if gpu.type in each.device_types]
        table.add_row(f"kernels on GPU {index}", chosen_backend(gpu), "; ".join(filter(None, notes)))
    for backend in backends:
        for row in backend.rows():
            table.add_row(*row)
    for name, reason in broken_backends().items():
        table.add_row(f"{name} kernels", "[yellow]broken[/]", escape(reason))
    named = os.environ.get("KSURGEON_BACKEND")
    note = f"KSURGEON_BACKEND={named}" if named else "of " + ", ".join(available_backends())
    table.add_row("kernels", chosen_backend(), note)
    out.print(table)


def _gpus() -> list[torch.device]:
    found = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if found else 0
    return [torch.device(found.type, index) for index in range(count)] if found else []


def _name_of(gpu: torch.device) -> str:
    name: Any = getattr(torch.get_device_module(gpu), "get_device_name", None)
    return gpu.type if name is None else str(name(gpu))


def _package_note(name: str, number: str | None) -> str:
    if number is None:
        return _COSTS.get(name, "")
    if name == "torchaudio":  # refuses a torch that was built for another CUDA, and speechbrain needs it
        try:
            import_module(name)
        except Exception as error:
            return f"[yellow]cannot be imported[/]: {escape(str(error).strip())}"
    return ""


def _version(name: str) -> str | None:
    if name == "torch":
        return torch.__version__  # tells the build, too
    try:
        return version(name)
    except PackageNotFoundError:
        return None
