"""Whether channels should change places before a fit: ``python -m benchmarks.orders``.

The linear layers of MiniLM-L6's second block are fitted to their inputs and slopes with inputs and outputs as
they come, in random orders, and grouped by what they do. Printed and kept is the error that is left,
‖R (K − W) Σ^½‖, over that without a change of places.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.fit_models import language, of_two_radices
from benchmarks.results import cpu_setting
from ksurgeon.calibrate import calibrate, harm_for
from ksurgeon.fit import fit_
from ksurgeon.kmatrix.matrix import KMatrix
from ksurgeon.kmatrix.structures import Monarch, Structure
from ksurgeon.surgery.build import site_weight

_GROUPS = 4  # blocks of a Monarch matrix


def left(weight: Tensor, moment: Tensor, slopes: Tensor, structure: Structure, places: list[Tensor]) -> float:
    """The error of a fit with inputs and outputs in other places."""
    inputs, outputs = places
    weight, slopes = weight[outputs][:, inputs], slopes[:, outputs]
    moment = moment[inputs][:, inputs]
    matrix = KMatrix(len(inputs), len(outputs), structure=structure, start="empty")
    fit_(matrix, weight, moment=moment, slopes=slopes)
    change = slopes @ (matrix.to_dense().detach() - weight).double()
    return float(((change @ moment) * change).sum().clamp(min=0).sqrt())


def grouped(columns: Tensor) -> Tensor:
    """An order in which columns of like directions stand together: halves, and halves of those, by the second
    eigenvector of their normalised affinities, the squared cosines."""
    unit = columns / torch.linalg.vector_norm(columns, dim=0).clamp(min=1e-12)
    affinity = (unit.mT @ unit).square()
    parts = [torch.arange(len(affinity))]
    while len(parts) < _GROUPS:
        halves = []
        for part in parts:
            among = affinity[part][:, part]
            scale = among.sum(1).rsqrt()
            second = torch.linalg.eigh(scale[:, None] * among * scale)[1][:, -2] * scale
            halves += list(part[second.argsort()].tensor_split(2))
        parts = halves
    return torch.cat(parts)


def orders(weight: Tensor, moment: Tensor, slopes: Tensor, seed: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Names of orders, and the places of inputs and outputs."""
    random = torch.Generator().manual_seed(seed)
    kept = [torch.arange(size) for size in (weight.shape[1], weight.shape[0])]
    yield "as they come", kept
    yield "random", [torch.randperm(len(places), generator=random) for places in kept]
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.clamp(min=0).sqrt()
    inputs = grouped(slopes @ weight.double() * moment.diagonal().sqrt())
    outputs = grouped((weight.double() @ root).mT)
    yield "inputs that go together", [grouped(root.mT), kept[1]]
    yield "inputs of like effect", [inputs, kept[1]]
    yield "outputs of like cause", [kept[0], outputs]
    yield "both", [inputs, outputs]
    yield "both, spread over the blocks", [p.view(_GROUPS, -1).mT.flatten() for p in (inputs, outputs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/orders.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = language(given.examples, None, given.seed)
    with torch.no_grad():
        made = task.model(**task.batches[0])
    sites = [site for site in task.sites if re.search(r"layer\.1\.", site.path)]
    known = calibrate(task.model, sites, task.batches, harm=harm_for("auto", task.model, made))
    rows = []
    for site in sites:
        weight, moments = site_weight(task.model, site).detach(), known.sites[site.path]
        assert moments.slopes is not None
        moment, slopes = moments.fitted_moment[0].double(), moments.slopes[0].double()
        structures = {
            "Monarch": Monarch(share=0.5),
            "K-matrix": of_two_radices(site.in_features, site.out_features, 0.5),
        }
        for name, structure in structures.items():
            assert structure is not None
            errors = {
                order: left(weight, moment, slopes, structure, places)
                for order, places in orders(weight, moment, slopes, given.seed)
            }
            first = errors.pop("as they come")
            ratios = {order: round(error / first, 4) for order, error in errors.items()}
            rows.append({"site": site.path, "structure": name, "ratios": ratios})
            print(site.path, name, ratios, flush=True)
    medians = {
        name: {order: median(r["ratios"][order] for r in rows if r["structure"] == name) for order in ratios}
        for name in structures
    }
    print("median", medians)
    setting = cpu_setting(given.threads) | {"examples": given.examples, "seed": given.seed}
    given.json.write_text(json.dumps({"setting": setting, "median": medians, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
