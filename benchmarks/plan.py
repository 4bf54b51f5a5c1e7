"""The planner on a pretrained model: ``python -m benchmarks.plan order task time --json FILE``.

order  single sites of MiniLM replaced, predicted against measured harm
task   STS-B of plans and of uniform rules for the same parameters, before any training
time   seconds that planning takes, for MiniLM and for a BERT of twelve layers with random weights
"""

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import nn

from benchmarks.data import Pair, minilm, sts
from benchmarks.results import cpu_setting
from ksurgeon import convert
from ksurgeon.calibrate.harm import HarmName, embeddings
from ksurgeon.planner import Budget, Planning, plan
from ksurgeon.planner import options as planner_options
from ksurgeon.rules.schema import Replacement, Rule

EXAMPLES = 512  # as the command does
FAMILIES: Sequence[str] = planner_options.FAMILIES
IGNORE = ("pooler.dense",)  # which the embedding does not use


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
        parts = [embeddings(model(**b)[0], b["attention_mask"]) for b in self.batches]
        found = torch.cat(parts)
        found = torch.empty_like(found).index_copy_(0, torch.tensor(self.order), found)
        half = len(self.scores)
        return float(spearmanr((found[:half] * found[half:]).sum(1), self.scores)[0])


def sentences() -> list[str]:
    """Those of STS-B's training part, without their scores."""
    return list(dict.fromkeys(text for pair in sts("train") for text in (pair.first, pair.second)))


@contextmanager
def sentence_file() -> Iterator[Path]:
    """The sentences as a file of lines, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sentences.txt"
        file.write_text("\n".join(sentences()), encoding="utf-8")
        yield file


def planned(model: nn.Module, tokenizer: Any, budget: str, **options: Any) -> tuple[Planning, float]:
    """A plan on those sentences, and the seconds it took."""
    with sentence_file() as file:
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


def order(seconds: float, harm: HarmName) -> dict[str, Any]:
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


def task(budgets: Sequence[float], harm: HarmName) -> list[dict[str, Any]]:
    """STS-B test of plans, and of low ranks of the same share everywhere, carried out by ``convert``."""
    model, tokenizer = minilm()
    test, dense = Task(tokenizer, sts("test")), 0.0

    def converted(file: Path | None, **how: Any) -> float:
        copy = deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            convert(
                copy,
                example_inputs=test.batches[0],
                data=file,
                examples=EXAMPLES,
                tokenizer=tokenizer.name_or_path,
                **how,
            )
        return test(copy)

    dense = test(model)
    print(f"dense {dense:.4f}", flush=True)
    planning, _ = planned(model, tokenizer, f"params={budgets[0]}", harm=harm)
    search, found = planning.search, []
    for share in budgets:
        budget = Budget("params", share)
        chosen = search.plan_of(search.settled(budget), budget)
        rule = Rule(name="uniform", replace=(Replacement.model_validate({
            "find": "linear", "with": {"structure": "low_rank", "share": share}, "start": "fit",
            "ignore": IGNORE}),))  # fmt: skip
        with sentence_file() as file:
            ours = converted(file, plan=chosen)
            uniform = {
                "weights": converted(None, rule=rule),
                "inputs": converted(file, rule=rule, compensate=False),
                "inputs, compensated": converted(file, rule=rule),
            }
        row: dict[str, Any] = {
            "budget": str(budget), "examples": EXAMPLES, "harm": planning.harm.name,
            "dense": dense, "plan": ours,
            "structures": dict(Counter(d.structure.structure for d in chosen.replacements if d.structure)),
        }  # fmt: skip
        row |= {f"uniform low rank, {name}": figure for name, figure in uniform.items()}
        row |= {
            f"loss avoided, {name}": 1 - (dense - ours) / (dense - figure) for name, figure in uniform.items()
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
    global EXAMPLES, FAMILIES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=[], metavar="order|task|time")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/plan.json"), metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="sentences to plan and fit with")
    parser.add_argument("--seconds", type=float, default=120, help="for the swaps")
    parser.add_argument("--structures", nargs="+", default=FAMILIES, metavar="NAME")
    parser.add_argument("--harm", choices=("outputs", "embeddings"), default="embeddings")
    arguments = parser.parse_args()
    harm: HarmName = arguments.harm
    EXAMPLES, FAMILIES = arguments.examples, arguments.structures
    torch.set_num_threads(arguments.threads)
    file: Path = arguments.json
    results = json.loads(file.read_text()) if file.exists() else {}
    setting = cpu_setting(arguments.threads) | {"examples": EXAMPLES, "structures": list(FAMILIES)}
    for part in arguments.parts or ("order", "task", "time"):
        if part == "order":
            results[part] = order(arguments.seconds, harm)
        elif part == "task":
            results[part] = task((0.5, 0.25), harm)
        elif part == "time":
            results[part] = seconds_to_plan()
        else:
            parser.error(f"no part {part}")
        results[f"{part} setting"] = setting
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(title="STS-B test, Spearman", box=None)
    rows = results.get("task", [])
    for column in rows[0] if rows else ():
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
