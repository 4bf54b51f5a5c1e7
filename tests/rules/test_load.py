"""Built-in rules, files of rules, and what is said about wrong ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from ksurgeon.errors import RuleError
from ksurgeon.kmatrix.structures import GroupedKaleidoscope, Kaleidoscope
from ksurgeon.rules import Insertion, Replacement, Rule, builtin_rules, data_folder, load_rule

GOOD = 'schema = 1\nname = "my"\n[[replace]]\nfind = "linear"\nwith = { structure = "kaleidoscope" }\n'
INSERT = 'name = "my"\n[[insert]]\nbefore = ["conv"]\ndim = 1\nwith = { structure = "kaleidoscope" }\n'
SHUFFLE = GOOD.replace('"linear"', '"channel_shuffle"')


def test_built_in_rules_are_named_like_their_files_and_summarised():
    assert list(builtin_rules()) == [
        "decoder",
        "filterbank",
        "linear",
        "low_rank",
        "permutation",
        "pointwise",
        "shuffle",
        "transform",
    ]
    for name in builtin_rules():
        rule = load_rule(name)
        assert rule.name == name and rule.summary
        assert Rule.model_validate_json(rule.model_dump_json()) == rule


def test_shuffle_rule():
    exact, grouped = load_rule("shuffle").replace
    assert (exact.find, exact.start, exact.structure) == ("channel_shuffle", "exact", Kaleidoscope())
    assert (grouped.find, grouped.start, grouped.structure) == (
        "pointwise_conv",
        "fit",
        GroupedKaleidoscope(groups=4),
    )
    assert grouped.unless_found == "channel_shuffle" and grouped.where.in_features == ">= 64"


def test_recipes_are_found_where_rules_are():
    assert (data_folder("recipes") / "README.md").is_file()


def test_a_rule_is_given_as_name_file_or_object(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(GOOD)
    rule = load_rule(file)
    assert load_rule(str(file)) == rule and load_rule(rule) is rule
    assert rule == Rule(name="my", replace=(Replacement(find="linear", structure=Kaleidoscope()),))
    assert rule.replace[0].start == "fit"


def test_insertions(tmp_path):
    (tmp_path / "my.toml").write_text(GOOD + INSERT.partition("\n")[2])
    rule = load_rule(tmp_path / "my.toml")
    part = Insertion(before=("conv",), dim=1, structure=Kaleidoscope())
    assert rule.insert == (part,) and rule.parts == (*rule.replace, part)
    assert (part.start, part.place, part.targets) == ("identity", "before", ("conv",))
    assert Rule.model_validate_json(rule.model_dump_json()) == rule


def test_start_left_out_is_exact_for_a_shuffle(tmp_path):
    (tmp_path / "my.toml").write_text(SHUFFLE)
    assert load_rule(tmp_path / "my.toml").replace[0].start == "exact"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD.replace("with =", "whit ="),
            ['replace[1].whit: unknown key; did you mean "with"? allowed: find, '],
        ),
        (GOOD.replace("name", "nmae"), ['nmae: unknown key; did you mean "name"? allowed: schema, name, ']),
        (GOOD + "zzz = 1\n", ["replace[1].zzz: unknown key; allowed: find"]),
        (
            GOOD + "where = { in_featurs = 3 }\n",
            ['where.in_featurs: unknown key; did you mean "in_features"?'],
        ),
        (GOOD + 'where = { groups = "~3" }\n', ["replace[1].where.groups: expected", "got '~3'"]),
        (GOOD + "where = { groups = true }\n", ["replace[1].where.groups: expected", "got True"]),
        (
            GOOD.replace("scope", "scop"),
            ['replace[1].with.structure: there is no structure "kaleidoscop"; did you mean "kaleidoscope"?'],
        ),
        (GOOD.replace('" }', '", wdith = 2 }'), ['with.wdith: unknown key; did you mean "width"?']),
        (
            GOOD.replace('" }', '", radix = 1 }'),
            ['replace[1].with.radix: should be "auto", an integer of at least 2', "got 1"],
        ),
        (
            GOOD.replace('"linear"', '"linaer"'),
            ['find: no kind of site is called "linaer"; did you mean "linear"? there are linear, '],
        ),
        (GOOD.replace("kaleidoscope", "low_rank"), ["replace[1].with: give rank or share, one of them"]),
        (
            GOOD.replace('scope" }', 'scope+low_rank", rank = 2 }').replace('"linear"', '"permutation"'),
            ['replace[1]: structure = "kaleidoscope+low_rank" is for trained weights'],
        ),
        (GOOD + 'start = "ft"\n', ["replace[1].start: allowed: 'exact', 'fit', ", "got 'ft'"]),
        (GOOD + 'start = "exact"\n', ['replace[1]: start = "exact" needs', '"linear"', '"fit"']),
        (SHUFFLE.replace("kal", "grouped_kal") + 'start = "exact"', ["is known for structure"]),
        (GOOD + 'targets = "fc"\n', ["replace[1].targets: expected a list, got 'fc'"]),
        (GOOD + 'ignore = ["a", "re:("]\n', ["replace[1].ignore[2]: not a regular expression"]),
        (GOOD.replace("schema = 1", "schema = 2"), ["schema: allowed: 1, got 2"]),
        ('name = "my"\nreplace = []\n', ["my.toml: a rule needs at least one [[replace]] or [[insert]]"]),
        (INSERT + 'after = ["fc"]\n', ["insert[1]: give one of before and after"]),
        (INSERT.replace("dim", "dmi"), ['insert[1].dmi: unknown key; did you mean "dim"? allowed: before, ']),
        (INSERT + 'start = "fit"\n', ["insert[1].start: allowed: 'identity', 'orthogonal', 'random' or"]),
        (INSERT + "grid = [8, 8]\n", ['insert[1]: a grid goes with start = "geometry", not "identity"']),
        (INSERT + 'start = "geometry"\ngrid = [8, 2]\n', ["insert[1].grid[2]: ", "3, got 2"]),
        (INSERT + 'start = "geometry"\ngrid = [3, 3, 3]\n', ["insert[1].grid: "]),
        (INSERT.replace("kaleido", "grouped_kaleido") + 'start = "geometry"\n', ["is a permutation, which"]),
        (GOOD + 'start = "geometry"\n', ["replace[1].start: allowed: 'exact', "]),
        (INSERT.replace("scope", "scope+low_rank").replace('" }', '", rank = 2 }'), ["cannot be inserted"]),
        ("name = \n", ["not valid TOML", "line 1"]),
        (b"\xff\xff", ["not a text file in UTF-8"]),
    ],
)
def test_mistakes_are_named_with_file_key_and_what_is_allowed(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RuleError) as caught:
        load_rule("my.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1, "one mistake, one line"
    assert lines[0].startswith("my.toml: ")
    for part in expected:
        assert part in lines[0]


def test_several_mistakes_are_told_together(tmp_path):
    (tmp_path / "my.toml").write_text(GOOD + 'start = "ft"\nwhere = { groups = "x" }\n')
    with pytest.raises(RuleError) as caught:
        load_rule(tmp_path / "my.toml")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            "linaer",
            'no rule is called "linaer"; did you mean linear? built-in rules: decoder, '
            "filterbank, linear, low_rank, permutation, pointwise, shuffle, transform",
        ),
        ("zzz", 'no rule is called "zzz"; built-in rules'),
        ("no/such", "no such rule file"),
        ("no-such.toml", "no such rule file"),
        (".", "cannot be read"),
    ],
)
def test_unknown_rules(tmp_path, monkeypatch, rule, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuleError) as caught:
        load_rule(Path(rule) if rule == "." else rule)
    assert expected in str(caught.value)


def test_rules_are_listed_without_torch():
    code = "import sys, ksurgeon.rules as r; r.load_rule('shuffle'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
