"""Everything long can be killed at any moment, and every fault of disk, input or clock ends in one sentence with the last good state kept.

The long form, `FAULTS_RECORD=paper_figures/records/studies/faults.json pytest -m long tests/test_faults.py`, kills at random moments and writes what nbs/8_studies/faults.ipynb shows, kill by kill: stopped
and begun again it goes on. FAULTS_KILLS (20) says how many, FAULTS_MINUTES (120) how long the training is whose memory is watched."""
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
import torch
from faults import at_call, CODE, counted, here, LATER, left_over, PROMPTS, prepared, random_kills, record, recorded, result_of, run, spent, start
from processes import run_python

from tokencompose.checkpoints import checkpoints, newest_checkpoint
from tokencompose.core import atomic_path, keyed_rng, read_json, write_json
from tokencompose.metrics.detection import detect, load_judge
from tokencompose.models import load_pipeline
from tokencompose.pretraining.fit import fit, FitConfig
from tokencompose.processes import sole_user
from tokencompose.sampling import sample_images
from tokencompose.training import train, TrainConfig


@pytest.fixture(scope='module')
def place(tmp_path_factory): return prepared(tmp_path_factory.mktemp('faults'))


@pytest.fixture(scope='module')
def whole(place, tmp_path_factory):
    "Work -> folder and digest of its result when nobody disturbs it."
    folder, known = tmp_path_factory.mktemp('whole'), {}
    def of(work):
        if work not in known: here(work, place, folder/work)
        return known.setdefault(work, result_of(work, folder/work))
    return of


def config(place, out, **changes):
    own = dict(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(out), resolution=64, steps=3, batch_size=2,
               lr=1e-3, token_loss_scale=1e-2, pixel_loss_scale=1e-3, checkpoint_every=1, log_every=1)
    return TrainConfig(**own | changes)


# ---- five kills

def test_a_training_killed_in_a_checkpoint_and_in_a_rotation(place, whole, tmp_path):
    "One checkpoint is kept: at no moment is there none."
    out, killed = tmp_path/'run', -signal.SIGKILL
    assert run('training', place, out, at_call('tokencompose.checkpoints', 'write_json', 5))[0] == killed   # weights of step 3 written, its manifest not
    assert [c.name for c in checkpoints(out/'checkpoints')] == ['step-0000002'] and list((out/'checkpoints').glob('.tmp-0000003-*'))
    assert run('training', place, out, at_call('os', 'rename', 2))[0] == killed    # step 3 in place, step 2 about to lose its name
    assert newest_checkpoint(out/'checkpoints').name == 'step-0000003'
    here('training', place, out)
    assert result_of('training', out) == whole('training') and [c.name for c in checkpoints(out/'checkpoints')] == ['step-0000006'] and not left_over(out)


@pytest.mark.parametrize('work, module, name, call', [('sampling', 'tokencompose.sampling', 'save_picture', 5), ('judging', 'tokencompose.metrics.detection', '_write_part', 3),
                                                      ('data', 'tokencompose.data.coco', '_write', 3)])
def test_other_work_that_is_killed(place, whole, tmp_path, work, module, name, call):
    assert run(work, place, tmp_path/'out', at_call(module, name, call))[0] == -signal.SIGKILL
    here(work, place, tmp_path/'out')
    assert result_of(work, tmp_path/'out') == whole(work)


# ---- damage

def flip(path, place=-9):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])


@pytest.mark.parametrize('name, harm', [('unet.safetensors', flip), ('optimizer.pt', halve), ('COMPLETE', halve), ('state.json', os.unlink)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(place, whole, tmp_path, capsys, name, harm):
    out = tmp_path/'run'
    exec(CODE['training'].replace('keep_checkpoints=1', 'keep_checkpoints=2').replace('log_every=1, ema=.9))', 'log_every=1, ema=.9), stop_at=4)'), dict(place=str(place), out=str(out)))
    harm(out/'checkpoints'/'step-0000004'/name)
    here('training', place, out)
    said = capsys.readouterr().out
    assert 'step-0000004' in said and name in said and 'goes on from step-0000003' in said
    assert result_of('training', out) == whole('training')


def test_the_state_of_a_small_model_is_checked_too(tmp_path, capsys):
    def trained(folder, **changes):
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 1)
        def loss(step): return (layer(torch.full((1, 2), float(step))) - 1).square().mean()
        return fit(dict(layer=layer), loss, FitConfig(**dict(steps=9, save_seconds=-1.) | changes), folder/'state.pt')['layer'].weight.detach().clone()
    wanted = trained(tmp_path/'whole')
    (tmp_path/'other').mkdir()
    def stop(step): raise KeyboardInterrupt
    trained(tmp_path/'other')
    flip(tmp_path/'other'/'state.pt', 700)
    assert torch.equal(trained(tmp_path/'other'), wanted) and 'state.pt is damaged' in capsys.readouterr().out
    with pytest.raises(ValueError, match='state.pt was begun with other settings .lr: 0.001 there, 0.1 now'): trained(tmp_path/'other', lr=.1)


def test_damaged_inputs_are_named(place, tmp_path):
    for name, harm, sentence in [('model/unet/diffusion_pytorch_model.safetensors', halve, 'diffusion_pytorch_model.safetensors'), ('model/unet/diffusion_pytorch_model.safetensors', lambda p: flip(p, 3), 'diffusion_pytorch_model.safetensors'),
                                 ('data/metadata.jsonl', lambda p: flip(p, 0), 'metadata.jsonl, row 1'), ('data/metadata.jsonl', lambda p: p.write_text(p.read_text()[:-40]), 'metadata.jsonl, row'),
                                 ('scenes/train2017/000000000001.png', halve, '000000000001.png cannot be read'), ('data/seg', shutil.rmtree, 'mask')]:
        copy = tmp_path/name.replace('/', '-')
        shutil.copytree(place, copy)
        harm(copy/name)
        with pytest.raises((ValueError, FileNotFoundError), match=sentence): train(config(copy, copy/'run', cache=str(copy/'cache')))
        shutil.rmtree(copy)


def test_inputs_that_vanish_between_start_and_resume(place, tmp_path):
    shutil.copytree(place, tmp_path/'copy')
    settings = config(tmp_path/'copy', tmp_path/'run')
    train(settings, stop_at=1)
    next((tmp_path/'copy'/'scenes'/'train2017').glob('*.png')).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match='.png'): train(settings)
    shutil.rmtree(tmp_path/'copy'/'model')
    with pytest.raises(FileNotFoundError, match='There is no model folder'): train(settings)
    assert newest_checkpoint(tmp_path/'run'/'checkpoints').name == 'step-0000001'


# ---- the disk and the clock

@contextlib.contextmanager
def no_file_above(size):
    "A quota of one process: longer files are refused by the system."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_a_checkpoint(place, whole, tmp_path):
    out = tmp_path/'run'
    train(config(place, out), stop_at=1)
    with no_file_above(200_000), pytest.raises(OSError, match='step-0000002, a checkpoint, cannot be written: .*kept'): train(config(place, out))
    assert [path.name for path in (out/'checkpoints').iterdir()] == ['step-0000001']
    assert train(config(place, out))['step'] == 3


@pytest.mark.parametrize('numbers', [51_000, 60_000, 10**6])
def test_no_room_for_what_torch_writes(tmp_path, numbers):
    "It says so in other words each time."
    with no_file_above(200_000), pytest.raises(OSError, match='state.pt cannot be written: .*What was finished before is kept'):
        with atomic_path(tmp_path/'state.pt') as temporary: torch.save(dict(weights=torch.zeros(numbers)), temporary)
    assert not list(tmp_path.iterdir())


def test_no_room_for_other_work(place, tmp_path):
    judge = load_judge(str(place/'judge'), '', 'cpu')
    with no_file_above(900):
        with pytest.raises(OSError, match='png cannot be written: .*larger than a file may be'):
            sample_images(load_pipeline(str(place/'model'), device='cpu'), PROMPTS, 1, tmp_path/'pictures', inference_steps=1)
        with pytest.raises(OSError, match='jsonl cannot be written'): detect(judge, place/'pictures', PROMPTS, 3, tmp_path/'verdicts', batch=6)
    assert not list(tmp_path.rglob('*.tmp*'))


def test_a_clock_that_goes_backwards(place, whole, tmp_path, monkeypatch):
    now = [2*10**9]
    def earlier(unit=1):
        now[0] -= 1000
        return now[0]*unit
    monkeypatch.setattr(time, 'time', earlier)
    monkeypatch.setattr(time, 'time_ns', lambda: earlier(10**9))
    for work in ('training', 'data'):
        here(work, place, tmp_path/work)
        assert result_of(work, tmp_path/work) == whole(work)


@pytest.mark.parametrize('work, held, doing', [('sampling', '', 'drawing'), ('judging', 'verdicts', 'judging'), ('data', 'captions', 'working'), ('data', 'built', 'building'), ('training', '', 'training')])
def test_two_writers(place, tmp_path, work, held, doing):
    for folder in ('captions', 'built') if work == 'data' else (): (tmp_path/'out'/folder).mkdir(parents=True)
    here(work, place, tmp_path/'out') if work == 'data' else None
    with sole_user(tmp_path/'out'/held, doing):
        with pytest.raises(RuntimeError, match=f'Another process is {doing} in .*out'): here(work, place, tmp_path/'out')


# ---- the long form

KILLS = int(os.environ.get('FAULTS_KILLS', 20))


@contextlib.contextmanager
def small_disk(folder, size='2m', options=''):
    "A file system of its own, where that may be mounted."
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}{options}', 'tmpfs', str(folder)], capture_output=True).returncode: pytest.skip('mounting a file system needs to be root')
    try: yield folder
    finally: subprocess.run(['umount', '-l', str(folder)])


@pytest.mark.long
@pytest.mark.parametrize('work', ['training', 'sampling', 'judging', 'data'])
def test_twenty_kills_at_random_moments(place, tmp_path, work):
    found = random_kills(work, place, tmp_path, KILLS)
    assert found['same'] == found['runs'] >= KILLS and found['kills'] >= .6*KILLS


def two_ranks(place, out, before=('', '')):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    return [start('training', place, out, code, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port) for rank, code in enumerate(before)]


def ended(process, seconds) -> bool:
    process.process.join(seconds)
    return not process.running()


@pytest.mark.long
def test_twenty_kills_of_one_of_two_processes(place, tmp_path):
    ranks = two_ranks(place, tmp_path/'whole')
    assert [rank.wait(900) for rank in ranks] == [0, 0]
    whole, wanted, name = min(spent(rank.output) for rank in ranks), result_of('training', tmp_path/'whole'), 'kills of one of two processes'
    each = recorded(name).get('each', [])
    for n in range(len(each), KILLS):
        out, victim, moment = tmp_path/f'{n}', n % 2, float(keyed_rng(0, 'two', n).uniform(0, whole))
        ranks = two_ranks(place, out, [LATER.format(seconds=moment) if rank == victim else '' for rank in range(2)])
        code, other = ranks[victim].wait(900), ranks[1 - victim]
        met = ended(other, 120)  # before they have met, the other one waits for half an hour, unless a launcher ends it, as here
        if not met: other.process.kill()
        left = other.wait(60)
        again = two_ranks(place, out)
        assert [rank.wait(900) for rank in again] == [0, 0], again[0].output + again[1].output
        told = left == 0 or 'another of the 2 processes has ended' in other.output
        each = [*each, dict(seconds=round(moment, 2), killed=code == -signal.SIGKILL, met=met, told=told, same=result_of('training', out) == wanted)]
        record(name, counted(each) | dict(seconds=round(whole, 2)))
    assert all(row['same'] and (row['told'] or not row.get('met', True)) for row in each) and len(each) >= KILLS
    assert sum(not row.get('met', True) for row in each) <= KILLS//4  # a wait after they met is a fault


@pytest.mark.long
def test_a_full_disk_and_a_read_only_one(place, tmp_path):
    said = {}
    with small_disk(tmp_path/'small', '9m') as disk:
        code, said['full'] = run('training', place, disk/'run')
        kept = [c.name for c in checkpoints(disk/'run'/'checkpoints')]
    assert code == 1 and 'the disk is full' in said['full'] and len(kept) == 1
    with small_disk(tmp_path/'closed', '6m', ',ro') as disk: code, said['read-only'] = run('training', place, disk/'run')
    assert code == 1 and 'the file system is read-only' in said['read-only']
    record('full and read-only disk', dict(kept=kept, said={name: text.strip().splitlines()[-1].replace(str(tmp_path), '') for name, text in said.items()}))


@pytest.mark.long
def test_constant_memory(place, tmp_path):
    "Resident memory while one training goes on for two hours, beside whatever else the machine does: its slope by the updates done."
    minutes = float(os.environ.get('FAULTS_MINUTES', 120))
    code = CODE['training'].replace('steps=6', 'steps=10**7').replace('checkpoint_every=1', 'checkpoint_every=500').replace('log_every=1', 'log_every=50')
    watch = ('import os, threading, time\ndef watch():\n    while True:\n        time.sleep(5)\n'
             '        open(f"{out}/rss", "a").write(open("/proc/self/statm").read().split()[1] + f" {time.process_time()}\\n")\n'
             f'        if time.monotonic() > began + {60*minutes}: os._exit(7)\nbegan = time.monotonic()\nthreading.Thread(target=watch, daemon=True).start()\n')
    done, said = run_python(f'import os\nplace, out = {str(place)!r}, {str(tmp_path/"long")!r}\nos.makedirs(out)\n{watch}\n{code}', timeout=60*60*12)
    assert done == 7, said
    lines = [line.split() for line in (tmp_path/'long'/'rss').read_text().splitlines()]
    pages, worked = [int(line[0]) for line in lines], float(lines[-1][1])/60
    steps = [json.loads(line)['step'] for line in (tmp_path/'long'/'metrics.jsonl').read_text().splitlines()][-1]
    later = torch.tensor(pages[len(pages)//5:], dtype=torch.float64)*resource.getpagesize()/2**20
    at = torch.linspace(steps/5, steps, len(later), dtype=torch.float64)
    slope = float(((at - at.mean())*(later - later.mean())).sum()/(at - at.mean()).square().sum())
    found = dict(updates=steps, minutes=minutes, processor_minutes=round(worked, 1), first_mb=round(float(later[0]), 1), last_mb=round(float(later[-1]), 1), mb_per_1000_updates=round(1000*slope, 4))
    record('memory', found)
    assert abs(later[-1] - later[0]) < 30, found
