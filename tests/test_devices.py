"""One GPU a job: processes with a stand-in for nvidia-smi, since nobody here has a GPU."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from tokencompose.devices import allowed_gpus, listed_gpus

JOB = """
import json, os, sys, time
begin = time.time()
time.sleep(float(sys.argv[2]))
print(json.dumps([os.environ.get('CUDA_VISIBLE_DEVICES'), begin, time.time()]), file=open(sys.argv[1], 'w'))
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "A machine with two GPUs."
    smi = tmp_path/'bin'/'nvidia-smi'
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\nprintf "0, GPU-aa\\n1, GPU-bb\\n"\n')
    smi.chmod(0o755)
    monkeypatch.setenv('PATH', f'{smi.parent}:{os.environ["PATH"]}')
    monkeypatch.setenv('TOKENCOMPOSE_LOCKS', str(tmp_path/'locks'))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    return tmp_path


def start(machine, name, seconds=.5, **environment):
    command = [sys.executable, '-m', 'tokencompose.devices', sys.executable, '-c', JOB, str(machine/name), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL)


def used(machine, name): return json.loads((machine/name).read_text())


def test_no_gpu_has_two_jobs_at_a_time(machine):
    jobs = [start(machine, f'job{i}') for i in range(5)]
    assert [job.wait(60) for job in jobs] == [0]*5
    spans = [used(machine, f'job{i}') for i in range(5)]
    assert {gpu for gpu, *_ in spans} == {'0', '1'}
    for gpu in '01':
        own = sorted(span[1:] for span in spans if span[0] == gpu)
        assert all(end <= begin for (_, end), (begin, _) in zip(own, own[1:])), own


def test_a_killed_job_gives_its_gpu_back(machine):
    killed = [start(machine, f'killed{i}', 60) for i in range(2)]
    deadline = time.time() + 30
    while len(list((machine/'locks').glob('*.lock'))) < 2 and time.time() < deadline: time.sleep(.05)
    waiting = start(machine, 'next', 0)
    time.sleep(.5)
    assert waiting.poll() is None
    killed[0].send_signal(signal.SIGKILL)
    assert waiting.wait(30) == 0 and used(machine, 'next')[0] in ('0', '1')
    killed[1].kill()
    for job in killed: job.wait()


def test_what_a_scheduler_chose_stays(machine):
    "One GPU is used though somebody else holds it; of several, a free one is taken; none means none."
    holding = start(machine, 'holding', 60)
    deadline = time.time() + 30
    while not (machine/'locks'/'GPU-aa.lock').is_file() and time.time() < deadline: time.sleep(.05)
    for name, chosen, gpu in (('one', '0', '0'), ('several', '0,1', '1'), ('none', '', '')):
        assert start(machine, name, 0, CUDA_VISIBLE_DEVICES=chosen).wait(30) == 0
        assert used(machine, name)[0] == gpu
    holding.kill()
    holding.wait()


def test_without_a_gpu_a_command_simply_runs(machine):
    (machine/'bin'/'nvidia-smi').write_text('#!/bin/sh\nexit 9\n')
    assert listed_gpus() == {} == allowed_gpus({})
    job = start(machine, 'plain', 0)
    assert job.wait(30) == 0 and used(machine, 'plain')[0] is None
    failing = subprocess.run([sys.executable, '-m', 'tokencompose.devices', sys.executable, '-c', 'raise SystemExit(7)'], cwd=ROOT)
    assert failing.returncode == 7, 'the exit code is that of the command'
    nothing = subprocess.run([sys.executable, '-m', 'tokencompose.devices', '/no/such/program'], cwd=ROOT, capture_output=True, text=True)
    assert nothing.returncode == 1 and nothing.stderr == '/no/such/program cannot be started (No such file or directory): check its name.\n'
