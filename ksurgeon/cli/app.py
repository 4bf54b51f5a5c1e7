"""The command line's table of contents: every command, in the order of the help."""

from importlib import import_module
from typing import Annotated, Any

import typer

from ksurgeon.cli import commands, commands_training
from ksurgeon.cli.environment import check_environment

__all__ = ["app"]

_COMMANDS = {
    "find": commands.Find,
    "convert": commands.Convert,
    "plan": commands.Plan,
    "distill": commands_training.Distill,
    "finetune": commands_training.Finetune,
    "run": commands_training.RunRecipe,
    "show": commands.Show,
    "revert": commands.Revert,
    "export": commands.Export,
    "diff": commands.Diff,
    "doctor": commands.Doctor,
}
_HOMES = {asked: name for name, asked in _COMMANDS.items()} | {
    commands_training.Distill: "train",
    commands_training.Finetune: "train",
    commands.Rules: "rules",
    commands.ShowRule: "show_rule",
}


def _carry_out(asked: Any, debug: bool) -> None:
    """Run a command: the module of the work, which imports torch, is imported for that alone."""
    import_module(f"ksurgeon.cli.{_HOMES[type(asked)]}").run(asked)


app = typer.Typer(
    name="ksurgeon",
    help="Find linear maps in PyTorch models and put K-matrices in their place.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    result_callback=_carry_out,
)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks; may stand anywhere")] = False,
) -> None:
    check_environment()


for _name, _asked in _COMMANDS.items():
    app.command(_name)(_asked)

rules_app = typer.Typer(help="List the built-in rules, or show one.", invoke_without_command=True)
rules_app.callback()(commands.Rules)
rules_app.command("show")(commands.ShowRule)
app.add_typer(rules_app, name="rules")
