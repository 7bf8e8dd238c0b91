"""Intervals against what can be counted or looked up, and what is refused."""
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import binomtest

from tokencompose.stats import (bootstrap_interval, bootstrap_means, Interval, paired_interval, seeds_difference,
                                seeds_interval)

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

def test_identical_runs_add_nothing():
    assert_allclose(seeds_interval([PROMPTS]*3), bootstrap_interval(PROMPTS))
    assert_allclose(seeds_interval(PROMPTS[None]), bootstrap_interval(PROMPTS))


def test_runs_alone():
    runs = np.array([-1., 0, 1])[:, None] + np.zeros((3, 100))  # prompts all alike: 27 draws of 3 runs
    interval = seeds_interval(runs, draws=6000)
    assert_allclose(interval, (0, -1, 1), atol=1e-9)  # all three are -1 in 1/27 of the draws, more than 2.5 %


def test_runs_that_differ_widen():
    wide, narrow = seeds_interval(PROMPTS + np.array([-.5, 0, .5])[:, None]), bootstrap_interval(PROMPTS)
    assert wide.high - wide.low > 1.5*(narrow.high - narrow.low)


def test_seeds_with_bounds_and_weights():
    assert_allclose(seeds_interval(np.zeros((2, 10)), bounds=(0, 100)).high, 30.85, atol=.01)
    assert seeds_interval([[0, 1], [2, 5]], weights=[1, 3]).mean == (0 + 3 + 2 + 15)/8
    with pytest.raises(ValueError, match='seeds, units'): seeds_interval([1, 2])


# ---- two methods with training seeds

def test_one_run_each_is_the_paired_interval(pair):
    baseline, better = pair
    assert_allclose(seeds_difference(better[None], baseline[None]), paired_interval(better, baseline))


def test_runs_that_differ_widen_the_difference(pair):
    baseline, better = pair
    difference = paired_interval(better, baseline)
    lift = seeds_difference(np.stack([better - 3, better, better + 3]), baseline[None])
    assert_allclose(lift.mean, difference.mean)
    assert lift.low < difference.low < difference.high < lift.high


def test_weights_of_a_difference():
    assert_allclose(seeds_difference([[1, 5]], [[0, 0]], weights=[3, 1]).mean, 2)


def test_methods_that_agree_everywhere():
    never = np.zeros((3, 10))  # nobody ever succeeds: exact binomial reach, 1 - .025^(1/10)
    assert_allclose(seeds_difference(never, never[:1], bounds=(0, 100)), (0, -30.85, 30.85), atol=.01)
    assert seeds_difference(never, never, bounds=(0, 100)).high == seeds_interval(never, bounds=(0, 100)).high
    assert seeds_difference(never, never) == (0, 0, 0)
    assert_allclose(seeds_difference(never + 1, never, bounds=(0, 100)), (1, 1, 1))


def test_sides_that_do_not_fit():
    with pytest.raises(ValueError, match='same units'): seeds_difference([[1, 2]], [[1, 2, 3]])
    with pytest.raises(ValueError, match='cannot be paired'): seeds_difference([[1, 2]], [[1, 2], [3, 4]], paired=True)


def test_no_drawing_library_is_imported():
    code = 'import sys, tokencompose.stats; print([m for m in ("pandas", "matplotlib", "scipy") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
