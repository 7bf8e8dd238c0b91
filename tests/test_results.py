"Result files: what is refused, and how training seeds are taken together."
import math

import numpy as np
import pytest

from tokencompose.core import write_json
from tokencompose.reporting.results import check_result, load_results, pooled, result_path, run_scores, save_result, toy_result, unit_arrays, with_things
from tokencompose.stats import seeds_interval


@pytest.fixture
def frozen(): return toy_result('frozen', ((1, 2), (1, 1)))


@pytest.fixture
def runs(): return [toy_result('token', ((3, 2), (2, 1)), seed=0), toy_result('token', ((3, 3), (1, 1)), seed=1)]


@pytest.mark.parametrize('change, message', [
    ({'sed': 1}, 'unknown key sed'),
    ({'values': {'MG1': math.nan}}, 'finite numbers, not MG1=nan'),
    ({'values': {}}, 'values is empty'),
    ({'seed': '0'}, 'seed has the wrong type'),
    ({'seed': True}, 'seed has the wrong type'),
    ({'n': {'prompts': 'two'}}, 'n should hold finite numbers'),
    ({'std': {'MG9': 1.}}, 'std has MG9, which values lacks'),
    ({'intervals': {'MG1': [3, 2]}}, 'interval of MG1'),
    ({'intervals': {'MG1': [3]}}, 'interval of MG1'),
    ({'intervals': {'MG9': [1, 2]}}, 'MG9, which values lacks'),
    ({'cost': {}}, 'cost.seconds'),
    ({'cost': dict(seconds=-1)}, 'cost.seconds'),
    ({'cost': dict(seconds=1, peak_memory_mb='big')}, 'peak_memory_mb'),
    ({'values': dict(MG1=100., MG2=26., MG3=0.)}, 'average to 25, the value says 26'),
    ({'units': dict(ids=[0])}, 'units needs ids and values'),
    ({'units': dict(ids=[0, 0], values={})}, 'an id twice'),
    ({'units': dict(ids=[0], values=dict(MG9=[1]))}, 'units has MG9, which values lacks'),
    ({'units': dict(ids=[0], values=dict(MG1=[1, 2]))}, '1 ids but 2 values'),
    ({'units': dict(ids=[0], values=dict(MG1=[None]))}, 'no usable scores'),
])
def test_a_wrong_result_is_refused_in_one_sentence(frozen, change, message):
    with pytest.raises(ValueError, match=message): check_result(frozen | change)


def test_missing_keys_are_named(frozen):
    short = {k: v for k, v in frozen.items() if k not in ('metric', 'profile')}
    with pytest.raises(ValueError, match='metric, profile missing'): check_result(short)
    with pytest.raises(ValueError, match='expected an object, got list'): check_result([])


def test_units_that_do_not_apply_weigh_nothing(frozen):
    frozen['units']['values']['MG2'][1] = None
    scores, weights = unit_arrays(frozen, 'MG2')
    assert scores.tolist() == [50, 0] and weights.tolist()[1] == 0
    with pytest.raises(ValueError, match='the units of MG2 average to 50'): check_result(frozen)


def test_written_and_read(frozen, tmp_path):
    assert load_results('mini', tmp_path) == []
    path = save_result(frozen, tmp_path)
    assert path.relative_to(tmp_path).as_posix() == 'mini/results/multigen_coco/frozen.json'
    save_result(toy_result('token', ((3, 2), (2, 1)), seed=1), tmp_path)
    assert [(r['method'], r['seed']) for r in load_results('mini', tmp_path)] == [('frozen', None), ('token', 1)]
    assert load_results('mini', tmp_path)[0] == frozen
    assert load_results('mini', tmp_path, ['visor']) == []


def test_a_file_in_another_place_is_refused(frozen, tmp_path):
    path = save_result(frozen, tmp_path)
    write_json(path.with_name('other.json'), frozen)
    with pytest.raises(ValueError, match='its content belongs at'): load_results('mini', tmp_path)
    path.with_name('other.json').write_text('{')
    with pytest.raises(ValueError, match='not valid JSON'): load_results('mini', tmp_path)


def test_a_file_of_another_profile_is_refused(frozen, tmp_path):
    write_json(result_path('quick', 'multigen_coco', 'frozen', root=tmp_path), frozen)
    with pytest.raises(ValueError, match='its content belongs at'): load_results('quick', tmp_path)


def test_seed_0_may_be_part_of_the_name_but_not_twice(tmp_path):
    run = toy_result('token', ((1, 1), (1, 1)), seed=0)
    path = save_result(run, tmp_path)
    path.rename(path.with_name('token-seed0.json'))
    assert load_results('mini', tmp_path) == [run]
    save_result(run, tmp_path)
    with pytest.raises(ValueError, match='both hold multigen_coco of token, seed 0'): load_results('mini', tmp_path)


def test_seeds_are_taken_together(runs):
    row = pooled(runs).set_index('name').loc['MG2']
    assert (row['value'], row['seeds'], row['seed_low'], row['seed_high']) == (62.5, 2, 50, 75)
    assert row['low'] < 1 and row['high'] > 99 and row['over'] == 'units and seeds'  # two prompts tell next to nothing
    assert len(pooled([])) == 0


def test_one_run_has_an_interval_over_prompts_alone(frozen):
    frozen['units']['values']['MG2'] = [50., 0.]
    row = pooled([frozen]).set_index('name').loc['MG2']
    expected = seeds_interval([[50., 0.]], bounds=(0, 100))
    assert (row['low'], row['high'], row['over']) == (expected.low, expected.high, 'units')
    without = {k: v for k, v in frozen.items() if k != 'units'}      # as stored, where the scores of prompts are not there
    assert pooled([without]).set_index('name').loc['MG2', ['low', 'high']].tolist() == frozen['intervals']['MG2']


def test_scores_of_runs_have_their_figures_as_means(runs):
    for r, weights in zip(runs, ([1, 3], [2, 2])):
        r['units']['weights'] = {'MG2': weights}
        r['values']['MG2'] = np.average(r['units']['values']['MG2'], weights=weights)
    scores = run_scores(runs, 'MG2')
    assert scores.mean(1).tolist() == [r['values']['MG2'] for r in runs]
    runs[0]['units']['values']['MG2'][1] = runs[1]['units']['values']['MG2'][1] = None
    assert run_scores(runs, 'MG2').shape == (2, 1)                     # a unit that counts nowhere is left out
    assert run_scores(runs, 'MG9') is None and run_scores([*runs, runs[0] | dict(units=dict(ids=[8, 9], values={}))], 'MG2') is None


def test_other_prompts_leave_no_common_interval(runs):
    other = toy_result('token', ((3, 2), (2, 1)), seed=2)
    other['units'] = other['units'] | dict(ids=[0, 7])
    row = pooled([*runs, other]).set_index('name').loc['MG2']
    assert row['seeds'] == 3 and np.isnan(row['low'])


def test_runs_that_do_not_belong_together_are_refused(runs):
    with pytest.raises(ValueError, match='seed occurs twice'): pooled([runs[0], runs[0]])
    with pytest.raises(ValueError, match='one judge'): pooled([runs[0], runs[1] | dict(judge='another')])


# ---- things found

def test_things_are_the_sum_of_the_shares_of_both_lists():
    found = ((3, 2), (1, 0)), ((3, 3), (2, 2))
    lists = [toy_result('token', own, seed=1, metric=name) for name, own in zip(('multigen_coco', 'multigen_ade20k'), found)]
    *same, things = with_things(lists[::-1])
    assert same == lists[::-1] and check_result(things)['values'] == dict(things=2.)  # 16 things in 8 pictures
    assert run_scores([things], 'things').tolist() == [[2.5, .5, 3., 2.]]              # COCO's prompts first, whatever the order
    sums = [sum(r['values'][name] for name in ('MG1', 'MG2', 'MG3'))/100 for r in lists]
    assert things['values']['things'] == pytest.approx(sum(sums)/2)
    assert things['seed'] == 1 and things['n'] == dict(prompts=4, images=8)


def test_things_need_both_lists_of_one_run_and_their_prompts():
    one, other = (toy_result('token', ((3, 2), (1, 0)), seed=seed, metric=name) for seed, name in enumerate(('multigen_coco', 'multigen_ade20k')))
    assert with_things([one, other]) == [one, other]
    bare = {key: value for key, value in one.items() if key != 'units'}
    assert with_things([bare, other | dict(seed=0)]) == [bare, other | dict(seed=0)]
