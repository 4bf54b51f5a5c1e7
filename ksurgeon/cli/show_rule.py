"""``ksurgeon rules show``."""

from rich.syntax import Syntax

from ksurgeon.cli.commands import ShowRule
from ksurgeon.cli.console import out
from ksurgeon.cli.streams import printable
from ksurgeon.files import read_regular
from ksurgeon.rules.load import find_rule_file, load_rule

__all__ = ["run"]


def run(asked: ShowRule) -> None:
    load_rule(asked.name)
    text = read_regular(find_rule_file(asked.name))
    if out.is_terminal:
        out.print(Syntax(text.rstrip(), "toml", background_color="default"))
    else:
        print(printable(text), end="")
