"""Intervals against what can be counted or looked up, and what is refused."""
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from scipy.stats import binomtest, nct, t as student, ttest_1samp, ttest_rel

from tokencompose.stats import bootstrap_interval, bootstrap_means, detectable, Interval, paired_interval, power
from tokencompose.stats import seeds_difference, seeds_interval, seeds_needed, spreads, unit_scores, Variances, variances

PROMPTS = np.random.default_rng(3).normal(0, 1, 100)


@pytest.fixture
def pair():
    "Two methods on the same prompts, the second one better by one."
    rng = np.random.default_rng(2)
    hardness = rng.normal(50, 20, 200)
    return hardness + rng.normal(0, 2, 200), hardness + 1 + rng.normal(0, 2, 200)


# ---- means

def test_draws_belong_to_the_seed():
    means = bootstrap_means([0, 1], draws=8000)
    assert sorted(set(means)) == [0, .5, 1]
    assert (bootstrap_means([0, 1], seed=3) == bootstrap_means([0, 1], seed=3)).all()
    assert (bootstrap_means([0, 1], seed=3) != bootstrap_means([0, 1], seed=4)).any()


def test_large_data_is_drawn_in_chunks():
    values = np.random.default_rng(0).normal(size=(2000, 600))
    assert bootstrap_means(values, draws=3).shape == (3, 600)


def test_weights():
    assert sorted(set(bootstrap_means([0, 1], weights=[1, 3], draws=99))) == [0, .75, 1]  # (0 + 3)/(1 + 3)
    unseen = bootstrap_means([5, 9], weights=[1, 0], draws=50)  # a draw of the second alone has no mean
    assert set(unseen[~np.isnan(unseen)]) == {5.} and np.isnan(unseen).any()


@pytest.mark.parametrize('values, weights, message', [
    ([], None, 'no units'),
    (3., None, 'no units'),
    ([1, np.nan], None, '1 of 2 values are not finite'),
    ([1, 2], [1, 1, 1], '2 values but 3 weights'),
    ([1, 2], [1, -1], 'negative'),
])
def test_what_cannot_be_averaged(values, weights, message):
    with pytest.raises(ValueError, match=message): bootstrap_means(values, weights)


# ---- one interval

def test_equal_units_have_no_width():
    assert bootstrap_interval([3., 3., 3.]) == Interval(3., 3., 3.)


def test_weighted_mean():
    assert bootstrap_interval([0, 1], weights=[1, 3]).mean == .75


def test_one_unit_has_no_interval():
    one = bootstrap_interval([7.])
    assert one.mean == 7. and np.isnan(one.low) and np.isnan(one.high)


@pytest.mark.parametrize('units', [2, 10, 37])
def test_the_ends_of_the_scale_are_clopper_and_pearsons(units):
    none, all_of_them = (bootstrap_interval(np.full(units, end), bounds=(0, 1)) for end in (0, 1))
    assert_allclose(none, (0, 0, binomtest(0, units).proportion_ci(.95, 'exact').high))
    assert_allclose(all_of_them, (1, binomtest(units, units).proportion_ci(.95, 'exact').low, 1))


def test_without_bounds_the_scale_is_unknown():
    assert bootstrap_interval(np.zeros(10)).high == 0


def test_columns_are_treated_one_by_one():
    both = bootstrap_interval([[0, 0], [1, 0]], bounds=(0, 1))
    assert list(both.mean) == [.5, 0]
    assert_allclose(both.high, [1, 1 - .025**.5])


def test_a_column_without_weight_is_not_a_number():
    unweighted = bootstrap_interval([[1, 0], [2, 0]], weights=[[1, 0], [1, 0]])
    assert unweighted.mean[0] == 1.5 and np.isnan([c[1] for c in unweighted]).all()


# ---- two methods

def test_paired_interval_needs_the_same_units():
    with pytest.raises(ValueError, match='same units'): paired_interval([1, 2], [1, 2, 3])


# ---- training seeds

def rectangle(seeds, units, sigma, rng, tables=1):
    "Scores with known variances of seeds, units and the rest."
    parts = [s*rng.standard_normal((tables, *shape)) for s, shape in zip(sigma, [(seeds, 1), (1, units), (seeds, units)])]
    return sum(parts)


def least_squares(scores):
    "Mean squares of seeds, units and the rest by regression on indicator columns."
    k, n = scores.shape
    seed, unit = np.divmod(np.arange(k*n), n)
    columns = dict(seeds=np.eye(k)[seed], units=np.eye(n)[unit])
    def left(*names):
        design = np.column_stack([np.ones(k*n), *(columns[name] for name in names)])
        return np.square(scores.ravel() - design @ np.linalg.lstsq(design, scores.ravel(), rcond=None)[0]).sum()
    rest = left('seeds', 'units')
    return (left('units') - rest)/(k - 1), (left('seeds') - rest)/(n - 1), rest/((k - 1)*(n - 1))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_spreads_are_the_mean_squares_of_a_regression(k, n, seed):
    scores = rectangle(k, n, (1, 2, 3), np.random.default_rng(seed))[0]
    of_seeds, of_units, rest = least_squares(scores)
    assert_allclose(spreads(scores), np.array([of_units, of_seeds, rest])/(k*n), atol=1e-10)


def by_hand(scores):
    "The half width written out, from the regression."
    k, n = scores.shape
    S, U, E = np.array(least_squares(scores))/(k*n)
    own = max(S - E, 0)
    free = max((U + own)**2/(U**2/(n - 1) + S**2/(k - 1) + E**2/((k - 1)*(n - 1))), min(k - 1, n - 1))
    def t(f): return student.ppf(.975, f)
    return max(t(free)*(U + own)**.5, (t(n - 1)**2*U + t(k - 1)**2*own)**.5)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(3, 12), st.sampled_from([(0, 1, 1), (3, 1, 1), (1, 0, 3)]), st.integers(0, 2**32 - 1))
def test_the_interval_is_the_formula(k, n, sigma, seed):
    scores = rectangle(k, n, sigma, np.random.default_rng(seed))[0]
    found = seeds_interval(scores)
    assert_allclose([found.mean - found.low, found.high - found.mean], [by_hand(scores)]*2)
    moved = seeds_interval(7 - 2*scores[::-1, ::-1])
    assert_allclose(moved[:3], (7 - 2*found.mean, 7 - 2*found.high, 7 - 2*found.low))


def test_a_single_run_is_students_interval_over_units():
    found, expected = seeds_interval(PROMPTS[None]), ttest_1samp(PROMPTS, 0).confidence_interval()
    assert_allclose(found[1:3], (expected.low, expected.high))
    assert found.over == 'units' and seeds_interval([PROMPTS]*2).over == 'units and seeds'
    assert np.isnan(seeds_interval([[1.], [2.]]).low)


def test_runs_that_agree_add_nothing_and_runs_that_differ_a_lot():
    alone, agree = seeds_interval(PROMPTS[None]), seeds_interval([PROMPTS]*3)
    assert_allclose(agree[:3], alone[:3])
    wide = seeds_interval(PROMPTS + np.array([-5., 0, 5])[:, None])
    assert_allclose(wide.high - wide.mean, student.ppf(.975, 2)*5/3**.5, rtol=.01)  # seeds rule: t over the runs


def test_tables_are_treated_one_by_one():
    tables = rectangle(3, 20, (1, 1, 1), np.random.default_rng(0), 4)
    assert_allclose(np.transpose(seeds_interval(tables)[:3]), [seeds_interval(table)[:3] for table in tables])
    others = rectangle(2, 20, (1, 1, 1), np.random.default_rng(1), 4)
    assert_allclose(np.transpose(seeds_difference(tables, others)[:3]), [seeds_difference(*pair)[:3] for pair in zip(tables, others)])


@pytest.mark.parametrize('sigma', [(0, 1, 1), (.3, 1, 1), (2, 1, 1)])
def test_it_holds_what_it_promises(sigma):
    tables = rectangle(3, 30, sigma, np.random.default_rng(0), 3000)
    _, low, high, _ = seeds_interval(tables)
    assert .92 < ((low < 0) & (high > 0)).mean() < .985


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(2, 12), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_an_interval_never_leaves_its_scale(k, n, seed, share):
    scores = 50.*np.random.default_rng(seed).binomial(2, share, (k, n))
    found = seeds_interval(scores, bounds=(0, 100))
    assert 0 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= 100


def test_ends_of_the_scale():
    never = seeds_interval(np.zeros((2, 10)), bounds=(0, 100))
    assert_allclose(never[:3], (0, 0, 100*binomtest(0, 10).proportion_ci(.95, 'exact').high))
    assert_allclose(seeds_interval(np.full((2, 10), 5.), bounds=(0, 5)).low, 5 - .05*never.high)
    once = seeds_interval(np.eye(1, 400), bounds=(0, 1))                       # one success of 400: Wilson's
    wilson = binomtest(1, 400).proportion_ci(.95, 'wilson')
    assert_allclose(once[1:3], (wilson.low, wilson.high), rtol=.02)


@pytest.mark.parametrize('scores, message', [([1, 2], 'seeds, units'), ([[]], 'no units'), ([[1, np.nan]], '1 of 2 scores')])
def test_scores_that_have_no_interval(scores, message):
    with pytest.raises(ValueError, match=message): seeds_interval(scores)


# ---- weights

@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=2, max_size=12).filter(lambda units: any(w for _, w in units)))
def test_weighted_scores_become_plain_ones(units):
    values, weights = map(np.array, zip(*units))
    plain = unit_scores(values, weights)
    assert_allclose(plain.mean(), np.average(values, weights=weights), atol=1e-9)
    assert_allclose(unit_scores(values, np.full(len(values), 3)), values, atol=1e-9)


def test_their_spread_is_the_jackknifes():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=300), rng.integers(1, 6, 300)
    without = [np.average(np.delete(values, i), weights=np.delete(weights, i)) for i in range(300)]
    jackknife = (299/300*np.square(without - np.mean(without)).sum())**.5
    assert_allclose(unit_scores(values, weights).std(ddof=1)/300**.5, jackknife, rtol=.02)


def test_weights_that_weigh_nothing():
    with pytest.raises(ValueError, match='none must be negative'): unit_scores([1, 2], [0, 0])
    with pytest.raises(ValueError, match='none must be negative'): unit_scores([1, 2], [2, -1])


# ---- two methods with training seeds

def test_one_run_each_is_students_paired_interval(pair):
    baseline, better = pair
    expected = ttest_rel(better, baseline).confidence_interval()
    for paired in (False, True):
        assert_allclose(seeds_difference(better[None], baseline[None], paired=paired)[1:3], (expected.low, expected.high))


def test_paired_runs_are_the_interval_of_their_differences():
    ours, theirs = rectangle(3, 20, (3, 1, 1), np.random.default_rng(0), 2)
    assert_allclose(seeds_difference(ours, theirs, paired=True)[:3], seeds_interval(ours - theirs)[:3])
    luck = np.array([-50., 0, 50])[:, None]
    assert_allclose(seeds_difference(ours + luck, theirs + luck, paired=True)[:3], seeds_difference(ours, theirs, paired=True)[:3])


def test_a_base_model_has_no_seeds(pair):
    trained = pair[0] + np.array([-3., 0, 3])[:, None]
    assert_allclose(seeds_difference(trained, pair[1][None])[:3], seeds_interval(trained - pair[1])[:3])
    turned = seeds_difference(pair[1][None], trained)
    lifted = seeds_interval(trained - pair[1])
    assert_allclose(turned[:3], (-lifted.mean, -lifted.high, -lifted.low))
    assert turned.over == 'units and seeds'


def test_seeds_of_their_own_hold_what_they_promise():
    rng = np.random.default_rng(0)
    prompts = rng.standard_normal((2000, 1, 30))
    ours, theirs = (rectangle(k, 30, (.5, 0, 1), rng, 2000) + prompts for k in (3, 4))
    _, low, high, _ = seeds_difference(ours, theirs)
    assert .92 < ((low < 0) & (high > 0)).mean() < .985


def test_methods_that_agree_everywhere():
    never = np.zeros((3, 10))  # nobody ever succeeds: exact binomial reach, 1 - .025^(1/10)
    assert_allclose(seeds_difference(never, never[:1], bounds=(0, 100))[:3], (0, -30.85, 30.85), atol=.01)
    assert seeds_difference(never, never, bounds=(0, 100)).high == pytest.approx(seeds_interval(never, bounds=(0, 100)).high)
    assert seeds_difference(never, never)[:3] == (0, 0, 0)
    assert_allclose(seeds_difference(never + 1, never, bounds=(0, 100))[:3], (1, 1, 1))
    assert seeds_difference([[0, 100.], [0, 100.]], [[0, 0.]], bounds=(0, 100))[1:3] == (-100, 100)
    assert seeds_interval([[0, 100.], [100., 0]])[:3] == (50, 50, 50)  # views that see no spread at all


def test_sides_that_do_not_fit():
    with pytest.raises(ValueError, match='same units'): seeds_difference([[1, 2]], [[1, 2, 3]])
    with pytest.raises(ValueError, match='cannot be paired'): seeds_difference([[1, 2]], [[1, 2], [3, 4]], paired=True)


# ---- planning

def test_variances_are_found_again():
    scores = rectangle(200, 300, (2, 3, 5), np.random.default_rng(0))[0]
    assert_allclose(variances(scores), (4, 9, 25), rtol=.3)
    assert_allclose(variances([[1, 2], [1, 2]]), (0, .5, 0))      # never negative
    with pytest.raises(ValueError, match='needs two or more of each'): variances([[1, 2]])


def noncentral(effect, error, free):
    "Power of a t test, for one side of it."
    return nct.sf(student.ppf(.975, free), free, effect/error)


def test_power_where_one_thing_varies_is_the_t_tests():
    assert_allclose(power(2., Variances(0, 100., 0), 3, 200), noncentral(2, 10/200**.5, 199), atol=.01)
    assert_allclose(power(8., Variances(9., 0, 0), 3, 200), noncentral(8, 3/3**.5, 2), atol=.02)
    assert power(1., Variances(0, 0, 0), 3, 20) == 1 and power(0., Variances(0, 0, 0), 3, 20) == 0


def test_power_is_what_tables_show():
    parts = Variances(2.**2, 5.**2, 20.**2)
    tables = rectangle(4, 100, [v**.5 for v in parts], np.random.default_rng(0), 3000)
    for effect in (2, 5):
        assert_allclose(power(effect, parts, 4, 100), (seeds_interval(tables + effect).low > 0).mean(), atol=.03)


def test_more_seeds_see_less():
    parts = Variances(9., 225., 900.)
    seen = [detectable(parts, k, 200) for k in (3, 5, 10, 30)]
    assert seen == sorted(seen, reverse=True) and detectable(parts, 5, 800) < seen[1]
    needed = seeds_needed(6, parts, 200)
    assert power(6, parts, needed, 200) >= .9 > power(6, parts, needed - 1, 200)
    assert seeds_needed(1, parts, 200, most=6) is None      # the prompts alone are too few


def test_no_drawing_library_is_imported():
    code = 'import sys, tokencompose.stats; print([m for m in ("pandas", "matplotlib", "scipy") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
