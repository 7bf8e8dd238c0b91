"""The list of files that the paper's profiles fetch, and folders compared with it."""
import re

import pytest
from tokencompose.core import read_jsonl, write_jsonl
from tokencompose.lock import fetched_models, read_models_lock, verify
from tokencompose.model_files import PUBLISHED
from tokencompose.profiles import get_profile


def test_every_model_of_the_papers_profiles_is_listed_at_its_commit():
    rows = read_models_lock()
    known = {(row['model'], row['revision'] or '') for row in rows}
    for name in ('sd14', 'sd21'):
        assert not [pair for pair in fetched_models(get_profile(name)) if pair not in known]
        assert {row['model'] for row in rows if name in row['used'].split(', ')} >= {model for model, _ in fetched_models(get_profile(name)) if 'TokenCompose' in model}
    assert fetched_models(get_profile('mini')) == [], 'the miniature needs nothing'


def test_the_list_names_commits_and_whole_checksums_and_is_sorted_out():
    for row in read_models_lock():
        assert row['revision'] is None or re.fullmatch('[0-9a-f]{40}', row['revision'])
        assert row['sha256'] is None or re.fullmatch('[0-9a-f]{64}', row['sha256'])
        assert row['licence'] and row['url'].startswith('https://') and row['used']
    files = [(row['model'], row['revision'], row['file']) for row in read_models_lock()]
    assert len(set(files)) == len(files)
    assert {name.split('/')[-1] for name in PUBLISHED} <= {file for *_, file in files}, 'files with a command of their own'


@pytest.fixture
def hub(tmp_path):
    file = tmp_path/'models--me--mine'/'snapshots'/'c'/'model.safetensors'
    file.parent.mkdir(parents=True)
    file.write_bytes(b'weights')
    return tmp_path


def row(**changes):
    return dict(model='me/mine', revision='c', file='model.safetensors', bytes=7, sha256=None, licence='MIT', url='https://x', used='sd14') | changes


def test_what_is_not_known_is_said_and_can_be_written_down(hub, capsys):
    assert verify(hub, str(hub/'noted.lock'), [row()])['unknown'] == 1
    assert 'nothing to compare with' in capsys.readouterr().out
    assert verify(hub, rows=read_jsonl(hub/'noted.lock'))['right'] == 1
    (hub/'models--me--mine'/'snapshots'/'c'/'model.safetensors').write_bytes(b'poisons')
    assert verify(hub, rows=read_jsonl(hub/'noted.lock'))['different'] == 1
    assert 'fetch it again, and do not open it before it is right' in capsys.readouterr().out


def test_other_folders_are_understood(tmp_path):
    for place in ('me/mine', 'mine'):
        (tmp_path/place).mkdir(parents=True)
        (tmp_path/place/'model.safetensors').write_bytes(b'weights')
        assert verify(tmp_path, rows=[row()])['unknown'] == 1
    (tmp_path/'pos').mkdir()
    (tmp_path/'pos'/'a.bin').write_bytes(b'1')
    assert verify(tmp_path, rows=[row(model='weights/pos/a.bin', revision=None, file='a.bin', bytes=1)])['unknown'] == 1
    assert verify(tmp_path, rows=[row(model='weights/pos/a.bin', revision=None, file='a.bin', bytes=2)])['different'] == 1


def test_a_list_that_leads_elsewhere_is_refused(tmp_path):
    write_jsonl(tmp_path/'bad.lock', [row(file='../../x')])
    with pytest.raises(ValueError, match='row 1: expected the keys'): read_models_lock(str(tmp_path/'bad.lock'))
    with pytest.raises(FileNotFoundError, match='to verify'): verify(tmp_path/'nowhere')
