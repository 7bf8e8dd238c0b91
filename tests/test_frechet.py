"Frechet and kernel distance of feature vectors, against other computations."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.linalg import sqrtm
from tokencompose.core import keyed_rng
from tokencompose.metrics.frechet import distance_of, frechet_distance, frechet_interval, kernel_distance
from tokencompose.metrics.frechet import kernel_distance_of, Moments


def gaussian(seed, features, rank):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rank, features))
    return rng.normal(size=features), mix.T @ mix/rank


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 15), st.integers(1, 15))
def test_distance_is_the_one_with_matrix_roots(seed, features, rank_a, rank_b):
    (mean_a, cov_a), (mean_b, cov_b) = gaussian(seed, features, rank_a), gaussian(seed + 1000, features, rank_b)
    ours, scale = frechet_distance(mean_a, cov_a, mean_b, cov_b), np.trace(cov_a) + np.trace(cov_b)
    assert ours == pytest.approx(frechet_distance(mean_b, cov_b, mean_a, cov_a), abs=1e-6*scale) and ours >= -1e-6*scale
    if min(rank_a, rank_b) >= features:                                             # scipy's root of a singular matrix is not to be trusted
        root = np.asarray(sqrtm(cov_a @ cov_b)).real
        assert ours == pytest.approx(((mean_a - mean_b)**2).sum() + np.trace(cov_a + cov_b - 2*root), abs=1e-6*scale)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(2, 60), st.data())
def test_statistics_do_not_depend_on_portions(seed, n, data):
    x = np.random.default_rng(seed).normal(size=(n, 4))*[1, 10, .1, 1] + [0, 1e4, -5, 1]
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    parts = [Moments(part) for part in np.split(x, cuts)]
    order = data.draw(st.permutations(range(len(parts))))
    total = Moments()
    for i in order: total.merge(parts[i])
    assert total.n == n
    np.testing.assert_allclose(total.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.cov, np.cov(x.T), rtol=1e-7, atol=1e-9)


def test_kernel_distance_is_that_of_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance
    class AsItIs(torch.nn.Module):
        def forward(self, pictures): return pictures.flatten(1)
    x, y = (np.random.default_rng(s).normal(size=(40, 6)) + s for s in (0, 1))
    theirs = KernelInceptionDistance(AsItIs(), subsets=2, subset_size=40, normalize=True).set_dtype(torch.float64)
    for values, real in ((x, True), (y, False)): theirs.update(torch.from_numpy(values).view(-1, 3, 1, 2), real=real)
    assert kernel_distance(x, y, subsets=2, size=40)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-5)


def test_intervals_hold_what_they_promise():
    "Sets of one size from two known Gaussians: how often the interval covers the mean distance at that size."
    def draw(seed):
        rng = np.random.default_rng(seed)
        return frechet_interval(rng.normal(size=(200, 3)), rng.normal(size=(200, 3))*1.2 + .5, range(200), 20)
    found = np.array([draw(s)[:3] for s in range(80)])
    expected = found[:, 0].mean()
    covered = ((found[:, 1] <= expected) & (expected <= found[:, 2])).mean()
    assert .85 <= covered <= 1


# ---- the distance

def test_distance_of_one_number_a_picture():
    assert frechet_distance([1.], [[4.]], [3.], [[9.]]) == pytest.approx((1 - 3)**2 + (2 - 3)**2)


def test_distance_where_some_directions_have_no_spread():
    flat = np.zeros((6, 6))
    flat[0, 0] = 4.
    assert frechet_distance(np.zeros(6), flat, np.zeros(6), np.eye(6)) == pytest.approx((2 - 1)**2 + 5)


def test_distance_to_itself():
    mean, cov = gaussian(0, 6, 6)
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-9)


def test_statistics_that_do_not_fit():
    with pytest.raises(ValueError, match='same features'): frechet_distance([1.], [[1.]], [1., 2.], np.eye(2))
    with pytest.raises(ValueError, match='not finite'): frechet_distance([1.], [[1.]], [float('nan')], [[1.]])


# ---- statistics of a set

X, Y = np.random.default_rng(0).normal(size=(200, 6)) + 100, np.random.default_rng(1).normal(size=(300, 6))*2 + 101


@pytest.mark.parametrize('portions', [[1]*200, [199, 1], [7]*28 + [4], [200]])
def test_portions_are_added_or_merged(portions):
    one, joined = Moments(), Moments()
    for part in np.split(X, np.cumsum(portions)[:-1]): one.add(part), joined.merge(Moments(part))
    for seen in (one, joined):
        assert seen.n == 200
        np.testing.assert_allclose(seen.mean, X.mean(0), atol=1e-9)
        np.testing.assert_allclose(seen.cov, np.cov(X.T), atol=1e-9)


def test_features_that_cannot_be():
    assert Moments().add(np.zeros((0, 4))).n == 0
    with pytest.raises(ValueError, match='two pictures'): Moments(X[:1]).cov
    with pytest.raises(ValueError, match='cannot join'): Moments(X).add(X[:, :3])
    with pytest.raises(ValueError, match='1 of 2 pictures are not finite'): Moments([[1., 2.], [3., float('inf')]])
    with pytest.raises(ValueError, match='expected .pictures, features.'): Moments([1., 2.])


# ---- the kernel distance

def test_kernel_distance_draws_subsets_by_its_seed():
    assert kernel_distance(X, Y) == kernel_distance(X, Y) != kernel_distance(X, Y, seed=1)
    assert kernel_distance(X, Y)[2] == 100                                                    # half of the smaller set


def test_kernel_distance_of_whole_sets():
    p, q = X[:5, :3], X[5:9, :3] + .5
    assert kernel_distance(p, p[:4], subsets=1, size=4)[1] == pytest.approx(0)                # one subset has no spread
    assert kernel_distance(q, q + 1, subsets=5, size=4) == pytest.approx((kernel_distance_of(q, q + 1), 0, 4), abs=1e-6)
    with pytest.raises(ValueError, match='expected 2 to 4'): kernel_distance(p, q, size=5)
    with pytest.raises(ValueError, match='two pictures'): kernel_distance_of(p[:1], q)


# ---- the interval

def pairs(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(300, 4)), rng.normal(size=(300, 4))*1.3 + .4


def test_interval_is_the_jackknife_of_its_formula():
    x, y = pairs(0)
    value, low, high, error, scores = frechet_interval(x, y, range(300), 15)
    assert value == pytest.approx(distance_of(Moments(x), Moments(y)))
    fold = np.empty(300, int)
    fold[keyed_rng(0, 'folds', 300).permutation(300)] = np.arange(300) % 15
    left = np.array([distance_of(*(Moments(side[fold != f]) for side in (x, y))) for f in range(15)])
    assert error == pytest.approx(np.sqrt(14/15*((left - left.mean())**2).sum()))
    assert (low, high) == pytest.approx((max(0., value - 1.96*error), value + 1.96*error))
    assert np.mean(list(scores.values())) == pytest.approx(value)


def test_interval_does_not_depend_on_the_order_of_pairs():
    (x, y), shuffled = pairs(0), np.random.default_rng(1).permutation(300)
    one, other = frechet_interval(x, y, range(300), 15), frechet_interval(x[shuffled], y[shuffled], shuffled.tolist(), 15)
    assert other[:4] == pytest.approx(one[:4])
    assert list(other.scores) == list(one.scores) and other.scores == pytest.approx(one.scores)


def test_two_groups_have_no_interval():
    found = frechet_interval(*pairs(0), [0]*150 + [1]*150)
    assert np.isnan([found.low, found.high, found.error]).all() and found.scores == {}
    with pytest.raises(ValueError, match='299 groups'): frechet_interval(*pairs(0), range(299))
