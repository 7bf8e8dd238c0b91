"""Two processes (gloo, on the CPU) train one model: from a cold cache, one of them slow, one of them killed, and stopped and begun again."""
import contextlib
import json
import signal
import socket

import pytest
import torch
from processes import Started
from safetensors.torch import load_file

from tokencompose import training
from tokencompose.core import file_sha256
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.world_files import write_world
from tokencompose.models import tiny_pipeline
from tokencompose.run_config import TrainConfig
from tokencompose.training import train

WEIGHTS = 'pipeline/unet/diffusion_pytorch_model.safetensors'
SLOW = """
import time
import tokencompose.training as training
encode = training.encode_cache
def slow(*args, share, **more):
    if share[0] == 1: time.sleep(4)
    return encode(*args, share=share, **more)
training.encode_cache = slow
"""
KILL = """
import os, signal
import tokencompose.training as training
update = training.update
def dying(run):
    norm = update(run)
    if run.step == {at} and run.accelerator.process_index == {rank}: os.kill(os.getpid(), signal.SIGKILL)
    return norm
training.update = dying
"""
KILL_IN_ENCODING = """
import os, signal
import tokencompose.data.cache as cache
moments = cache.image_moments
def dying(*args):
    if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)
    return moments(*args)
cache.image_moments = dying
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('distributed')
    write_world(folder/'scenes', train=6, val=1)
    build_dataset(folder/'data', read_coco(folder/'scenes', 'train2017'))
    tiny_pipeline(['a photo of a cat, a dog and a car.']*3).save_pretrained(folder/'model')
    return folder


def settings(place, out, **changes):
    own = dict(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(out), resolution=64, steps=4, batch_size=1,
               lr=1e-3, token_loss_scale=1e-2, pixel_loss_scale=1e-3, checkpoint_every=2, log_every=1, ema=.9, cache=str(out.parent/f'{out.name}-cache'))
    return own | changes


def launch(config, before='', world=2):
    "Training in some processes, as torchrun starts them."
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    code = f'{before}\nfrom tokencompose.training import train, TrainConfig\nprint(train(TrainConfig(**{config!r})))'
    common = dict(WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1')
    return [Started(code, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(world)]


def test_a_cold_cache_with_a_slow_process_and_a_restart(place, tmp_path):
    "Seen before: the first process read the cache while the second was still encoding, and took it down."
    whole, parts = settings(place, tmp_path/'whole'), settings(place, tmp_path/'parts')
    ranks = launch(whole, SLOW)
    assert [rank.wait(120) for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output

    killed = launch(parts, KILL.format(at=3, rank=1))                 # after the checkpoint of step 2
    codes = [rank.wait(60) for rank in killed]
    assert codes[1] == -signal.SIGKILL and codes[0] == 1
    assert 'another of the 2 processes has ended' in killed[0].output and 'the same command' in killed[0].output
    again = launch(parts)
    assert [rank.wait(120) for rank in again] == [0, 0], again[0].output + again[1].output
    assert file_sha256(tmp_path/'whole'/WEIGHTS) == file_sha256(tmp_path/'parts'/WEIGHTS)
    result = json.loads((tmp_path/'parts'/'result.json').read_text())
    assert result['result']['world'] == 2

    alone = settings(place, tmp_path/'alone', batch_size=2)           # the same two images an update, in one process
    train(TrainConfig(**alone))
    logs = [[json.loads(line) for line in (tmp_path/run/'metrics.jsonl').open()] for run in ('alone', 'whole')]
    for name in logs[0][0].keys() - {'samples_per_second'}: assert logs[1][0][name] == pytest.approx(logs[0][0][name], rel=1e-4), f'{name} is of the images of all processes'
    one, two = load_file(tmp_path/'alone'/WEIGHTS), load_file(tmp_path/'whole'/WEIGHTS)
    far = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert far.mean() < 1e-5, 'only the order of summation differs (AdamW follows the sign of a gradient, however small)'


def test_a_process_that_dies_while_it_encodes(place, tmp_path):
    "The other one says so, and what was encoded is used when both start again."
    ranks = launch(settings(place, tmp_path/'run', steps=1), KILL_IN_ENCODING)
    codes = [rank.wait(60) for rank in ranks]
    assert codes[1] == -signal.SIGKILL and codes[0] == 1 and 'another of the 2 processes has ended' in ranks[0].output
    again = launch(settings(place, tmp_path/'run', steps=1))
    assert [rank.wait(120) for rank in again] == [0, 0], again[0].output + again[1].output


def test_a_held_folder_ends_both_processes(place, tmp_path):
    from tokencompose.processes import sole_user
    with sole_user(tmp_path/'run'):
        ranks = launch(settings(place, tmp_path/'run'))
        assert [rank.wait(60) for rank in ranks] == [1, 1]
    assert 'Another process is training in' in ranks[0].output and 'another of the 2 processes has ended' in ranks[1].output


def test_a_process_that_nobody_meets_says_so(tmp_path, monkeypatch):
    def alone(**more): raise torch.distributed.DistNetworkError('The client socket has timed out after 1800000ms while trying to connect to (127.0.0.1, 29500).')
    monkeypatch.setattr(training, 'Accelerator', alone)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(RuntimeError, match='another of the 2 processes has ended or does not answer .*start all of them again'):
        training.new_accelerator(TrainConfig(data='d', images='i', model='m', out_dir='o'))
