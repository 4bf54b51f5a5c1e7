"""``ksurgeon rules``."""

import json as json_module

from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from ksurgeon.cli.console import out
from ksurgeon.cli.streams import printable
from ksurgeon.files import read_regular
from ksurgeon.rules.load import builtin_rules, find_rule_file, load_rule

__all__ = ["list_rules", "print_rule"]


def list_rules(json: bool) -> None:
    rules = {name: load_rule(name) for name in builtin_rules()}
    if json:
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


def print_rule(name: str) -> None:
    load_rule(name)
    text = read_regular(find_rule_file(name))
    if out.is_terminal:
        out.print(Syntax(text.rstrip(), "toml", background_color="default"))
    else:
        print(printable(text), end="")
