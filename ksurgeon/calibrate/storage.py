"""Calibrations on disk: one safetensors file, written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ksurgeon.calibrate.calibration import Calibration, SiteMoments

__all__ = ["load_calibration", "save_calibration"]


def save_calibration(calibration: Calibration, file: Path) -> None:
    """Write a calibration; moments that sites share are written once, and each as its upper triangle.

    What is written is rounded to float32: a quarter of the memory of the sums.
    """
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    facts: dict[str, dict[str, object]] = {}
    for path, known in calibration.sites.items():
        owner = owners.setdefault(id(known.moment), path)
        if owner == path:
            tensors[f"{path}/moment"] = _triangle(known.moment).float().cpu()
            tensors[f"{path}/mean"] = known.mean.float().cpu().clone()
        if known.gradient is not None:
            tensors[f"{path}/gradient"] = known.gradient.float().cpu().contiguous()
        facts[path] = {
            "owner": owner,
            "rows": known.rows,
            "weight": known.weight,
            "shiftable": known.shiftable,
        }
    about = {"harm": calibration.harm, "batches": calibration.batches, "sites": facts}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(handle)
    try:
        save_file(tensors, name, metadata={"calibration": json.dumps(about)})
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def load_calibration(file: Path, device: torch.device | str = "cpu") -> Calibration | None:
    """Read a calibration; None where there is none, or none that can be read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            about = json.loads(tensors.metadata()["calibration"])
            names = set(tensors.keys())
            sites: dict[str, SiteMoments] = {}
            for path, facts in about["sites"].items():
                owner = facts["owner"]
                if owner in sites:
                    moment, mean = sites[owner].moment, sites[owner].mean
                else:
                    moment = _square(tensors.get_tensor(f"{owner}/moment").to(device).double())
                    mean = tensors.get_tensor(f"{owner}/mean").to(device).double()
                known = SiteMoments(
                    moment, mean, facts["rows"], weight=facts["weight"], shiftable=facts["shiftable"]
                )
                if f"{path}/gradient" in names:
                    known.gradient = tensors.get_tensor(f"{path}/gradient").to(device).double()
                sites[path] = known
            return Calibration(sites, about["harm"], about["batches"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def _triangle(moment: Tensor) -> Tensor:
    """Upper triangles of symmetric matrices, ``(groups, n (n + 1) / 2)``."""
    row, column = torch.triu_indices(*moment.shape[-2:], device=moment.device)
    return moment[:, row, column].contiguous()


def _square(triangle: Tensor) -> Tensor:
    size = int((8 * triangle.shape[1] + 1) ** 0.5) // 2
    row, column = torch.triu_indices(size, size, device=triangle.device)
    whole = triangle.new_zeros(len(triangle), size, size)
    whole[:, row, column] = triangle
    whole[:, column, row] = triangle
    return whole
