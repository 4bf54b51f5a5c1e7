"""``ksurgeon run``."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ksurgeon.cli.commands_training import RunRecipe
from ksurgeon.cli.console import err, out
from ksurgeon.cli.train import parse_settings
from ksurgeon.cli.training import TerminalListener
from ksurgeon.errors import FolderError, RecipeError
from ksurgeon.kernels import chosen_backend
from ksurgeon.recipes.places import require_leave
from ksurgeon.recipes.run import RESULTS, run_recipe
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.report.figures import can_draw, check_picture
from ksurgeon.report.recipe import draw_results
from ksurgeon.report.seeds import draw_seeds, seeds_table
from ksurgeon.surgery.folders import require_writable

__all__ = ["run"]


def run(asked: RunRecipe) -> None:
    whole = load_recipe(asked.recipe)
    loaded = whole.quickened() if asked.quick else whole
    compares = loaded.is_from_scratch or bool(asked.seeds or loaded.seeds)
    if asked.plot is not None:
        check_picture(Path(asked.plot))
        if loaded.evaluate is None and not compares:
            raise RecipeError(
                f"--plot {asked.plot}: the recipe {loaded.name} evaluates nothing that could be drawn"
            )
    folder = Path(asked.output or Path("runs") / (f"{loaded.name}-quick" if asked.quick else loaded.name))
    chosen_backend()
    for file in (folder / RESULTS, *([Path(asked.plot)] if asked.plot is not None else [])):
        require_writable(file)
    if (folder / RESULTS).exists() and not (asked.yes or asked.resume):
        raise FolderError(
            f"{folder} holds earlier results; give --resume to go on, --yes to replace them, or another "
            "folder with -o"
        )
    require_leave(loaded, asked.trust_remote_code)
    listener = TerminalListener(err)
    options = parse_settings(asked.set or [], {"minutes": asked.minutes})
    picture = Path(asked.plot) if asked.plot is not None else folder / "results.svg"

    def early(results: dict[str, Any]) -> None:
        if compares:
            err.print(seeds_table(results))
            if asked.plot is not None or can_draw():
                draw_seeds(results, picture)

    try:
        results = run_recipe(
            loaded,
            folder,
            only=tuple(asked.only or []),
            quick=asked.quick,
            seeds=asked.seeds,
            jobs=asked.jobs,
            resume=asked.resume,
            device=asked.device,
            trust_remote_code=asked.trust_remote_code,
            listener=listener,
            progress=early,
            **options,
        )
    finally:
        listener.close()
    out.print(seeds_table(results) if compares else _table(results))
    written = str(folder / RESULTS)
    if compares and picture.is_file():
        written += f" and {picture}"
    elif asked.plot is not None:
        draw_results(results, picture)
        written += f" and {asked.plot}"
    out.print(f"[bold]Written to {escape(written)}[/]", highlight=False)


def _table(results: dict[str, Any]) -> Table:
    names = list(results["dense"]["metrics"])
    table = Table("variant", "parameters", box=None, header_style="bold")
    for name in names:
        table.add_column(f"{escape(name)}: surgery → training", justify="right")
    table.add_column("examples/s", justify="right")
    dense = results["dense"]
    table.add_row(
        "the original", f"{dense['parameters']:,}", *[f"{dense['metrics'][n]:.4f}" for n in names], ""
    )
    for variant, done in results["variants"].items():
        stages = done["after_surgery"], done["after_training"]
        pairs = [" → ".join(f"{stage[n]:.4f}" if n in stage else "?" for stage in stages) for n in names]
        rates = " ".join(f"{stage['examples_per_second']:.1f}" for stage in done["training"])
        table.add_row(escape(variant), f"{done['parameters']:,}", *pairs, rates)
    return table
