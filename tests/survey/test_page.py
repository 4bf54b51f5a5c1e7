"""The page that a survey writes."""

import pytest

from tools.survey import models, page, summary
from tools.survey.page import share
from tools.survey.result import Result, Trip

RESULTS = [
    Result(
        library="timm",
        name="vit",
        state="analysed",
        seconds=1.26,
        kinds={"linear": 3, "channel_shuffle": 1},
        traced=9_999,
        failures={"Head: depends on *values*": 1},
        linear=20_000,
        listed=19_999,
        replaceable=10_000,
        missed=("head.weight",),
        reasons={
            "it has size 2: there is nothing to structure": 1,
            "it has size 3: there is nothing to structure": 2,
        },
        trip=Trip(replaced=3, generated=6, steady=False),
    ),
    Result(library="timm", name="absent", state="not installed", reason="requires the natten library"),
    Result(library="transformers", name="fails", state="failed", reason="killed by SIGSEGV"),
    Result(library="transformers", name="other", state="analysed", trip=Trip(failed="load: other outputs")),
]


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1, 1, "100.00%"),
        (99_999, 100_000, "99.99%"),
        (10**9 - 1, 10**9, "99.99%"),
        (1, 3, "33.33%"),
        (29, 100, "29.00%"),
        (1, 20, "5.00%"),
        (0, 7, "0.00%"),
        (0, 0, "–"),
    ],
)
def test_shares_are_rounded_down(part, whole, text):
    assert share(part, whole) == text


def test_the_summary_counts_what_can_be_built():
    timm, transformers = summary(RESULTS).splitlines()[2:]
    cells = [cell.strip() for cell in timm.strip("|").split("|")]
    assert cells[1].startswith("2 of ")
    assert cells[2:] == ["1", "1, 100.00%", "99.99% of 10000", "99.99%", "50.00%", "1 models"]
    assert "| 0 | 1, 50.00% | – of 0 |" in transformers


def test_the_page_tells_what_is_left_and_why():
    text = page(RESULTS)
    for line in (
        "- timm vit: `head.weight`",
        "- 3: it has size : there is nothing to structure",
        "- 1: Head: depends on \\*values\\*",
        "- timm absent: not installed: requires the natten library",
        "- transformers fails: failed: killed by SIGSEGV",
        "- transformers other: load: other outputs",
        "| library | channel_shuffle | linear |",
        "| timm | 1 | 3 |",
    ):
        assert line in text.splitlines()
    assert "1 of 2 models passed" in text and "(1 models generate)" in text
    assert "1 amplify rounding" in text and "[coverage.csv](coverage.csv)" in text
    assert text.endswith("\n") and "\n\n\n" not in text


def test_every_model_is_in_a_file_beside_the_page():
    assert models(RESULTS).splitlines() == [
        "library,model,traced,not traced,channel_shuffle,linear,seconds",
        "timm,vit,9999,1,1,3,1.3",
        "transformers,other,0,0,0,0,0.0",
    ]
