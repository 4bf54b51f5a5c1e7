import pytest
from pydantic import TypeAdapter, ValidationError

from ksurgeon.errors import StructureError
from ksurgeon.kmatrix.patterns import check_chain, kaleidoscope_patterns
from ksurgeon.kmatrix.structures import Chain, GroupedKaleidoscope, Kaleidoscope, Structure

ANY = TypeAdapter(Structure)


@pytest.mark.parametrize(
    "structure",
    [
        Kaleidoscope(),
        Kaleidoscope(width=2, expansion=3, radix=(2, 3, 4)),
        GroupedKaleidoscope(groups=8, radix=2),
        Chain(factors=((2, 3, 4, 1), (1, 5, 6, 1))),
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
