"""Regular expressions of targets match as Python's do, and never take long."""

import re
from random import Random

import pytest

from ksurgeon.errors import RuleError
from ksurgeon.rules import Rule, targets
from ksurgeon.rules.schema import matching
from ksurgeon.rules.targets import compile_target

EXPRESSIONS = [
    r"(\w+_?)+x", r".*a.*b.*c.*", r"(a|ab)*c", r"(?!.*b).*(.*)*c", r"((a|b|c)_b)+(\d+\.)*", r"(a?){5}b",
    r"(?i)(A|b)*c(.*)+", r"(a{2,3})*b?", r"([^.]+\.)+(\d+)", r"(?<=a)(b*)*", r"(?<!a)(b*)*c", r"(a{0})*b",
    r"(a*)*b|(b+)+$", r"^(a*)*\b.(.*)*", r"(a{2}){2,}(b|)*", r"(a*?b+?)*", r"(.{0,3}a){2,4}", r"(?s:(.)*)",
    r"(\Ba|b\b)*", r"\S*\d*[a-c]*[^\W\d]*", r"(|a)*(|b)*c?",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_bounded_matcher_agrees_with_python(expression, monkeypatch):
    monkeypatch.setattr(targets, "_FAST", 0)
    compile_target.cache_clear()
    random, ours, theirs = Random(0), compile_target(expression), re.compile(expression)
    for _ in range(300):
        letters = random.choice(("ab", "abc", "ab._\n", "abB_1.c"))
        name = "".join(random.choice(letters) for _ in range(random.randrange(9)))
        assert ours(name) == bool(theirs.fullmatch(name)), name
    compile_target.cache_clear()


@pytest.mark.parametrize(
    "expression",
    [
        r"(\w+_?)+x",
        r"(a|a)*x",
        r"((a*)*)*x",
        r"(a?){40}a{40}x",
        "a?" * 40 + "a" * 40,
        "(a|aa)" * 40 + "x",
        "(|)" * 40 + "x",
    ],
)
def test_no_expression_takes_for_ever(expression):
    assert matching((f"re:{expression}",), ("a" * 39, "a" * 60 + "!")) is None


@pytest.mark.parametrize(
    "expression",
    ["(", "(" * 3000, "a{99999999999999999999}", "x" * 2000, "(" * 30 + "a*" + ")*" * 30, r"(\w+)+\1"],
)
def test_other_expressions_are_refused(expression):
    with pytest.raises(ValueError, match="not a regular expression"):
        compile_target(expression)
    part = {"find": "linear", "targets": [f"re:{expression}"], "with": {"structure": "dense"}}
    with pytest.raises(ValueError, match="not a regular expression"):
        Rule(name="r", replace=[part])


def test_conditions_are_short_and_in_plain_digits():
    for condition in (">= " + "9" * 5000, ">= \u0663", 10**30):
        with pytest.raises(ValueError, match="comparison"):
            part = {"find": "linear", "where": {"in_features": condition}, "with": {"structure": "dense"}}
            Rule(name="r", replace=[part])


def test_a_rule_file_that_python_cannot_read_is_an_error_of_the_rule(tmp_path):
    from ksurgeon.rules import load_rule

    for text in ("schema = " + "9" * 5000, "a = " + "[" * 5000, "schema = 0x" + "f" * 5000):
        (tmp_path / "rule.toml").write_text(text)
        with pytest.raises(RuleError, match="not valid TOML"):
            load_rule(tmp_path / "rule.toml")
