"Latency through its notebook: several methods in one run, files that the tables take."
import numpy as np
import pytest
import torch
from test_bad_input import run
from test_toy_runs import write_pipeline
from tokencompose.metrics import latency
from tokencompose.metrics.latency import latency_results, latency_table, run_conditions, time_methods, Times, weights_mb
from tokencompose.models import tiny_pipeline
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


def made(**columns):
    return Times(tuple(columns), np.array(list(columns.values())).T, dict.fromkeys(columns), 2, dict(repeats=4))


def test_the_table_by_hand():
    table = latency_table(made(frozen=[1., 3, 1, 3], slow=[2., 6, 2, 6]))
    assert table['seconds'].tolist() == [1, 2] and table['std'].tolist() == pytest.approx([(1/3)**.5, 2*(1/3)**.5])
    assert table.loc['frozen', 'ratio'] == 1
    mixed = latency_table(made(frozen=[1., 1, 1, 1], slow=[2., 2, 2, 4])).loc['slow']
    assert mixed['ratio'] == 2.5 and mixed['ratio_low'] == 2 and mixed['ratio_high'] > 3
    with pytest.raises(ValueError, match="'plain' was not timed; choose one of frozen, slow"): latency_table(made(frozen=[1., 2], slow=[1., 2]), 'plain')


def test_results_by_hand():
    results = latency_results(made(frozen=[1., 3, 1, 3], slow=[2., 6, 2, 6]))
    assert results['slow']['values'] == dict(seconds=2., ratio=2.)
    assert results['slow']['cost'] == dict(seconds=16., peak_memory_mb=None)


def test_memory_of_one_method_and_of_several():
    "Elsewhere than on CUDA it is the process's peak, which belongs to nobody where several were timed."
    assert time_methods(dict(a=lambda turn: 0), repeats=2).peak_mb['a'] > 10
    assert time_methods(dict(a=lambda turn: 0, b=lambda turn: 0), repeats=2).peak_mb == dict(a=None, b=None)


def test_rounds_are_in_order_and_turn():
    log = []
    time_methods({name: lambda turn, name=name: log.append((turn, name)) for name in 'abc'}, warm_up=1, repeats=3)
    assert [turn for turn, _ in log] == sorted(turn for turn, _ in log)


def test_too_little_to_time():
    with pytest.raises(ValueError, match='no method'): time_methods({})
    with pytest.raises(ValueError, match='repeats of 2 or more'): time_methods(dict(a=print), repeats=1)


def test_conditions_of_a_run():
    pipe = tiny_pipeline()
    assert run_conditions(pipe) == dict(dtype='float32', attention='AttnProcessor2_0', kernel='scaled_dot_product_attention (plain)')
    from diffusers.models.attention_processor import AttnProcessor
    pipe.unet.set_attn_processor(AttnProcessor())
    assert run_conditions(pipe) == dict(dtype='float32', attention='AttnProcessor', kernel='explicit')


def test_memory_on_a_gpu_is_that_of_the_method_and_not_of_models_beside_it(monkeypatch):
    "A fake device: 5 GB lie there, a call adds 1 or 2, each method draws with 3 or 2 of its own."
    held = dict(now=5000., most=0.)
    def call(more): return lambda turn: held.update(most=held['now'] + more)
    for name, does in dict(reset_peak_memory_stats=lambda device: held.update(most=held['now']), memory_allocated=lambda device: held['now']*2**20,
                           max_memory_allocated=lambda device: held['most']*2**20, synchronize=lambda device: None).items(): monkeypatch.setattr(torch.cuda, name, does)
    monkeypatch.setattr(latency, 'device_name', str)
    times = time_methods(dict(frozen=call(1000.), trained=call(2000.)), 'cuda', 0, 2, weights=dict(frozen=3000., trained=2000.))
    assert times.peak_mb == dict(frozen=4000., trained=4000.)


def test_weights_of_a_pipeline():
    pipeline = tiny_pipeline(['a photo of a cat.'])
    numbers = sum(p.numel() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder) for p in part.parameters())
    assert weights_mb(pipeline) == pytest.approx(numbers*4/2**20, rel=1e-3)
