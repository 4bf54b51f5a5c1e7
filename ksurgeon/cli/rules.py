"""``ksurgeon rules``."""

import json as json_module

from rich.table import Table
from rich.text import Text

from ksurgeon.cli.commands import Rules
from ksurgeon.cli.console import out
from ksurgeon.rules.load import builtin_rules, load_rule

__all__ = ["run"]


def run(asked: Rules) -> None:
    rules = {name: load_rule(name) for name in builtin_rules()}
    if asked.json:
        print(json_module.dumps({name: rule.summary for name, rule in rules.items()}, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("rule", style="bold")
    table.add_column("what it does")
    for name, rule in rules.items():
        table.add_row(Text(name), Text(rule.summary))
    out.print(table)
    out.print(
        "\n[dim]ksurgeon rules show NAME prints one: copy it to a .toml file and change it for your own.[/]"
    )
