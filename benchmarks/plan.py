"""The planner on a pretrained model: ``python -m benchmarks.plan order task time --json FILE``.

order  single sites of MiniLM replaced, predicted against measured harm
task   STS-B of plans and of uniform rules for the same parameters, before any training
time   seconds that planning takes, for MiniLM and for a BERT of twelve layers with random weights
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import Pair, minilm, sts
from benchmarks.results import cpu_setting
from ksurgeon.calibrate.harm import Harm, HarmName, OutputChange
from ksurgeon.kmatrix.structures import LowRank, Structure
from ksurgeon.planner import Budget, Planning, plan
from ksurgeon.planner import options as planner_options

EXAMPLES = 512
FAMILIES: Sequence[str] = planner_options.FAMILIES
IGNORE = ("pooler.dense",)  # which the embedding does not use


class EmbeddingChange(OutputChange):
    """Relative change of sentence embeddings: the mean over the positions shown, normalised."""

    name, unit = "embeddings", "relative change of the embeddings"

    def probe(self, outputs: Any, mask: Tensor | None, random: torch.Generator) -> tuple[Tensor, float]:
        return super().probe(embedding(self.chosen(outputs)[0], mask), None, random)

    def change(self, before: Sequence[Tensor], after: Any, mask: Tensor | None) -> tuple[float, float]:
        moved = embedding(self.chosen(after)[0], mask)
        return super().change([embedding(before[0], mask)], moved, None)


def embedding(states: Tensor, mask: Tensor | None) -> Tensor:
    """Normalised mean of ``(examples, positions, features)``."""
    shown = torch.ones(states.shape[:2]) if mask is None else mask.to(states.dtype)
    return F.normalize((states * shown[..., None]).sum(1) / shown.sum(1, keepdim=True), dim=-1)


class Task:
    """Spearman correlation of STS-B for a model, ×1."""

    def __init__(self, tokenizer: Any, pairs: Sequence[Pair]) -> None:
        self.scores, texts = [p.score for p in pairs], [p.first for p in pairs] + [p.second for p in pairs]
        self.order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
        self.batches = [
            dict(tokenizer([texts[i] for i in self.order[at : at + 64]], **options))
            for at in range(0, len(texts), 64)
        ]

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> float:
        parts = [embedding(model(**b)[0], b["attention_mask"]) for b in self.batches]
        found = torch.cat(parts)
        found = torch.empty_like(found).index_copy_(0, torch.tensor(self.order), found)
        half = len(self.scores)
        return float(spearmanr((found[:half] * found[half:]).sum(1), self.scores)[0])


def planned(model: nn.Module, tokenizer: Any, budget: str, **options: Any) -> tuple[Planning, float]:
    """A plan on sentences of STS-B's training part, without their scores, and the seconds it took."""
    lines = dict.fromkeys(text for pair in sts("train") for text in (pair.first, pair.second))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sentences.txt"
        file.write_text("\n".join(lines), encoding="utf-8")
        begin, last = time.perf_counter(), ""

        def stage(verb: str, done: int, total: int, what: str) -> None:
            nonlocal last
            if verb != last:
                print(f"{time.perf_counter() - begin:6.1f} s  {verb} {total}", flush=True)
                last = verb

        found = plan(
            model,
            budget,
            file,
            examples=EXAMPLES,
            ignore=IGNORE,
            tokenizer=tokenizer.name_or_path,
            structures=FAMILIES,
            stage=stage,
            **options,
        )
        return found, time.perf_counter() - begin


def order(seconds: float, harm: HarmName | Harm) -> dict[str, Any]:
    """Single swaps, spread over the options of every site until the time is up, a hundred at least.

    Options whose figures are of a quick fit are left out: what is measured is a thorough one.
    """
    model, tokenizer = minilm()
    planning, _ = planned(model, tokenizer, "params=0.5", harm=harm)
    search, rows = planning.search, []
    begin, taken = time.perf_counter(), 0
    playing = [site for site in planning.sites if len(site.options) > 1]
    while taken < 4 and (taken < 3 or time.perf_counter() - begin < seconds):
        for site in playing:
            options = [option for option in site.options[1:] if option.is_open and not option.quick]
            option = options[(taken * 7 + 3) % len(options)]
            assert option.structure is not None
            measured = search.judge.of({search.sites[site.path]: option.structure})
            rows.append(
                {
                    "site": site.path,
                    "structure": str(option.structure),
                    "predicted": option.predicted,
                    "measured": measured,
                }
            )
        taken += 1
        figure = spearmanr([r["predicted"] for r in rows], [r["measured"] for r in rows])[0]
        print(f"{len(rows)} swaps: Spearman {figure:.4f}", flush=True)
    return {"harm": planning.harm.name, "swaps": len(rows), "spearman": float(figure), "rows": rows}


def task(budgets: Sequence[float], harm: HarmName | Harm) -> list[dict[str, Any]]:
    """STS-B test of plans, beside a low rank of the same share everywhere, fitted to weights or to data."""
    model, tokenizer = minilm()
    test = Task(tokenizer, sts("test"))
    planning, _ = planned(model, tokenizer, f"params={budgets[0]}", harm=harm)
    search, dense = planning.search, test(model)
    print(f"dense {dense:.4f}", flush=True)
    found = []
    for share in budgets:
        budget = Budget("params", share)
        choice = search.settled(budget)
        chosen = {
            search.sites[site.path]: option.structure
            for site, option in search.picked(choice)
            if option.structure is not None
        }
        uniform: dict[Any, Structure] = {search.sites[p]: LowRank(share=share) for p in search.in_play}
        with search.judge.replaced(chosen):
            ours = test(model)
        with search.judge.replaced(uniform):
            weighted = test(model)
        known, search.judge._calibration.sites = search.judge._calibration.sites, {}
        with search.judge.replaced(uniform):
            plain = test(model)
        search.judge._calibration.sites = known
        row = {
            "budget": str(budget),
            "harm": planning.harm.name,
            "dense": dense,
            "plan": ours,
            "uniform low rank, fitted to inputs": weighted,
            "uniform low rank, fitted to weights": plain,
            "loss avoided of uniform": 1 - (dense - ours) / (dense - plain),
            "loss avoided of uniform on inputs": 1 - (dense - ours) / (dense - weighted),
        }
        print(row, flush=True)
        found.append(row)
    return found


def seconds_to_plan() -> list[dict[str, Any]]:
    """Wall and processor time of a first plan with nothing kept from before."""
    from transformers import BertConfig, BertModel

    found = []
    small, tokenizer = minilm()
    torch.manual_seed(0)
    base = BertModel(BertConfig(), add_pooling_layer=False).eval()
    for name, model in (("MiniLM-L6, 6 layers of 384", small), ("BERT-base, 12 layers of 768", base)):
        used = time.process_time()
        _, wall = planned(model, tokenizer, "params=0.5", keep=False)
        row = {"model": name, "seconds": wall, "processor seconds": time.process_time() - used}
        print(row, flush=True)
        found.append(row)
    return found


def main() -> None:
    global FAMILIES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=[], metavar="order|task|time")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plan.json"), metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120, help="for the swaps")
    parser.add_argument("--structures", nargs="+", default=FAMILIES, metavar="NAME")
    parser.add_argument("--harm", choices=("outputs", "embeddings"), default="outputs")
    arguments = parser.parse_args()
    harm: HarmName | Harm = EmbeddingChange() if arguments.harm == "embeddings" else "outputs"
    FAMILIES = arguments.structures
    torch.set_num_threads(arguments.threads)
    file: Path = arguments.json
    results = json.loads(file.read_text()) if file.exists() else {}
    results["setting"] = cpu_setting(arguments.threads) | {"examples": EXAMPLES, "structures": list(FAMILIES)}
    for part in arguments.parts or ("order", "task", "time"):
        if part == "order":
            results[part] = order(arguments.seconds, harm)
        elif part == "task":
            results[part] = task((0.5, 0.25), harm)
        elif part == "time":
            results[part] = seconds_to_plan()
        else:
            parser.error(f"no part {part}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title="STS-B test, Spearman", box=None)
    rows = results.get("task", [])
    for column in rows[0] if rows else ():
        table.add_column(column)
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.4f}" for v in row.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
