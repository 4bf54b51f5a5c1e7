import pytest
import torch

import ksurgeon
from ksurgeon import plugins
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank, Structure, Sum, registry
from ksurgeon.kmatrix.structures.reading import keys_of, read_structure, structure_names
from ksurgeon.kmatrix.structures.sums import Summable
from ksurgeon.patterns.pattern import Pattern


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


def register(name="block_diagonal", base=Summable):
    @ksurgeon.register_structure(name)
    class BlockDiagonal(base):
        blocks: int = 4

        def patterns(self, in_features, out_features):
            return (Pattern(self.blocks, out_features // self.blocks, in_features // self.blocks, 1),)

    return BlockDiagonal


def test_a_chain_of_ones_own_has_what_chains_have():
    cls = register()
    assert cls() == cls(blocks=4) and hash(cls()) == hash(cls(blocks=4)) and cls() != cls(blocks=2)
    assert repr(cls(blocks=2)) == "BlockDiagonal(blocks=2)"
    assert read_structure({"structure": "block_diagonal", "blocks": 2}) == cls(blocks=2)
    assert "block_diagonal+low_rank" in structure_names()
    both = read_structure({"structure": "block_diagonal+low_rank", "blocks": 2, "rank": 3})
    assert both == cls(blocks=2) + LowRank(3) and both.to_dict()["structure"] == both.structure
    dense = torch.block_diag(torch.randn(8, 8), torch.randn(8, 8))
    fitted = ksurgeon.KMatrix.from_dense(dense, structure=cls(blocks=2))
    torch.testing.assert_close(fitted.to_dense().detach(), dense, rtol=1e-4, atol=1e-4)


def test_values_are_checked_against_plain_annotations():
    cls = register()
    with pytest.raises(ksurgeon.StructureError, match="blocks = 'four': should be an integer"):
        cls(blocks="four")
    with pytest.raises(ksurgeon.StructureError, match="no parameter block; did you mean blocks"):
        cls(block=4)
    assert keys_of("block_diagonal") == ["structure", "blocks"]


def test_a_name_is_given_once():
    register()
    register()  # the same class, of a module that is run again
    with pytest.raises(ksurgeon.StructureError, match=r"is .*chains\.Kaleidoscope already"):
        register("kaleidoscope")
    with pytest.raises(ksurgeon.StructureError, match=r'"\+" is for sums'):
        register("a+b")
    with pytest.raises(ksurgeon.StructureError, match="needs a subclass of Structure"):
        ksurgeon.register_structure("x")(int)


def test_a_structure_without_patterns_or_matrix_says_so():
    with pytest.raises(ksurgeon.StructureError, match="is no chain of factors"):
        ksurgeon.KLinear(
            8, 8, structure=ksurgeon.register_structure("empty")(type("Empty", (Structure,), {}))()
        )


def test_only_chains_are_summed():
    with pytest.raises(ksurgeon.StructureError, match="a low rank is added to a chain"):
        Sum(ksurgeon.Dense(), rank=2)
    with pytest.raises(ksurgeon.StructureError, match="no parametrization of its chain"):
        Sum(Kaleidoscope(parametrization="orthogonal"), rank=2)


class Point:
    dist, value = None, "broken_package.module"
    name = "broken"

    def load(self):
        raise ImportError("no module named numpie")


def test_a_package_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()])
    monkeypatch.setattr(plugins, "_failed", {})
    message = r'no structure "monarc"; did you mean "monarch".*broken failed .*numpie'
    with (
        pytest.warns(UserWarning, match=r"the package broken_package\.module .* cannot be used"),
        pytest.raises(ksurgeon.StructureError, match=message),
    ):
        registry.structure_class("monarc")
    assert registry.structure_class("monarch") is ksurgeon.Monarch


def test_descent_fits_what_has_no_fit_of_its_own():
    class Scaled(ksurgeon.StructuredMatrix):
        def __init__(self, in_features, out_features, structure):
            super().__init__(in_features, out_features, structure)
            self.scale = torch.nn.Parameter(torch.ones(out_features))

        def forward(self, x, dim=-1):
            return (x.movedim(dim, -1) * self.scale).movedim(-1, dim)

    @ksurgeon.register_structure("diagonal")
    class Diagonal(Structure):
        def new_matrix(self, in_features, out_features, **options):
            return Scaled(in_features, out_features, self)

        def multiplications(self, in_features, out_features):
            return out_features

    torch.manual_seed(0)
    weight, root = torch.randn(6, 6), torch.randn(6, 6)
    layer = torch.nn.Linear(6, 6)
    layer.weight.data = weight
    x = torch.randn(500, 6) @ root
    fitted = ksurgeon.KLinear.from_linear(layer, Diagonal(), data=x)
    moment = torch.cov((x - x.mean(0)).double().T, correction=0)
    expected = (weight.double() @ moment).diagonal() / moment.diagonal()  # of least squares, row by row
    torch.testing.assert_close(fitted.matrix.scale.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_conversion_in_inference_mode_fits_by_descent():
    class Scaled(ksurgeon.StructuredMatrix):
        def __init__(self, size, structure):
            super().__init__(size, size, structure)
            self.scale = torch.nn.Parameter(torch.ones(size))

        def forward(self, x, dim=-1):
            return (x.movedim(dim, -1) * self.scale).movedim(-1, dim)

    @ksurgeon.register_structure("scaled")
    class Scaling(Structure):
        def new_matrix(self, in_features, out_features, **options):
            return Scaled(in_features, self)

        def multiplications(self, in_features, out_features):
            return out_features

    layer = torch.nn.Linear(6, 6)
    with torch.inference_mode():
        fitted = ksurgeon.KLinear.from_linear(layer, Scaling())
    torch.testing.assert_close(fitted.matrix.scale.detach(), layer.weight.diagonal(), rtol=1e-4, atol=1e-5)


def test_numbers_of_numpy_and_torch_are_numbers():
    import numpy as np

    assert ksurgeon.Monarch(np.int64(8)) == ksurgeon.Monarch(8.0) == ksurgeon.Monarch(8)
    assert ksurgeon.LowRank(share=np.float32(0.5)) == LowRank(share=0.5)
    assert Kaleidoscope(radix=np.array([4, 8])) == Kaleidoscope(radix=torch.tensor([4, 8]))
    for wrong in (4.5, True, "4"):
        with pytest.raises(ksurgeon.StructureError, match="should be an integer"):
            ksurgeon.Monarch(wrong)


def test_pickles_of_the_time_of_pydantic_are_what_they_were():
    old = object.__new__(ksurgeon.Monarch)
    values = {"structure": "monarch", "blocks": 8, "block_rank": 2, "share": None}
    old.__setstate__({"__dict__": values, "__pydantic_fields_set__": set(), "__pydantic_private__": None})
    assert old == ksurgeon.Monarch(8, block_rank=2) and old.structure == "monarch"


def test_mistakes_with_sums_and_names():
    for make in (
        lambda: Sum(),
        lambda: Sum(ksurgeon.Monarch(4), 2, 3, 4),
        lambda: Sum(Kaleidoscope(), rnk=2),
    ):
        with pytest.raises(ksurgeon.StructureError, match="Sum "):
            make()

    class Mine(ksurgeon.Monarch):
        pass

    with pytest.raises(ksurgeon.StructureError, match="Mine has no name of its own"):
        Mine(4).to_dict()


def test_what_a_package_loads_is_there_for_all_threads(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    class Slow(Point):
        name = "slow"

        def load(self):
            sleep(0.2)
            register("slow")

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Slow()])
    monkeypatch.setattr(plugins, "_failed", {})
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(registry.structure_class, ["slow"] * 4))) == 1
