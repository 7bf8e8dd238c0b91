"""A training killed without warning, at a step or in the middle of a save, ends with the same bytes as one left alone."""
import json
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from tokencompose.core import file_sha256
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.world import write_world
from tokencompose.models import tiny_pipeline

KILL_AT_STEP = """
import tokencompose.training as training
add = training.MetricsLog.add
def dying_add(self, row, samples):
    add(self, row, samples)
    dying_add.calls += 1
    if dying_add.calls == {at}: os.kill(os.getpid(), signal.SIGKILL)
dying_add.calls = 0
training.MetricsLog.add = dying_add
"""
KILL_IN_SAVE = """
import tokencompose.training as training
rename = os.rename
def dying_rename(source, target):
    if str(target).endswith('step-{at:07d}'): os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
training.os.rename = dying_rename
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('training')
    write_world(folder/'scenes', train=6, val=1)
    coco = read_coco(folder/'scenes', 'train2017')
    build_dataset(folder/'data', coco)
    tiny_pipeline(['a photo of a cat, a dog and a car.']*3).save_pretrained(folder/'model')
    return folder


def start(place, out, before=''):
    "Train in a process of its own; the return code."
    config = dict(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(out), resolution=64,
                  steps=9, batch_size=2, lr=1e-3, token_loss_scale=1e-2, pixel_loss_scale=1e-3, checkpoint_every=3, log_every=1, ema=.9)
    code = f'import os, signal\n{before}\nfrom tokencompose.training import train, TrainConfig\ntrain(TrainConfig(**{config!r}))'
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).returncode


def test_killed_runs_end_like_one_left_alone(place, tmp_path):
    assert start(place, tmp_path/'whole') == 0
    assert start(place, tmp_path/'killed', KILL_AT_STEP.format(at=5)) == -signal.SIGKILL        # after the checkpoint of step 3
    assert sorted(p.name for p in (tmp_path/'killed'/'checkpoints').iterdir()) == ['step-0000003']
    assert start(place, tmp_path/'killed', KILL_IN_SAVE.format(at=6)) == -signal.SIGKILL        # everything written but the name
    assert [p.name for p in (tmp_path/'killed'/'checkpoints').glob('step-*')] == ['step-0000003']
    assert list((tmp_path/'killed'/'checkpoints').glob('.tmp-*')), 'the kill left a half-saved checkpoint behind'
    assert start(place, tmp_path/'killed') == 0
    weights = 'pipeline/unet/diffusion_pytorch_model.safetensors'
    assert file_sha256(tmp_path/'whole'/weights) == file_sha256(tmp_path/'killed'/weights)
    assert not list((tmp_path/'killed'/'checkpoints').glob('.tmp-*'))
    rows = [[{k: v for k, v in json.loads(line).items() if k != 'samples_per_second'} for line in (tmp_path/run/'metrics.jsonl').open()] for run in ('whole', 'killed')]
    assert rows[0] == rows[1], 'the log has every step once'
