"Latency through its notebook: several methods in one run, files that the tables take."
import numpy as np
import pytest
from test_bad_input import run
from test_toy_runs import write_pipeline
from tokencompose.metrics import latency
from tokencompose.metrics.latency import latency_table, time_methods
from tokencompose.reporting.results import load_results

LATENCY = 'nbs/8_studies/run_latency.ipynb'
SMALL = dict(repeats=3, warm_up=1, inference_steps=1, objects=2)


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp('place')/'pipeline'
    write_pipeline(folder)
    return str(folder)


def test_files_of_one_run(pipeline, tmp_path):
    run(LATENCY, tmp_path, model=pipeline, models={'tokencompose-seed2': pipeline}, rivals=['composable', 'structured'], batch=2, out_dir=str(tmp_path/'runs'/'mini'/'results'), **SMALL)
    results = {r['method']: r for r in load_results('mini', str(tmp_path/'runs'))}
    assert set(results) == {'frozen', 'composable', 'structured', 'tokencompose'}
    frozen, other = results['frozen'], results['tokencompose']
    assert (frozen['method'], frozen['seed'], other['method'], other['seed']) == ('frozen', None, 'tokencompose', 2)
    assert frozen['values']['ratio'] == 1 and frozen['intervals']['ratio'] == [1, 1]
    seconds = [np.array(r['units']['values']['seconds']) for r in (frozen, other)]
    assert other['values']['ratio'] == pytest.approx(seconds[1].mean()/seconds[0].mean())
    assert other['std']['seconds'] == pytest.approx(seconds[1].std(ddof=1)) and other['n'] == dict(rounds=3, images=6)
    notes = other['notes']
    assert notes['timed_together'] == ['frozen', 'composable', 'structured', 'tokencompose-seed2'] and notes['warm_up'] == 1 and notes['dtype'] == 'float32' and notes['recipe']['inference_steps'] == 1
    assert notes['attention'] and notes['kernel'] and notes['device'] and other['cost']['peak_memory_mb'] is None


def test_the_device_is_waited_for(monkeypatch):
    "Before the clock starts and before it is read, for every call."
    events = []
    monkeypatch.setattr(latency, 'synchronise', lambda device: events.append('wait'))
    monkeypatch.setattr(latency.time, 'perf_counter', lambda: events.append('clock') or float(len(events)))
    time_methods({'a': lambda turn: events.append('a'), 'b': lambda turn: events.append('b')}, warm_up=1, repeats=2)
    one = lambda name: ['wait', 'clock', name, 'wait', 'clock']
    assert events == [e for name in 'abbaab' for e in one(name)]


def test_a_slow_machine_does_not_move_the_ratio():
    "The paired interval against what unpaired resampling would say."
    rng = np.random.default_rng(0)
    mood = rng.uniform(1, 5, 20)
    times = latency.Times(('frozen', 'rival'), np.stack([mood, 3*mood*rng.uniform(.99, 1.01, 20)], 1), dict(frozen=None, rival=None), 1, {})
    row = latency_table(times).loc['rival']
    assert row['ratio'] == pytest.approx(3, rel=.01) and row['ratio_high'] - row['ratio_low'] < .05
    assert row['high'] - row['low'] > 1


@pytest.mark.parametrize('params, sentence', [
    (dict(models={'tokencompose': 'nowhere'}), 'There is no model folder'),
    (dict(repeats=1), 'repeats of 2 or more'),
    (dict(warm_up=-1), 'warm_up of 0 or more'),
    (dict(models=['token']), 'Parameter models: expected dict')])
def test_bad_parameters(params, sentence, pipeline, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=sentence): run(LATENCY, tmp_path, model=pipeline, **SMALL | params)
