"""``ksurgeon run``."""

from pathlib import Path
from typing import Any

from rich.table import Table

from ksurgeon.cli.console import err, out
from ksurgeon.cli.train import parse_settings
from ksurgeon.cli.training import TerminalListener
from ksurgeon.errors import FolderError, RecipeError
from ksurgeon.recipes.run import RESULTS, run_recipe
from ksurgeon.recipes.schema import load_recipe
from ksurgeon.report.figures import check_picture
from ksurgeon.report.recipe import draw_results

__all__ = ["run"]


def run(
    recipe: str,
    output: str | None,
    minutes: float | None,
    only: list[str],
    resume: bool,
    device: str | None,
    settings: list[str],
    plot: str | None,
    yes: bool,
) -> None:
    loaded = load_recipe(recipe)
    if plot is not None:
        check_picture(Path(plot))
        if loaded.evaluate is None:
            raise RecipeError(
                f"--plot {plot}: the recipe {loaded.name} evaluates nothing that could be drawn"
            )
    folder = Path(output or Path("runs") / loaded.name)
    if (folder / RESULTS).exists() and not (yes or resume):
        raise FolderError(
            f"{folder} holds earlier results; give --resume to go on, --yes to replace them, or another "
            "folder with -o"
        )
    listener = TerminalListener(err)
    options = parse_settings(settings, {"minutes": minutes})
    try:
        results = run_recipe(
            loaded, folder, only=tuple(only), resume=resume, device=device, listener=listener, **options
        )
    finally:
        listener.close()
    out.print(_table(results))
    written = str(folder / RESULTS)
    if plot is not None:
        draw_results(results, Path(plot))
        written += f" and {plot}"
    out.print(f"[bold]Written to {written}[/]", highlight=False)


def _table(results: dict[str, Any]) -> Table:
    names = list(results["dense"]["metrics"])
    table = Table("variant", "parameters", box=None, header_style="bold")
    for name in names:
        table.add_column(f"{name}: surgery → training", justify="right")
    table.add_column("examples/s", justify="right")
    dense = results["dense"]
    table.add_row(
        "the original", f"{dense['parameters']:,}", *[f"{dense['metrics'][n]:.4f}" for n in names], ""
    )
    for variant, done in results["variants"].items():
        stages = done["after_surgery"], done["after_training"]
        pairs = [" → ".join(f"{stage[n]:.4f}" if n in stage else "?" for stage in stages) for n in names]
        rates = " ".join(f"{stage['examples_per_second']:.1f}" for stage in done["training"])
        table.add_row(variant, f"{done['parameters']:,}", *pairs, rates)
    return table
