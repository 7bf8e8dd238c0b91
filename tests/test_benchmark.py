"The benchmark as a command, on the smallest size."
import json

import pytest
import torch
from diffusers.training_utils import EMAModel
from processes import run_python
from torch.utils._python_dispatch import TorchDispatchMode

from tokencompose.attention import CrossAttentionCapture
from tokencompose.benchmark import both_kinds, new_bench, new_run, random_pipeline, RandomData
from tokencompose.core import read_json
from tokencompose.reporting.pages import speed_page, target_rows

COMMAND = "import runpy, sys; sys.argv[0] = 'benchmark'; runpy.run_module('tokencompose.benchmark', run_name='__main__')"
aten = torch.ops.aten
SMALL = ('--size', 'tiny', '--device', 'cpu', '--seconds', '0', '--batch', '1', '--inference_steps', '2', '--judge_batch', '2')


def test_a_command_writes_a_record_that_the_page_reads(tmp_path):
    record = tmp_path/'benchmark'/'mini-cpu.json'
    for part in ('judge', 'grow'):
        code, said = run_python(COMMAND, part, *SMALL, '--out', record)
        assert code == 0, said
    found = read_json(record)
    assert list(found['parts']) == ['judge', 'grow'], 'the second call adds to the record of the first'
    assert {'size', 'device', 'dtype', 'versions', 'rates', 'commit', 'params'} <= found.keys() and found['rates']['flop'] > 1e6
    grown = found['parts']['grow']
    assert set(grown) == {'drawing_by_batch', 'judging_by_pictures', 'step_by_batch', 'step_by_resolution'}
    for seen in grown.values(): assert len(seen['sizes']) == len(seen['ms']) >= 3 and seen['largest_miss'] >= 0
    assert 'cpu' in speed_page(tmp_path) and speed_page(tmp_path).count('not run') == len(target_rows({})) + 1


def test_a_record_of_another_kind_is_not_added_to(tmp_path):
    path = tmp_path/'record.json'
    first = new_bench('tiny', 'cpu', path)
    first.note('step', supervised_ms=1.23456)
    assert read_json(path)['parts'] == dict(step=dict(supervised_ms=1.235))
    assert new_bench('tiny', 'cpu', path).record['parts'] and not new_bench('tiny', 'cpu', path, speed='fast').record['parts']


def test_unknown_words_end_in_a_sentence():
    code, said = run_python(COMMAND, 'everything', *SMALL[:4])
    assert code and 'expected step, sample, judge, large, grow or all' in said
    with pytest.raises(ValueError, match='expected tiny, mini, sd14, sd21'): new_bench('sd15')


def test_targets_are_met_from_the_right_side():
    record = dict(parts=dict(step=dict(supervised_over_plain=1.05, supervised_ms=51), authors=dict(authors_over_ours=6), sample=dict(batched_over_single=7.9)))
    rows = {(row['what'], row['where']): row['reached'] for row in target_rows(dict(GPU=json.loads(json.dumps(record))))}
    assert rows['supervised / plain step', 'GPU'] == 'yes' and rows['supervised step, batch 4', 'GPU'] == 'no'
    assert rows["the authors' manner / our step, four samples", 'GPU'] == 'yes' and rows['drawing: side by side / one at a time', 'GPU'] == 'no'
    assert rows['supervised / plain step', 'CPU'] == ''


class Heard(TorchDispatchMode):
    "Operations whose result a host would have to wait for on a GPU."
    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is aten.index.Tensor and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if by_mask or func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.unique_consecutive): self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('speed', ['exact', 'fast'])
def test_a_fast_step_never_waits_for_the_device(speed, monkeypatch):
    "Between two lines of the log; the exact step, which asks how many nouns a batch has, is heard."
    monkeypatch.setattr(CrossAttentionCapture, 'select', lambda self, ids: setattr(self, '_token_ids', ids))  # its check is for ids on the CPU
    pipe = random_pipeline('tiny', 'cpu')
    run = new_run(pipe, RandomData(pipe, 64), batch_size=2, speed=speed)
    run.averages['ema'] = EMAModel(run.unet.parameters(), decay=.9, foreach=speed != 'exact')
    with both_kinds(run) as (_, supervised):
        supervised()
        with Heard() as heard: supervised()
    assert bool(heard.waits) == (speed == 'exact'), heard.waits
