import inspect
import pickle

import pytest
from pydantic import TypeAdapter, ValidationError

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.structures import (
    Butterfly,
    Chain,
    Dense,
    GroupedKaleidoscope,
    Kaleidoscope,
    LowRank,
    Monarch,
    Structure,
    Sum,
)
from ksurgeon.patterns.pattern import Pattern, check_chain, kaleidoscope_patterns

ANY = TypeAdapter(Structure)


@pytest.mark.parametrize(
    "structure",
    [
        Kaleidoscope(),
        Kaleidoscope(width=2, expansion=3, radix=(2, 3, 4)),
        GroupedKaleidoscope(groups=8, radix=2),
        Chain(factors=((2, 3, 4, 1), (1, 5, 6, 1))),
        LowRank(rank=3),
        LowRank(share=0.25),
        Monarch(),
        Monarch(blocks=2, block_rank=3),
        Monarch(share=0.3),
        Sum(Kaleidoscope(width=2, radix=(2, 3)), rank=4),
        Sum(Monarch(blocks=8), share=0.5),
        Sum(Chain(factors=((2, 3, 4, 1), (1, 5, 6, 1))), rank=1),
    ],
)
def test_json_round_trip(structure):
    assert ANY.validate_json(ANY.dump_json(structure)) == structure
    assert str(structure)


def test_lists_from_toml_become_radices():
    assert ANY.validate_python({"structure": "kaleidoscope", "radix": [2, 3]}).radix == (2, 3)


@pytest.mark.parametrize(
    "values",
    [
        {"structure": "kaleidoskope"},
        {"structure": "kaleidoscope", "widht": 1},
        {"structure": "kaleidoscope", "width": 0},
        {"structure": "kaleidoscope", "radix": 1},
        {"structure": "kaleidoscope", "radix": []},
        {"structure": "kaleidoscope", "radix": "outo"},
        {"structure": "grouped_kaleidoscope", "groups": 0},
        {"structure": "chain", "factors": []},
        {"structure": "low_rank"},
        {"structure": "low_rank", "rank": 2, "share": 0.5},
        {"structure": "low_rank", "rank": 0},
        {"structure": "low_rank", "share": 1.5},
        {"structure": "monarch", "blocks": 1},
        {"structure": "monarch", "block_rank": 2, "share": 0.5},
        {"structure": "kaleidoscope+low_rank", "width": 1},
        {"structure": "monarch+low_rank", "share": 0.0},
    ],
)
def test_values_that_mean_nothing(values):
    with pytest.raises(ValidationError):
        ANY.validate_python(values)


def test_kaleidoscope_of_a_square_size():
    assert Kaleidoscope(radix=(2, 3)).patterns(6, 6) == kaleidoscope_patterns((2, 3), 1)


@pytest.mark.parametrize("sizes", [(24, 96), (96, 24), (37, 100), (100, 37), (1, 7), (5, 1)])
@pytest.mark.parametrize("width", [1, 2])
def test_rectangular_kaleidoscope_reaches_both_sizes(sizes, width):
    chain = check_chain(Kaleidoscope(width=width).patterns(*sizes))
    assert chain[0].in_features >= sizes[0]
    assert chain[-1].out_features >= sizes[1]
    assert sum(p.b != p.c for p in chain) <= 1


def test_grouped_kaleidoscope_is_a_grouped_map_and_a_square_one():
    first, *rest = GroupedKaleidoscope(groups=4).patterns(64, 128)
    assert first == (4, 32, 16, 1)
    assert tuple(rest) == Kaleidoscope().patterns(128, 128)


def test_groups_that_do_not_divide():
    with pytest.raises(StructureError, match="4 groups do not divide 64 → 126"):
        GroupedKaleidoscope(groups=4).patterns(64, 126)


@pytest.mark.parametrize(
    "structure", [GroupedKaleidoscope(groups=2), GroupedKaleidoscope(expansion=2, groups=2)]
)
def test_grouped_kaleidoscope_cannot_be_padded(structure):
    with pytest.raises(StructureError, match="needs padding to"):
        structure.patterns(64, 244)


def test_a_chain_that_is_too_small():
    with pytest.raises(StructureError, match="maps 8 → 15, too small for 8 → 16"):
        Chain(factors=((2, 3, 4, 1), (1, 15, 6, 1))).patterns(8, 16)


def test_a_chain_that_does_not_compose():
    with pytest.raises(StructureError, match="do not compose"):
        Chain(factors=((2, 3, 4, 1), (1, 15, 7, 1))).patterns(8, 15)


@pytest.mark.parametrize("sizes", [(384, 384), (384, 1536), (1536, 384), (50, 70)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("kind", ["low_rank", "monarch", "kaleidoscope+low_rank", "monarch+low_rank"])
def test_a_share_is_kept_and_used_up(kind, share, sizes):
    options = {"blocks": 4, "block_rank": 1} if kind == "monarch+low_rank" else {}
    made = ANY.validate_python({"structure": kind, "share": share, **options})
    budget = share * sizes[0] * sizes[1]
    rank_of_one = (4 if kind == "monarch" else 1) * (sizes[0] + sizes[1] + 8)
    if kind == "kaleidoscope+low_rank" and share == 0.25 and sizes == (50, 70):
        with pytest.raises(StructureError, match=r"of which the chain .* leaves"):
            made.parameters(*sizes)
    else:
        assert budget - rank_of_one < made.parameters(*sizes) <= budget


def test_a_monarch_of_sizes_that_its_blocks_divide_is_not_padded():
    first, last = Monarch(blocks=4).patterns(384, 1536)
    assert (first, last) == ((4, 96, 96, 1), (1, 384, 96, 4))
    assert first.in_features == 384 and last.out_features == 1536
    assert Monarch(blocks=16).patterns(256, 256) == ((16, 16, 16, 1), (1, 16, 16, 16))


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (LowRank(rank=65), "rank 65 for 64 → 128; it can be 64 at most"),
        (Monarch(blocks=65), "65 blocks are too many for 64 → 128"),
        (Monarch(blocks=4, block_rank=17), "they can have rank 16 at most"),
        (Sum(Kaleidoscope(), rank=65), "rank 65"),
        (Sum(Kaleidoscope(), share=0.05), "of which the chain .* leaves"),
    ],
)
def test_ranks_that_the_sizes_do_not_have(structure, message):
    with pytest.raises(StructureError, match=message):
        structure.parameters(64, 128)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (Monarch(8), Monarch(blocks=8)),
        (LowRank(3), LowRank(rank=3)),
        (Kaleidoscope(2), Kaleidoscope(width=2)),
        (GroupedKaleidoscope(2), GroupedKaleidoscope(groups=2)),
        (Butterfly(2), Butterfly(radix=2)),
        (Chain(((1, 2, 3, 1),)), Chain(factors=((1, 2, 3, 1),))),
        (Kaleidoscope(2, radix=3) + LowRank(5), Sum(Kaleidoscope(width=2, radix=3), rank=5)),
        (LowRank(5) + Monarch(2, block_rank=1), Sum(Monarch(blocks=2, block_rank=1), rank=5)),
        (Chain(((1, 2, 3, 1),)) + LowRank(1), Sum(Chain(factors=((1, 2, 3, 1),)), rank=1)),
    ],
)
def test_structures_are_values(given, same):
    assert given == same and hash(given) == hash(same)
    assert given != Dense() and ANY.dump_json(given) == ANY.dump_json(same)
    assert eval(repr(given), {**globals(), "Pattern": Pattern}) == given
    assert pickle.loads(pickle.dumps(given)) == given


def test_what_they_take_is_in_their_signature():
    assert list(inspect.signature(Monarch).parameters) == ["blocks", "block_rank", "share"]
    assert inspect.signature(Monarch).parameters["blocks"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert next(iter(inspect.signature(GroupedKaleidoscope).parameters)) == "groups"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Monarch(block=4), "Monarch has no parameter block; did you mean blocks?"),
        (lambda: Dense(zzz=4), "there are none"),
        (lambda: Monarch(1), "blocks = 1: .* greater than or equal to 2"),
        (lambda: Monarch(4, 2), "takes blocks by position, and all else by name; got 2"),
        (lambda: Monarch(4, blocks=2), "blocks by position and by name"),
        (lambda: LowRank(), "give rank or share"),
        (lambda: Chain(), "Chain needs factors"),
        (lambda: Monarch() + LowRank(share=0.5), "give the low rank of a sum as a rank"),
        (lambda: Monarch(share=0.5) + LowRank(3), "a sum has no share"),
        (lambda: Kaleidoscope(parametrization="orthogonal") + LowRank(3), "no parametrization"),
    ],
)
def test_errors_say_what_is_allowed(make, message):
    with pytest.raises(StructureError, match=message):
        make()


def test_only_a_low_rank_is_added():
    with pytest.raises(TypeError, match="unsupported operand"):
        Monarch() + 3
    with pytest.raises(TypeError, match="unsupported operand"):
        Dense() + LowRank(3)
