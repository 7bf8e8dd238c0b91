"""Edges of the small tools: wrong input is named, nothing half-written stays, settings refuse."""
import dataclasses
import io
import os
import time

import numpy as np
import pytest

from tokencompose import core
from tokencompose.core import (atomic_path, content_sha256, differences, file_sha256, in_parallel, key_to_int, keyed_randn,
                               keyed_rng, process_share, Progress, provenance, read_json, read_jsonl, repo_root, resolve,
                               SampleOrder, Settings, some_of, write_json, write_jsonl, write_text)


@dataclasses.dataclass(frozen=True)
class Toy(Settings):
    steps: int = 3
    lr: float = 1e-3
    fast: bool = False
    layers: tuple = ()


@pytest.mark.parametrize('part', ['.', 'nbs', 'nbs/0_base', 'nbs/8_studies', 'tests'])
def test_the_root_is_found_from_any_depth(part, monkeypatch):
    root = repo_root()
    monkeypatch.chdir(root/part)
    assert repo_root() == root and resolve('runs/x') == root/'runs'/'x'


def test_the_root_is_found_from_the_installed_package(tmp_path, monkeypatch):
    root = repo_root()
    monkeypatch.chdir(tmp_path)
    assert repo_root() == root


def test_keys_do_not_run_together():
    assert key_to_int(1, 23) != key_to_int(12, 3)
    assert key_to_int('1') != key_to_int(1)
    assert key_to_int(0, 'a') == key_to_int(np.int64(0), 'a')
    assert 0 <= key_to_int('x') < 2**63


def test_numbers_that_belong_to_a_key_are_what_they_were():
    "A change here changes every result of the project."
    assert key_to_int(0, 'noise', 7) == 2619167260764136879
    assert keyed_rng(0, 'order').integers(0, 1000, 4).tolist() == [393, 601, 419, 916]
    assert keyed_randn([(0, 'noise', 7)], (2,))[0].tolist() == pytest.approx([.2092, .3936], abs=1e-4)
    assert [SampleOrder(5, 0)[i] for i in range(10)] == [1, 0, 4, 2, 3, 3, 0, 2, 4, 1]


def test_an_empty_data_set_has_no_order():
    with pytest.raises(ValueError, match='expected a data set of one row or more, got 0'): SampleOrder(0, 0)


def test_process_share(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE'): monkeypatch.delenv(name, raising=False)
    assert process_share() == (0, 1)
    monkeypatch.setenv('RANK', '2')
    monkeypatch.setenv('WORLD_SIZE', '4')
    assert process_share() == (2, 4)


def test_in_parallel_keeps_the_order_and_passes_errors_on():
    assert list(in_parallel(str, range(100), chunk=7)) == [str(i) for i in range(100)]
    assert list(in_parallel(str, iter([]))) == []
    with pytest.raises(ZeroDivisionError): list(in_parallel(lambda x: 1/x, [1, 0]))


@pytest.mark.parametrize('sync', [True, False])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, sync):
    path = tmp_path/'a'/'rows.jsonl'
    write_jsonl(path, [{'noun': 'cat'}, {'noun': 'dog'}])
    with pytest.raises(KeyError), atomic_path(path, sync) as temporary:
        temporary.write_text('half')
        raise KeyError
    assert len(read_jsonl(path)) == 2
    assert [p.name for p in path.parent.iterdir()] == ['rows.jsonl']


def test_a_broken_file_is_named(tmp_path):
    (tmp_path/'a.json').write_text('{"a": 1,\n')
    with pytest.raises(ValueError, match=r'a\.json is not valid JSON \(line 2.*delete it'): read_json(tmp_path/'a.json')
    (tmp_path/'a.jsonl').write_text('{"a": 1}\n\n{"a":')
    with pytest.raises(ValueError, match='a.jsonl, row 3: not valid JSON .*expected JSON lines, one object a line, or one JSON array'): read_jsonl(tmp_path/'a.jsonl')
    (tmp_path/'deep.json').write_text('['*100_000)
    with pytest.raises(ValueError, match='deep.json is not valid JSON'): read_json(tmp_path/'deep.json')
    (tmp_path/'latin.json').write_bytes('"é"'.encode('latin-1'))
    with pytest.raises(ValueError, match='latin.json is not UTF-8 text .byte 1.: save it as UTF-8'): read_json(tmp_path/'latin.json')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('text', ['[{"a": "é"}, {"a": 2}]', '[\n {"a": "é"},\n {"a": 2}\n]', '{"a": "é"}\n\n{"a": 2}\n', '{"a": "é"}\r\n{"a": 2}', '{"a": "é"}\r{"a": 2}\r'])
def test_lists_as_editors_save_them(tmp_path, encoding, text):
    mark = {'utf-16-le': b'\xff\xfe', 'utf-16-be': b'\xfe\xff'}.get(encoding, b'')
    (tmp_path/'a.jsonl').write_bytes(mark + text.encode(encoding))
    assert read_jsonl(tmp_path/'a.jsonl') == [dict(a='é'), dict(a=2)]
    if text[0] == '[': assert read_json(tmp_path/'a.jsonl') == [dict(a='é'), dict(a=2)]


def test_arrays_one_a_line(tmp_path):
    (tmp_path/'a.jsonl').write_text('[1, 2]\n[3]\n')
    assert read_jsonl(tmp_path/'a.jsonl') == [[1, 2], [3]]
    (tmp_path/'a.jsonl').write_text('[{"a": 1},\n {"a": ]')
    with pytest.raises(ValueError, match='a.jsonl is not valid JSON .*line 2'): read_jsonl(tmp_path/'a.jsonl')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TOKENCOMPOSE_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'digests.jsonl'


def grown_up(path, monkeypatch, seconds=3):
    "As if the file had been written some seconds ago."
    now = time.time_ns
    monkeypatch.setattr(time, 'time_ns', lambda: now() + seconds*10**9)


def test_a_digest_is_taken_once_and_again_when_the_file_changed(tmp_path, cache, monkeypatch):
    path, read = tmp_path/'photo', []
    monkeypatch.setattr(core, 'file_sha256', lambda p: read.append(p) or file_sha256(p))
    path.write_text('a cat')
    for _ in range(2): assert content_sha256(path) == file_sha256(path)
    assert len(read) == 2 and not cache.exists(), 'a young file may change within the tick of a clock'
    grown_up(path, monkeypatch)
    for _ in range(3): content_sha256(path)
    assert len(read) == 3 and len(cache.read_text().splitlines()) == 1
    core._kept.cache_clear()                                        # another process
    assert content_sha256(path) == file_sha256(path) and len(read) == 3
    old = path.stat()
    path.write_text('a dog')
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))           # of the same size, and by its date as old as before
    assert content_sha256(path) == file_sha256(path) and len(read) == 4
    (tmp_path/'other').write_text('a cow')
    (tmp_path/'other').replace(path)
    assert content_sha256(path) == file_sha256(path)


def test_a_store_of_digests_that_is_damaged_or_cannot_be_written(tmp_path, cache, monkeypatch):
    path = tmp_path/'photo'
    path.write_text('a cat')
    grown_up(path, monkeypatch)
    cache.parent.mkdir()
    cache.write_text('["half a line\nrubbish\n[1]\n')
    assert content_sha256(path) == file_sha256(path)
    core._kept.cache_clear()
    cache.unlink(); cache.parent.rmdir(); cache.parent.write_text('a file where the folder should be')
    assert content_sha256(path) == file_sha256(path)


def test_differences_in_words():
    assert differences(dict(a=1, b=[1]), dict(a=1, b=[1], c=None)) == []
    long = 'f9a0'*16
    assert differences(dict(models=dict(sam=long + 'x', dino='1')), dict(models=dict(sam=long + 'y', dino='1'))) == [f"models.sam: …{(long + 'x')[-14:]}' there, …{(long + 'y')[-14:]}' now"]
    first, second = (f'5 with digest {n}' for n in (1234567890123456789, 1234567890123456788))
    shown, = differences(dict(items=first), dict(items=second))
    assert shown.split(' there, ')[0].removeprefix('items: ') != shown.split(' there, ')[1].removesuffix(' now')


@pytest.mark.parametrize('rank, world', [('x', '2'), ('2', '2'), ('-1', '1'), ('0', '0')])
def test_a_share_that_is_none(monkeypatch, rank, world):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('WORLD_SIZE', world)
    with pytest.raises(ValueError, match='unset both to work alone'): process_share()


def test_json_keeps_order_letters_and_odd_line_ends(tmp_path):
    write_json(tmp_path/'a.json', dict(b=1, a='猫'))
    assert list(read_json(tmp_path/'a.json')) == ['b', 'a'] and '猫' in (tmp_path/'a.json').read_text(encoding='utf-8')
    rows = [dict(caption='one\u2028line'), dict(caption='another')]
    write_jsonl(tmp_path/'a.jsonl', rows)
    assert read_jsonl(tmp_path/'a.jsonl') == rows


def test_provenance_takes_more():
    record = provenance(dict(steps=2), [repo_root()/'settings.ini'], seconds=.1, judge='owlv2')
    assert set(record) == {'commit', 'params', 'versions', 'inputs', 'device', 'seconds', 'judge'}


def test_progress_prints_a_line_an_update():
    out = io.StringIO()
    bar = Progress(3, 'encode', 'image', every=0, file=out)
    for _ in range(3): bar.update(note='loss 0.1')
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and all(line.endswith(', loss 0.1') for line in lines)
    assert 'left' in lines[0] and 'left' not in lines[-1] and 'took 0:0' in lines[-1]


def test_progress_rests_between_lines_but_says_the_last():
    out = io.StringIO()
    bar = Progress(5, 'encode', every=1000, file=out)
    for _ in range(5): bar.update()
    assert out.getvalue().startswith('encode: 5/5 items, ') and out.getvalue().count('\n') == 1


def test_settings_check_names_and_types():
    assert Toy.from_params(dict(lr=1, layers=[8])).to_dict() == dict(steps=3, lr=1., fast=False, layers=(8,))
    with pytest.raises(TypeError, match="fast: expected bool, got 'false' .*papermill"): Toy(fast='false')
    with pytest.raises(TypeError, match='steps: expected int, got True'): Toy(steps=True)
    with pytest.raises(ValueError, match="Unknown parameter 'step', did you mean 'steps'"): Toy.from_params(dict(step=3))
    with pytest.raises(ValueError, match='known are fast, layers, lr, steps'): Toy.from_params(dict(zzz=3))


def test_some_of():
    assert some_of([]) == ''
    assert some_of(range(5)) == '0, 1, 2, 3, 4'
    assert some_of(iter(range(7)), 2) == '0, 1 and 5 more'


@pytest.mark.parametrize('below', ['', 'deeper'])
def test_a_file_where_a_folder_should_be(tmp_path, below):
    (tmp_path/'out').write_text('x')
    with pytest.raises(NotADirectoryError, match='cannot be made, since a file is in its place: name another, or move the file'): write_text(tmp_path/'out'/below/'a.txt', 'a')
