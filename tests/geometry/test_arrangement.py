import numpy as np
import pytest
import torch

from ksurgeon import KMatrix, find_arrangement, neighbour_share
from ksurgeon.errors import DataError, StructureError
from ksurgeon.geometry import arrangement_from_moments
from ksurgeon.geometry.embedding import embedded, grid, neighbours
from ksurgeon.geometry.refine import Refiner, assigned, move_costs


def correlations(shape, length=5.0):
    places = grid(shape)
    return np.exp(-np.sqrt(((places[:, None] - places) ** 2).sum(-1)) / length)


def field(shape, examples, seed=0):
    """Samples of a Gaussian random field."""
    root = torch.from_numpy(np.linalg.cholesky(correlations(shape)))
    random = torch.Generator().manual_seed(seed)
    return torch.randn(examples, len(root), generator=random, dtype=torch.float64) @ root.mT


def shuffled(data, seed=0):
    truth = torch.randperm(data.shape[-1], generator=torch.Generator().manual_seed(seed))
    return data[..., truth], truth


@pytest.mark.parametrize("shape", [(16, 16), (9, 14), (14, 9), (3, 20), (50,)])
def test_a_shuffled_field_is_put_in_order(shape):
    data, truth = shuffled(field(shape, 2000))
    permutation = find_arrangement(data, shape)
    assert neighbour_share(permutation, truth, shape) == 1
    arranged = truth[permutation].view(shape)
    symmetries = [arranged.flip(dims) for dims in ([], [0], [len(shape) - 1], list(range(len(shape))))]
    symmetries += [symmetry.mT for symmetry in symmetries if arranged.dim() == 2]
    assert any(torch.equal(s.flatten(), torch.arange(len(truth))) for s in symmetries)
    assert torch.equal(KMatrix.from_permutation(permutation)(data.float()), data.float()[:, permutation])


def test_a_field_whose_spread_and_scale_differ_from_place_to_place():
    shape = (12, 12)
    places = torch.from_numpy(grid(shape))
    data, truth = shuffled(field(shape, 3000) * (1 + places[:, 0]) + 100 * places[:, 1])
    assert neighbour_share(find_arrangement(data, shape), truth, shape) == 1


def test_noise_and_few_examples():
    shape = (12, 12)
    data, truth = shuffled(field(shape, 20000))
    noisy = data + torch.randn(data.shape, generator=torch.Generator().manual_seed(1))
    assert neighbour_share(find_arrangement(noisy, shape), truth, shape) >= 0.95
    assert neighbour_share(find_arrangement(data[:500], shape), truth, shape) >= 0.95


def test_channels_are_shuffled_alike():
    shape = (8, 8)
    data, truth = shuffled(torch.stack([field(shape, 1000, 0), 50 - 3 * field(shape, 1000, 1)], 1))
    assert neighbour_share(find_arrangement(data, shape), truth, shape) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_other_dtypes(dtype):
    data, truth = shuffled((field((8, 8), 3000) * 20 + 128).clip(0, 255).to(dtype))
    before = data.clone()
    assert neighbour_share(find_arrangement(data, (8, 8)), truth, (8, 8)) == 1
    assert torch.equal(data, before)


def test_the_same_data_give_the_same_permutation_and_steps_are_told():
    data, _ = shuffled(field((8, 8), 500))
    steps = []
    torch.manual_seed(1)
    first = find_arrangement(data, [8, 8], progress=lambda *step: steps.append(step))
    torch.manual_seed(2)
    assert torch.equal(first, find_arrangement(data, (8, 8)))
    assert first.dtype == torch.int64 and first.sort().values.tolist() == list(range(64))
    assert steps[0][:2] == (0, 5) and steps[-1] == (5, 5, "")
    assert [done for done, *_ in steps] == sorted(done for done, *_ in steps)


@pytest.mark.parametrize("distinct", [1, 8, 16])
def test_data_without_geometry_give_some_permutation(distinct):
    random = torch.Generator().manual_seed(0)
    data = torch.randn(200, distinct, generator=random).repeat(1, 16 // distinct)
    assert find_arrangement(data, (4, 4)).sort().values.tolist() == list(range(16))


def test_the_share_of_neighbours():
    shape = (4, 6)
    truth = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    back = truth.argsort().view(shape)
    for same in (back, back.flip(0), back.flip(1), back.flip(0, 1)):
        assert neighbour_share(same.flatten(), truth, shape) == 1
    swapped = back.clone()
    swapped[1, 1], swapped[1, 2] = back[1, 2], back[1, 1]  # of seven pairs with either, one stays
    assert neighbour_share(swapped.flatten(), truth, shape) == pytest.approx(1 - 6 / 38)
    assert neighbour_share([0, 2, 1, 3], range(4), (4,)) == pytest.approx(1 / 3)
    with pytest.raises(StructureError, match="the matrix has 24 entries, the permutation 23"):
        neighbour_share(truth[:23], truth, shape)


def test_bad_data_are_refused():
    good = field((8, 8), 200)
    with pytest.raises(DataError, match="99 examples"):
        find_arrangement(good[:99], (8, 8))
    for value in (torch.nan, torch.inf):
        bad = good.clone()
        bad[150, 3] = value
        with pytest.raises(DataError, match="example 150 holds NaN"):
            find_arrangement(bad, (8, 8))
    bad = good.clone()
    bad[:, 7] = bad[:, 9] = 0.1
    with pytest.raises(DataError, match="2 entries are constant, the first is 7"):
        find_arrangement(bad, (8, 8))
    for shape in ((8, 7), (64, 1), (4, 4, 4), ()):
        with pytest.raises(StructureError, match="no grid of shape"):
            find_arrangement(good, shape)
    for data in (good[0], good[None, None], good.to(torch.complex64)):
        with pytest.raises(StructureError, match=r"\(examples, entries\)"):
            find_arrangement(data, (8, 8))


@pytest.mark.parametrize("shape", [(7, 5), (12,)])
def test_neighbours_and_embedding_of_a_grid(shape):
    places = grid(shape)
    beside = np.abs(places[:, None] - places).sum(-1) == 1
    # precision of a Gaussian Markov random field
    covariance = np.linalg.inv(np.diag(beside.sum(1) + 0.1) - beside)
    scale = np.sqrt(covariance.diagonal())
    found = neighbours(covariance / scale[:, None] / scale, 2 * len(shape), 1e-9)
    assert found[beside].all() and (found == found.T).all()
    positions = embedded(beside, shape)
    order = np.argsort(assigned(((positions[:, None] - places) ** 2).sum(-1)))
    assert neighbour_share(order, range(len(places)), shape) == 1


def test_costs_tell_what_a_swap_changes():
    random = np.random.default_rng(0)
    actual, expected, weights = (m + m.T for m in random.random((3, 6, 6)))
    np.fill_diagonal(actual, 0)
    np.fill_diagonal(weights, 0)
    costs = move_costs(actual, expected, weights)
    for a, p in ((0, 1), (2, 5)):
        order = np.arange(6)
        order[[a, p]] = p, a
        change = weights * ((actual[order][:, order] - expected) ** 2 - (actual - expected) ** 2)
        gain = costs[a, p] + costs[p, a] - costs[a, a] - costs[p, p]
        np.testing.assert_allclose(gain, change.sum() / 2, atol=1e-12)


@pytest.mark.parametrize("shape", [(9,), (4, 5)])
def test_expected_distances_are_means_over_moved_pairs(shape):
    random = np.random.default_rng(0)
    n = int(np.prod(shape))
    actual = random.random((n, n))
    expected = Refiner(actual, shape)._expected(actual)
    places, widths = grid(shape), np.maximum(np.array(shape) / 8, 1.5)
    for first, second in ((0, 0), (0, n - 1), (3, 5)):
        total = weights = 0.0
        for p in range(n):
            move = places[p] - places[first]
            other = np.flatnonzero((places == places[second] + move).all(1))
            if len(other) and (np.abs(move) <= 3 * widths).all():
                weight = np.exp(-((move / widths) ** 2).sum() / 2)
                total, weights = total + weight * actual[p, other[0]], weights + weight
        assert expected[first, second] == pytest.approx(total / weights, rel=1e-9)


def test_refinement_mends_an_arrangement():
    shape = (10, 10)
    distances = np.log((1 - correlations(shape)).clip(1e-6))
    np.fill_diagonal(distances, 0)
    refiner = Refiner(distances, shape)
    right = np.arange(100)
    broken = right.copy()
    broken[[11, 47, 62, 88, 3]] = broken[[47, 62, 88, 3, 11]]
    mended = refiner.refine(broken, 2.0)
    assert (mended == right).all() and refiner.loss(mended) < refiner.loss(broken)
    assert (refiner.refine(right, 2.0) == right).all()
    broken = right.copy()
    broken[[40, 41]] = 41, 40
    assert (refiner.mend(broken) == right).all()


def test_a_part_of_a_line_is_turned_round():
    distances = np.log((1 - correlations((30,))).clip(1e-6))
    np.fill_diagonal(distances, 0)
    broken = np.arange(30)
    broken[4:22] = broken[4:22][::-1]
    assert (Refiner(distances, (30,)).mend(broken) == np.arange(30)).all()


@pytest.mark.parametrize("scale", [1e-170, 1e200])
def test_neither_type_nor_scale_of_the_data_matters(scale):
    data, _ = shuffled(field((9,), 1000))
    expected = find_arrangement(data, (9,))
    assert torch.equal(find_arrangement((data.double() * scale).numpy().astype(">f8"), np.int64(9)), expected)


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ([[1.0] * 9] * 200, 9, "a tensor or an array of NumPy with numbers; got list"),
        (np.full((200, 9), "a"), 9, "got an array of <U1"),
        (torch.rand(200, 9), 9.0, "one or two integers, such as"),
        (torch.rand(200, 9), (3.0, 3), r"got \(3.0, 3\)"),
    ],
)
def test_other_types_are_refused(data, shape, message):
    with pytest.raises(StructureError, match=message):
        find_arrangement(data, shape)


def test_moments_tell_the_same():
    data, _ = shuffled(50 + field((8, 8), 1000))
    moment, mean = data.mT @ data / len(data), data.mean(0)
    assert torch.equal(arrangement_from_moments(moment, mean, 1000, (8, 8)), find_arrangement(data, (8, 8)))
    with pytest.raises(StructureError, match="no grid of shape"):
        arrangement_from_moments(moment, mean, 1000, (8, 9))
    with pytest.raises(DataError, match="99 examples"):
        arrangement_from_moments(moment, mean, 99, (8, 8))
    data[:, 5] = 0.1
    with pytest.raises(DataError, match="1 entries are constant, the first is 5"):
        arrangement_from_moments(data.mT @ data / len(data), data.mean(0), 1000, (8, 8))
