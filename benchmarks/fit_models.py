"""One-shot fits of pretrained models, before any training: ``python -m benchmarks.fit_models``.

Every linear layer of MiniLM-L6's encoder, or every pointwise convolution of EfficientNet-Lite0, is replaced
by a structure at a share of its parameters, fitted in one of several ways, and the whole model is judged by
its task: Spearman's correlation on STS-B, or how often its first choice is the untouched model's. Every
result is written when it is had, and is not computed again. Then ``docs/fit.md`` gets the tables.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import folder_of, lite0, minilm, pictures, sts
from benchmarks.fit_tables import STRUCTURES, WAYS, render
from benchmarks.results import cpu_setting, gpu_setting
from ksurgeon.calibrate import Calibration, SiteMoments, calibrate, harm_for
from ksurgeon.calibrate.harm import embeddings
from ksurgeon.errors import StructureError
from ksurgeon.find import Site, find
from ksurgeon.find.inputs import ExampleInputs
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank, Monarch, Structure, Sum
from ksurgeon.planner.choose import choose
from ksurgeon.planner.predict import low_rank_curve
from ksurgeon.site_kinds import site_kind
from ksurgeon.surgery.build import dense_blocks, dense_weight, site_weight
from ksurgeon.surgery.compensate import compensating

_FILE, _PAGE = Path("benchmarks/results/fit_models.json"), Path("docs/fit.md")
_SHARES = (0.75, 0.5, 0.25)


class Sentences(nn.Module):
    """A sentence encoder: the mean of the last hidden states, of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return embeddings(states, attention_mask)


@dataclass
class Task:
    """A model, the sites that are replaced, inputs to fit to, and its figure of merit."""

    model: nn.Module
    sites: list[Site]
    batches: Sequence[ExampleInputs]
    figure: Callable[[nn.Module], float]
    about: str


def language(sentences: int, pairs: int | None, seed: int, device: str) -> Task:
    """MiniLM-L6 fitted to sentences of STS-B's training split, judged on its test split."""
    encoder, tokenizer = minilm()
    model = Sentences(encoder).eval().to(device)

    def encoded(texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Texts of one length each, so that nothing is padded."""
        ids = tokenizer(list(texts), truncation=True, max_length=128)["input_ids"]
        lengths: dict[int, list[int]] = {}
        for number, tokens in enumerate(ids):
            lengths.setdefault(len(tokens), []).append(number)
        for numbers in lengths.values():
            for at in range(0, len(numbers), 64):
                some = numbers[at : at + 64]
                tokens = torch.tensor([ids[number] for number in some], device=device)
                yield some, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    random = torch.Generator().manual_seed(seed)
    texts = sorted({text for pair in sts("train") for text in (pair.first, pair.second)})
    drawn = [texts[i] for i in torch.randperm(len(texts), generator=random)[:sentences]]
    batches = [batch for _, batch in encoded(drawn)]
    judged = sts("test")
    if pairs is not None:
        judged = [judged[i] for i in torch.randperm(len(judged), generator=random)[:pairs]]
    unique = sorted({text for pair in judged for text in (pair.first, pair.second)})
    place = {text: number for number, text in enumerate(unique)}
    asked = list(encoded(unique))

    @torch.no_grad()
    def figure(model: nn.Module) -> float:
        from scipy.stats import spearmanr

        found = torch.empty(len(unique), 384)
        for numbers, batch in asked:
            found[numbers] = model(**batch).cpu()
        first, second = (found[[place[getattr(p, side)] for p in judged]] for side in ("first", "second"))
        return float(spearmanr((first * second).sum(1), [pair.score for pair in judged]).statistic)

    sites = [site for site in find(model, batches[0]) if ".encoder." in site.path and not site.reason]
    about = f"{len(drawn)} training sentences, {len(judged)} test pairs"
    return Task(model, sites, batches, figure, about)


def vision(crops: int, seed: int, device: str) -> Task:
    """EfficientNet-Lite0 fitted to crops of ten ImageNet pictures, judged on crops of ten others."""
    model = lite0().to(device)
    images, _ = pictures(448)
    random = torch.Generator().manual_seed(seed)

    def some(images: Tensor, count: int) -> Tensor:
        found = []
        for number in range(count):
            side = int(torch.randint(200, 449, (), generator=random))
            top, left = (int(torch.randint(0, 449 - side, (), generator=random)) for _ in range(2))
            crop = images[number % len(images)][None, :, top : top + side, left : left + side]
            size = (224, 224)
            found.append(F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True))
        return torch.cat(found).to(device)

    batches = list(some(images[::2], crops).split(10))
    judged = list(some(images[1::2], 2 * crops).split(20))
    with torch.no_grad():
        wanted = [model(batch).argmax(1) for batch in judged]

    @torch.no_grad()
    def figure(model: nn.Module) -> float:
        same = [model(batch).argmax(1) == best for batch, best in zip(judged, wanted, strict=True)]
        return float(torch.cat(same).float().mean())

    sites = [site for site in find(model, batches[0]) if site.kind == "pointwise_conv" and not site.reason]
    return Task(model, sites, batches, figure, f"{crops} crops, {2 * crops} others judged")


def structures(name: str, share: float, task: Task, known: Calibration) -> dict[str, Structure | None]:
    """The structure of every site; None leaves it."""
    if name == "low rank, uneven":
        return uneven(share, task, known)
    made: dict[str, Structure | None] = {}
    for site in task.sites:
        if name == "low rank":
            made[site.path] = LowRank(share=share)
        elif name == "Monarch":
            made[site.path] = Monarch(share=share)
        else:
            made[site.path] = _of_k_matrices(name, share, site)
    return made


def of_two_radices(in_features: int, out_features: int, share: float) -> Kaleidoscope | None:
    """The K-matrix of two radices whose product is the smaller side with the most parameters that are within
    a share of the dense ones, or else with the fewest; None for a side that is no product."""
    size, dense = min(in_features, out_features), in_features * out_features
    pairs = [(first, size // first) for first in range(2, size // 2 + 1) if size % first == 0]
    costs = {
        matrix: matrix.parameters(in_features, out_features) / dense
        for matrix in (Kaleidoscope(radix=pair) for pair in pairs)
    }
    within = {matrix: cost for matrix, cost in costs.items() if cost <= share}
    if within:
        return max(within, key=within.__getitem__)
    return min(costs, key=costs.__getitem__, default=None)


def _of_k_matrices(name: str, share: float, site: Site) -> Structure:
    """With a path beside it where there is room for one; a low rank where there is none for a K-matrix."""
    sizes = site.in_features, site.out_features
    matrix = of_two_radices(*sizes, share if name == "K-matrix" else share / 2)
    if matrix is None:
        return LowRank(share=share)
    if name == "K-matrix":
        return matrix
    both = Sum(Kaleidoscope(radix=matrix.radix), share=share)
    try:
        both.parameters(*sizes)
    except StructureError:
        return LowRank(share=share)
    return both


def uneven(share: float, task: Task, known: Calibration) -> dict[str, Structure | None]:
    """The ranks of least predicted harm within a share of all parameters, by the planner's solver."""
    harms, costs, ranks = list[list[float]](), list[list[float]](), list[list[int | None]]()
    for site in task.sites:
        moments = known.sites[site.path]
        weight = dense_blocks(site_weight(task.model, site).detach(), 1)
        _, harm = low_rank_curve(weight, moments)
        sides, dense = site.in_features + site.out_features, site.in_features * site.out_features
        tried = sorted({max(1, round(dense * part / 100 / sides)) for part in range(2, 98)})
        ranks.append([None, *tried])
        harms.append([0.0, *(float(harm[rank]) for rank in tried)])
        costs.append([float(dense), *(float(rank * sides) for rank in tried)])
    total = sum(site.in_features * site.out_features for site in task.sites)
    picked = choose(harms, costs, share * total, seconds=60).picked
    return {
        site.path: LowRank(rank=rank) if (rank := tried[i]) is not None else None
        for site, tried, i in zip(task.sites, ranks, picked, strict=True)
    }


def converted(
    task: Task, chosen: Mapping[str, Structure | None], way: str, known: Calibration
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of the model with the sites replaced, and the dense weights of the replacements."""
    model = copy.deepcopy(task.model)
    weights: dict[str, Tensor] = {}

    def build(site: Site, moments: SiteMoments | None) -> nn.Module:
        structure = chosen[site.path]
        assert structure is not None
        new, _ = site_kind(site.kind).make(task.model, site, structure, "fit", moments)
        weights[site.path] = dense_weight(new).detach()
        model.set_submodule(site.path, new)
        return new

    sites = [site for site in task.sites if chosen[site.path] is not None]
    if way == "compensated":
        for _ in compensating(task.model, sites, task.batches, known.sites, build):
            pass
        return model, weights
    for site in sites:
        moments = known.sites[site.path]
        if way == "inputs":
            moments = SiteMoments(
                moments.moment, moments.mean, moments.rows, shiftable=moments.shiftable
            )  # no slopes
        build(site, None if way == "weight" else moments)
    return model, weights


@torch.no_grad()
def pruned(task: Task, share: float, way: str, known: Calibration) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with the smallest entries of every weight zero; by their size times that of their inputs (Wanda:
    Sun et al., 2024) where the fit is to the inputs. Places of the entries are not counted."""
    model, weights = copy.deepcopy(task.model), dict[str, Tensor]()
    for site in task.sites:
        weight = model.get_parameter(f"{site.path}.weight")
        score = weight.flatten(1).abs()
        if way == "inputs":
            score = score * known.sites[site.path].moment[0].diagonal().sqrt().float()
            count = round((1 - share) * score.shape[1])
            least = score.kthvalue(count, dim=1, keepdim=True).values
        else:
            least = score.flatten().kthvalue(round((1 - share) * score.numel())).values
        weight.mul_((score > least).view_as(weight))
        weights[site.path] = weight.flatten(1).detach()
    return model, weights


@torch.no_grad()
def errors(task: Task, weights: Mapping[str, Tensor], known: Calibration) -> dict[str, list[float]]:
    """Relative errors of every weight: plain, and weighted by the second moment of its inputs."""
    found = {}
    for site in task.sites:
        if site.path not in weights:
            found[site.path] = [0.0, 0.0]
            continue
        weight = site_weight(task.model, site).detach().double()
        change = weights[site.path].double() - weight
        root = known.sites[site.path].root[0]
        pair = [(change.norm() / weight.norm()), ((change @ root).norm() / (weight @ root).norm())]
        found[site.path] = [round(float(value), 4) for value in pair]
    return found


def measure(
    task: Task, structure: str, share: float, way: str, known: Calibration, pairs: str
) -> dict[str, Any]:
    """One row of results."""
    begin = time.perf_counter()
    total = sum(site.in_features * site.out_features for site in task.sites)
    if structure == "pruned":
        model, weights = pruned(task, share, way, known)
        kept = share
    else:
        chosen = structures(structure, share, task, known)
        model, weights = converted(task, chosen, way, known)
        sizes = {site.path: (site.in_features, site.out_features) for site in task.sites}
        kept = sum(
            each.parameters(*sizes[path]) if each is not None else sizes[path][0] * sizes[path][1]
            for path, each in chosen.items()
        ) / (total)
    seconds = time.perf_counter() - begin
    found = errors(task, weights, known)
    return {
        "structure": structure,
        "share": share,
        "way": way,
        "kept": round(kept, 4),
        "figure": round(task.figure(model), 4),
        "judged": pairs,
        "error": round(median(pair[0] for pair in found.values()), 4),
        "weighted error": round(median(pair[1] for pair in found.values()), 4),
        "seconds": round(seconds, 1),
        "layers": found,
    }


def cases(structures: Sequence[str], shares: Sequence[float], ways: Sequence[str]) -> Iterator[Any]:
    """Combinations that mean something: pruning knows two ways."""
    for structure, share, way in product(structures, shares, ways):
        if structure == "pruned" and way not in ("weight", "inputs"):
            continue
        if structure == "low rank, uneven" and way not in ("both sides", "compensated"):
            continue
        yield structure, share, way


def write(results: Mapping[str, Any], file: Path) -> None:
    """A line for each row, put in the file's place at once."""
    models = []
    for name, entry in results.items():
        rows = ",\n".join(f"  {json.dumps(row)}" for row in entry["rows"])
        head = json.dumps({key: value for key, value in entry.items() if key != "rows"})[:-1]
        models.append(f'{json.dumps(name)}: {head}, "rows": [\n{rows}\n]}}')
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text("{" + ",\n".join(models) + "}\n")
    partial.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=("minilm", "lite0"), action="append")
    parser.add_argument("--structure", choices=STRUCTURES, action="append")
    parser.add_argument("--share", type=float, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--examples", type=int, help="sentences (1500) or crops (120) to fit to")
    parser.add_argument("--pairs", type=int, help="pairs of STS-B's test split to judge by; all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--file", type=Path, default=_FILE)
    parser.add_argument("--only-render", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = json.loads(given.file.read_text()) if given.file.exists() else {}
    for name in () if given.only_render else given.model or ("minilm", "lite0"):
        folder_of(name)
        task = (
            language(given.examples or 1500, given.pairs, given.seed, given.device)
            if name == "minilm"
            else vision(given.examples or 120, given.seed, given.device)
        )
        setting = cpu_setting(given.threads) if given.device == "cpu" else gpu_setting()
        entry = results.setdefault(name, {"setting": setting, "rows": []})
        entry["setting"] |= {"data": task.about, "seed": given.seed}
        with torch.no_grad():
            first = task.batches[0]
            outputs = task.model(**first) if isinstance(first, dict) else task.model(first)
        known = calibrate(
            task.model,
            task.sites,
            task.batches,
            harm=harm_for("auto", task.model, outputs),
            progress=lambda done, total, what: print(f"\rcalibrating {done}/{total}", end="", flush=True),
        )
        if "untouched" not in entry:
            entry["untouched"] = round(task.figure(task.model), 4)
        done = {(row["structure"], row["share"], row["way"], row["judged"]) for row in entry["rows"]}
        todo = cases(given.structure or STRUCTURES, given.share or _SHARES, given.way or WAYS)
        for structure, share, way in todo:
            if (structure, share, way, task.about) in done:
                continue
            row = measure(task, structure, share, way, known, task.about)
            shown = {key: value for key, value in row.items() if key not in ("layers", "judged")}
            print(name, *(f"{key} {value}" for key, value in shown.items()), sep="  ", flush=True)
            entry["rows"].append(row)
            write(results, given.file)
    if results:
        write(results, given.file)
    render(results, _PAGE)


if __name__ == "__main__":
    main()
