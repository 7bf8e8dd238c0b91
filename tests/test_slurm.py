"""The graph on a cluster: the profile cluster/slurm with the real plugin of snakemake, and with a stand-in for Slurm that records its arguments and runs the job."""
import os
import re
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

pytest.importorskip('snakemake_executor_plugin_slurm', reason='needs pip install -e .[cluster]')
PROFILE = yaml.safe_load((ROOT/'cluster'/'slurm'/'config.yaml').read_text())
RULES = {name: body for name, body in re.findall(r'^rule (\w+):(.*?)(?=^rule |\Z)', (ROOT/'Snakefile').read_text(), re.M | re.S)}

# rules of the real graph's names; the second one, the first time, is there when the snakemake that submitted it is killed
GRAPH = """
rule paper_figure:
    input: 'trained'
    output: 'figure'
    threads: 1
    shell: 'echo figure >> ran; if [ ! -e killed ]; then touch killed; kill -9 $(cat pid); exit 1; fi; touch figure'

rule train:
    output: 'trained'
    threads: 1
    resources: gpu=1
    shell: 'echo train >> ran; echo $CUDA_VISIBLE_DEVICES > trained'
"""
SBATCH = """#!/bin/sh
cd {place}
id=$(( $(ls -d jobs/* 2>/dev/null | wc -l) + 1 ))
mkdir -p jobs/$id
for given in "$@"; do
  printf '%s\\n' "$given" >> jobs/$id/arguments
  case "$given" in --wrap=*) command="${{given#--wrap=}}";; esac
done
echo RUNNING > jobs/$id/state
export SLURM_JOB_ID=$id CUDA_VISIBLE_DEVICES=3
(cd work; if sh -c "$command" > ../jobs/$id/said 2>&1; then echo COMPLETED; else echo FAILED; fi > ../jobs/$id/state) > /dev/null 2>&1 &
echo $id
"""
STATES = """#!/bin/sh
cd {place}/jobs 2>/dev/null && for id in *; do echo "$id|$(cat $id/state)"; done
"""
SRUN = """#!/bin/sh
while case "$1" in -*) true;; *) false;; esac; do shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    "A folder for work, and the programs of a cluster that the plugin calls."
    (tmp_path/'bin').mkdir()
    for name, text in dict(sbatch=SBATCH, sacct=STATES, squeue=STATES, srun=SRUN, scancel='#!/bin/sh\n', sacctmgr='#!/bin/sh\necho me\n').items():
        (tmp_path/'bin'/name).write_text(text.format(place=tmp_path) if '{place}' in text else text)
        (tmp_path/'bin'/name).chmod(0o755)
    (tmp_path/'work'/'profile').mkdir(parents=True)
    (tmp_path/'work'/'Snakefile').write_text(GRAPH)
    text = (ROOT/'cluster'/'slurm'/'config.yaml').read_text().replace('# slurm_account: NAME', 'slurm_account: me').replace('# slurm_partition: NAME', 'slurm_partition: gpus')
    assert 'slurm_account: me' in text
    (tmp_path/'work'/'profile'/'config.yaml').write_text(text)
    return tmp_path


def submitted(cluster):
    "Exit code and output of snakemake; its process number is known to the jobs."
    command = [sys.executable, '-m', 'snakemake', '--quiet', 'rules', '--workflow-profile', 'profile', '--slurm-init-seconds-before-status-checks', '1', '--max-status-checks-per-second', '1', '--latency-wait', '5', '--retries', '0']
    path = f'{cluster/"bin"}:{os.environ["PATH"]}'
    with open(cluster/'said', 'w') as said: process = subprocess.Popen(command, cwd=cluster/'work', env=os.environ | dict(PATH=path), stdout=said, stderr=said)
    (cluster/'work'/'pid').write_text(str(process.pid))
    return process.wait(600), (cluster/'said').read_text()


def arguments(cluster, job): return (cluster/'jobs'/str(job)/'arguments').read_text()


def test_jobs_are_submitted_with_what_they_need_and_a_killed_graph_goes_on(cluster):
    code, said = submitted(cluster)
    assert code == -signal.SIGKILL, said
    assert (cluster/'work'/'trained').read_text().strip() == '3', 'the GPU that the scheduler chose'
    train, figure = arguments(cluster, 1), arguments(cluster, 2)
    assert re.search(r'^-t\n2880$', train, re.M) and re.search(r'^--mem\n48000$', train, re.M) and 'rule_train' in train
    assert re.search(r'^--gpus=1$', train, re.M) and 'gpus=' not in figure, 'one GPU for the job that needs one'
    assert re.search(r'^-t\n30$', figure, re.M) and re.search(r'^--mem\n16000$', figure, re.M)
    for given in (train, figure): assert re.search('^-A\n\'?me', given, re.M) and re.search('^-p\n\'?gpus', given, re.M)
    code, said = submitted(cluster)
    assert code == 0, said
    assert (cluster/'work'/'ran').read_text().split() == ['train', 'figure', 'figure'] and (cluster/'work'/'figure').is_file()


def test_the_profile_knows_every_rule():
    asked = PROFILE['set-resources']
    assert set(asked) == set(RULES) - {'all', 'row', 'rows'}
    for rule, body in RULES.items():
        if 'gpu=1' in body: assert 'ON_GPU' in body, f'{rule} would take a GPU that another job has'
    for rule in asked: assert 0 < asked[rule]['runtime'] <= 7*24*60, rule


def test_the_real_graph_needs_no_number_of_cores(cluster):
    path = f'{cluster/"bin"}:{os.environ["PATH"]}'
    command = [sys.executable, '-m', 'snakemake', '--summary', '--workflow-profile', 'cluster/slurm', '--config', 'profile=sd14']
    found = subprocess.run(command, cwd=ROOT, env=os.environ | dict(PATH=path), capture_output=True, text=True)
    assert found.returncode == 0 and 'runs/sd14/paper_figures/table1.ipynb' in found.stdout, found.stderr
