"""The command line's table of contents: every command, in the order of the help."""

from typing import Annotated

import typer

from ksurgeon.cli.commands import (
    convert,
    diff,
    doctor,
    export,
    find,
    plan,
    revert,
    rules,
    show,
    show_rule,
)
from ksurgeon.cli.commands_training import distill, finetune, run_recipe
from ksurgeon.cli.environment import check_environment

__all__ = ["app"]

app = typer.Typer(
    name="ksurgeon",
    help="Find linear maps in PyTorch models and put K-matrices in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks; may stand anywhere")] = False,
) -> None:
    check_environment()


app.command()(find)
app.command()(convert)
app.command()(plan)
app.command()(distill)
app.command()(finetune)
app.command("run")(run_recipe)
app.command()(show)
app.command()(revert)
app.command()(export)
app.command()(diff)
app.command()(doctor)

rules_app = typer.Typer(help="List the built-in rules, or show one.", invoke_without_command=True)
rules_app.callback()(rules)
rules_app.command("show")(show_rule)
app.add_typer(rules_app, name="rules")
