"""Files with a byte order mark, as programs on Windows write them."""

import codecs

import pytest

from ksurgeon.recipes.schema import load_recipe
from ksurgeon.rules.files import read_plan
from ksurgeon.rules.load import load_rule
from ksurgeon.train.sources import open_source

RULE = '[[replace]]\nfind = "linear"\nwith = { structure = "kaleidoscope" }\nstart = "fit"\n'
MARKED = {
    "utf-8": (codecs.BOM_UTF8, "utf-8"),
    "utf-16-le": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "utf-16-be": (codecs.BOM_UTF16_BE, "utf-16-be"),
    "utf-32": (codecs.BOM_UTF32_LE, "utf-32-le"),
    "none": (b"", "utf-8"),
}


@pytest.fixture(params=MARKED)
def write(request, tmp_path):
    mark, encoding = MARKED[request.param]

    def write(name, text):
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "für den\nHund\n"),
        ("a.csv", "text,label\nfür den,1\nHund,0\n"),
        ("a.tsv", "text\tlabel\nfür den\t1\nHund\t0\n"),
        ("a.jsonl", '{"text": "für den"}\n{"text": "Hund"}\n'),
    ],
)
def test_data(name, text, write):
    source = open_source(write(name, text))
    assert [source.read(number).value for number in range(len(source))] == ["für den", "Hund"]


def test_rules_plans_and_recipes(write):
    head = 'schema = 1\nname = "mine"\nsummary = "für uns"\n'
    assert load_rule(write("rule.toml", head + RULE)).name == "mine"
    plan = 'schema = 1\nrule = "für uns"\ndecisions = []\n'
    assert read_plan(write("plan.toml", plan)).rule == "für uns"
    recipe = head + '[model]\nname = "resnet18"\n[[variants]]\nname = "same"\n'
    assert load_recipe(write("recipe.toml", recipe)).summary == "für uns"
