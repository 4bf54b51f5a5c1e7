"""Where rules come from: the built-in ones, TOML files, and rules made in Python."""

from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from ksurgeon.errors import RuleError
from ksurgeon.files import parse_toml, read_regular
from ksurgeon.rules.explain import explain
from ksurgeon.rules.schema import Rule

__all__ = ["builtin_rules", "data_folder", "find_rule_file", "load_rule"]


def data_folder(name: str) -> Path:
    """Folder of packaged data, ``rules`` or ``recipes``: in the wheel, or at the top of the source tree."""
    package = Path(__file__).parents[1]
    packaged = package / f"_{name}"
    return packaged if packaged.is_dir() else package.parent / name


def builtin_rules() -> dict[str, Path]:
    """Names and files of the rules that ksurgeon brings along, in alphabetical order."""
    return {file.stem: file for file in sorted(data_folder("rules").glob("*.toml"))}


def load_rule(rule: str | Path | Rule) -> Rule:
    """Rule of a built-in name or from a TOML file; a ``Rule`` is returned as it is.

    Raises:
        RuleError: there is no such rule, or the file cannot be read or says something it may not.
    """
    return rule if isinstance(rule, Rule) else _read(find_rule_file(rule))


def find_rule_file(rule: str | Path) -> Path:
    """File of a rule. A string is a file if it ends in ``.toml`` or has a directory in it, a name otherwise.

    Raises:
        RuleError: no built-in rule has that name.
    """
    if isinstance(rule, str) and not rule.endswith(".toml") and Path(rule).name == rule:
        known = builtin_rules()
        if rule not in known:
            near = get_close_matches(rule, known, n=3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise RuleError(
                f'no rule is called "{rule}"; {hint}built-in rules: {", ".join(known)}; '
                f"a rule of your own is given as a file that ends in .toml"
            )
        return known[rule]
    return Path(rule)


def _read(file: Path) -> Rule:
    try:
        data = parse_toml(read_regular(file))
    except FileNotFoundError as error:
        raise RuleError(
            f"{file}: no such rule file; give a TOML file or one of the built-in rules: "
            f"{', '.join(builtin_rules())}"
        ) from error
    except OSError as error:
        raise RuleError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RuleError(f"{file}: not a text file in UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise RuleError(f"{file}: not valid TOML: {error}") from error
    try:
        return Rule.model_validate(data)
    except ValidationError as error:
        lines = explain(error, data).splitlines()
        raise RuleError("\n".join(f"{file}: {line}" for line in lines)) from error
