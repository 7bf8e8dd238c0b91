"""Getting the real data, against a local server with the misfortunes of real ones."""
import hashlib
import json
import multiprocessing
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from make_real_files import accept_multigen, FileServer, pack, write_coco_like
from test_bad_input import run

from tokencompose.core import read_jsonl, write_jsonl
from tokencompose.data import fetch as module
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.fetch import archive_source, download, extract, fetch, fetch_annotations, fetch_photos, FetchError
from tokencompose.data.fetch import COMPBENCH_URL, listed_photos, LOCK, multigen_sources, photo_sources, prompt_sources, Source, vsr_sources
from tokencompose.metrics.benchmarks import benchmark_prompts, for_benchmark, which_prompts
from tokencompose.metrics.compbench import CATEGORIES, read_compbench
from tokencompose.metrics.geneval import read_geneval
from tokencompose.metrics.multigen import read_prompts
from tokencompose.profiles import SD14

NOTEBOOK = 'data_prep/00_fetch.ipynb'
ZIP, PHOTO = 'annotations/annotations_trainval2017.zip', 'train2017/000000000025.jpg'
FAST = dict(threads=3, tries=4, wait=.01)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(module, '_BLOCK', 256)  # the files here are small: let a part hold some blocks


@pytest.fixture(scope='module')
def remote(tmp_path_factory):
    return write_coco_like(tmp_path_factory.mktemp('remote'))


@pytest.fixture
def server(remote, monkeypatch):
    accept_multigen(monkeypatch, remote)
    with FileServer(remote) as server: yield server


def sha256(path): return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_all(server, folder, image_list='', **options):
    "The steps of the notebook."
    options = FAST | options
    share = options.pop('max_missing', .01)
    if not image_list: fetch(folder, vsr_sources(f'{server.url}/vsr'), 'lists', **options)
    fetch_annotations(folder, archive_source(server.url, sha256(server.folder/ZIP)), **options)
    return fetch_photos(folder, image_list or folder/'vsr/random/train.jsonl', 2, server.url, share, **options)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.suffix != '.lock'}


@pytest.fixture
def whole(server, tmp_path):
    "What an untroubled run leaves."
    fetch_all(server, tmp_path/'whole')
    server.requests.clear()
    return contents(tmp_path/'whole')


def asked(server, path): return [wish for name, wish in server.requests if name == path]


# ---- nothing goes wrong

def test_read_coco_reads_what_was_fetched(server, remote, tmp_path):
    result = fetch_all(server, tmp_path/'data')
    assert (result['train'], result['val'], result['fetched'], result['missing'], result['listed_in_another_split']) == (6, 2, 8, [], 1)
    here, there = read_coco(tmp_path/'data', 'train2017', 'vsr/train.jsonl'), read_coco(remote, 'train2017', 'vsr/train.jsonl')
    assert here.images == there.images and here.classes == there.classes
    assert len(read_coco(tmp_path/'data', 'val2017', 'vsr/val.jsonl').images) == 2
    for image in here.images: assert (here.folder/image.file_name).read_bytes() == (there.folder/image.file_name).read_bytes()
    assert len(list((tmp_path/'data/train2017').iterdir())) == 6, 'only what the list names'
    counts = build_dataset(tmp_path/'set', here)
    assert counts['rows'] == 6 and counts['masked_nouns'] == 12
    assert set(contents(tmp_path/'data')) >= {'LICENCES.md', LOCK, 'missing.jsonl', 'vsr/random/test.jsonl'}
    assert not [name for name in contents(tmp_path/'data') if 'person' in name or name.endswith(('.zip', '.part', '.tag'))]


def test_the_lock_file_holds_every_file(server, tmp_path):
    fetch_all(server, tmp_path)
    rows = read_jsonl(tmp_path/LOCK)
    assert [row['path'] for row in rows] == sorted(row['path'] for row in rows)
    made_here = {LOCK, 'LICENCES.md', 'missing.jsonl', 'vsr/train.jsonl', 'vsr/val.jsonl'}
    for name in set(contents(tmp_path)) - made_here:
        row = next(row for row in rows if row['path'] == name)
        assert row['sha256'] == sha256(tmp_path/name) and row['bytes'] == (tmp_path/name).stat().st_size


def test_licences_are_counted(server, tmp_path):
    fetch_all(server, tmp_path)
    text = (tmp_path/'LICENCES.md').read_text()
    assert '| Attribution License | 4 |' in text and '| Attribution-NonCommercial-ShareAlike License | 4 |' in text
    assert all(name in text for name in ('CC BY 4.0', 'Apache-2.0', 'Flickr'))


def test_a_second_call_fetches_nothing(server, tmp_path):
    fetch_all(server, tmp_path)
    before = contents(tmp_path)
    server.requests.clear()
    assert fetch_all(server, tmp_path)['kept'] == 8
    assert server.requests == [] and contents(tmp_path) == before
    assert set(server.encodings) == {'identity'}, 'compressed on the way, bytes cannot be counted'


def test_the_authors_list_instead_of_vsr(server, remote, tmp_path):
    rows = read_jsonl(remote/'authors/metadata.jsonl')[2:4]
    write_jsonl(tmp_path/'metadata.jsonl', rows)
    assert fetch_all(server, tmp_path/'data', tmp_path/'metadata.jsonl')['train'] == 2
    coco = read_coco(tmp_path/'data', 'train2017', 'vsr/train.jsonl')
    assert [image.file_name for image in coco.images] == [row['file_name'] for row in rows]
    assert not any(path.startswith('vsr/') for path, _ in server.requests)


# ---- transfers that break

@pytest.mark.parametrize('path', [ZIP, PHOTO])
def test_a_broken_transfer_is_continued(server, whole, tmp_path, path):
    server.trouble[path] = [('cut', 700)]
    fetch_all(server, tmp_path/'data')
    assert contents(tmp_path/'data') == whole
    assert asked(server, path) == [None, 'bytes=512-']


def test_a_server_without_ranges_sends_all_again(remote, tmp_path):
    with FileServer(remote, ranges=False) as server:
        server.trouble = {PHOTO: [('cut', 700), ('cut', 900)]}
        fetch_all(server, tmp_path)
        assert asked(server, PHOTO) == [None, 'bytes=512-', 'bytes=768-']
    assert (tmp_path/PHOTO).read_bytes() == (remote/PHOTO).read_bytes()


def test_a_part_without_tag_is_continued_only_under_a_known_checksum(remote, tmp_path):
    with FileServer(remote, tags=False) as server:
        server.trouble = {PHOTO: [('cut', 700)], ZIP: [('cut', 700)]}
        fetch_all(server, tmp_path)
        assert asked(server, PHOTO) == [None, None]
        assert asked(server, ZIP) == [None, 'bytes=512-']
    assert (tmp_path/PHOTO).read_bytes() == (remote/PHOTO).read_bytes()


def test_a_file_that_changes_between_two_pieces(server, tmp_path):
    old, new = bytes(3000), bytes(range(256))*10
    (server.folder/'x.bin').write_bytes(old)
    server.trouble['x.bin'] = [('cut', 700)]
    with pytest.raises(FetchError): download(f'{server.url}/x.bin', tmp_path/'x', tries=1)
    (server.folder/'x.bin').write_bytes(new)
    download(f'{server.url}/x.bin', tmp_path/'x')
    (server.folder/'x.bin').unlink()
    assert asked(server, 'x.bin')[-1] == 'bytes=512-' and (tmp_path/'x').read_bytes() == new


def test_a_wrong_range_is_not_appended(server, tmp_path):
    server.trouble[PHOTO] = [('cut', 700), 'wrong range']
    download(f'{server.url}/{PHOTO}', tmp_path/'x', wait=.01)
    assert (tmp_path/'x').read_bytes() == (server.folder/PHOTO).read_bytes()


def test_a_part_that_is_complete_needs_no_byte(server, tmp_path):
    data = (server.folder/PHOTO).read_bytes()
    (tmp_path/'x.part').write_bytes(data)
    download(f'{server.url}/{PHOTO}', tmp_path/'x', known=True)
    assert asked(server, PHOTO) == [f'bytes={len(data)}-'] and (tmp_path/'x').read_bytes() == data


def test_a_part_of_another_file_is_thrown_away(server, tmp_path):
    "Its checksum shows it, and the whole file comes."
    (tmp_path/f'{PHOTO}.part').parent.mkdir()
    (tmp_path/f'{PHOTO}.part').write_bytes(bytes(500))
    source = Source(PHOTO, f'{server.url}/{PHOTO}', 'none', sha256(server.folder/PHOTO))
    fetch(tmp_path, [source], **FAST)
    assert asked(server, PHOTO) == ['bytes=500-', None]
    assert contents(tmp_path).keys() == {PHOTO, LOCK}


@pytest.mark.parametrize('status', [429, 500, 503])
def test_passing_trouble_passes(server, whole, tmp_path, status):
    server.trouble = {ZIP: [status], PHOTO: [status, status]}
    fetch_all(server, tmp_path/'data')
    assert contents(tmp_path/'data') == whole and len(asked(server, PHOTO)) == 3


def test_a_server_is_not_asked_again_before_it_wants(server, tmp_path):
    server.trouble[PHOTO], server.headers[503] = [503], {'Retry-After': '1'}
    start = time.monotonic()
    download(f'{server.url}/{PHOTO}', tmp_path/'x', wait=.01)
    assert time.monotonic() - start >= 1


def fetch_in_another_process(server, folder, path):
    "Start a run, wait until the server has sent a piece of `path` and hangs, kill it."
    server.trouble[path] = [('hang', 900)]
    process = multiprocessing.get_context('fork').Process(target=fetch_all, args=(server, folder))
    process.start()
    assert server.hanging.wait(120)
    time.sleep(.3)
    process.kill()
    process.join()


@pytest.mark.parametrize('path', [ZIP, PHOTO, 'val2017/000000000148.jpg', 'vsr/train.jsonl'])
def test_killed_and_resumed_gives_the_same_bytes(server, whole, tmp_path, path):
    fetch_in_another_process(server, tmp_path/'data', path)
    assert any(name.endswith('.part') for name in contents(tmp_path/'data'))
    server.requests.clear()
    fetch_all(server, tmp_path/'data')
    assert contents(tmp_path/'data') == whole
    assert asked(server, path) == ['bytes=768-'], 'the part was continued'


def test_killed_at_any_moment(server, whole, tmp_path):
    "Again and again, then left alone: the same files with the same bytes, and nothing left over."
    moments = np.random.default_rng(0)
    for n in range(12):
        for _ in range(3):
            process = multiprocessing.get_context('fork').Process(target=fetch_all, args=(server, tmp_path/str(n)))
            process.start()
            time.sleep(moments.uniform(0, .08))
            process.kill()
            process.join()
        fetch_all(server, tmp_path/str(n))
        assert contents(tmp_path/str(n)) == whole


def test_killed_while_unpacking(server, whole, tmp_path, monkeypatch):
    "The archive is there, one file is half unpacked, the lock file knows of neither."
    def unpack(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, '_unpack', unpack)
        fetch_all(server, tmp_path/'data')
    (tmp_path/'data/annotations').mkdir()
    (tmp_path/'data/annotations/captions_train2017.json.part').write_text('{"ima')
    (tmp_path/'data'/LOCK).unlink()
    server.requests.clear()
    fetch_all(server, tmp_path/'data')
    assert contents(tmp_path/'data') == whole and not asked(server, ZIP)


def test_trouble_that_does_not_pass(server, tmp_path):
    server.trouble[PHOTO] = [500]*3
    with pytest.raises(FetchError, match='500; 3 tries'): download(f'{server.url}/{PHOTO}', tmp_path/'x', tries=3, wait=.01)
    def wrong(part): raise ValueError('wrong content')
    with pytest.raises(ValueError, match='wrong content'): download(f'{server.url}/{PHOTO}', tmp_path/'x', wrong)
    assert contents(tmp_path) == {}


# ---- the lock file

@pytest.fixture
def photos(server, tmp_path):
    "Some photos that have come, and their sources."
    names = [p.relative_to(server.folder).as_posix() for p in sorted((server.folder/'train2017').iterdir())][:4]
    sources = [Source(name, f'{server.url}/{name}', 'none') for name in names]
    fetch(tmp_path, sources, **FAST)
    return sources


def test_killed_before_the_lock_file_was_written(photos, tmp_path):
    before = (tmp_path/LOCK).read_bytes()
    (tmp_path/LOCK).unlink()
    assert fetch(tmp_path, photos, **FAST)['kept'] == 4
    assert (tmp_path/LOCK).read_bytes() == before


def test_how_many_may_be_lost(server, photos, tmp_path):
    sources = [*photos, Source('train2017/none.jpg', f'{server.url}/train2017/none.jpg', 'none')]
    assert [row['path'] for row in fetch(tmp_path, sources, max_missing=.2, **FAST)['missing']] == ['train2017/none.jpg']
    with pytest.raises(FetchError, match=r'1 of 5 files are lost, more than the 10.0% allowed'): fetch(tmp_path, sources, max_missing=.1, **FAST)


def test_a_photo_of_another_size(server, tmp_path):
    source = Source(PHOTO, f'{server.url}/{PHOTO}', 'none', size=(30, 43))
    with pytest.raises(FetchError, match=r'pixels, its annotation says 43x30'): fetch(tmp_path, [source], max_missing=.2, **FAST)
    assert not (tmp_path/PHOTO).exists()


# ---- files that are wrong

def test_wrong_checksum(server, tmp_path):
    with pytest.raises(FetchError, match='came with the SHA-256 .* where 0{16}… is published: it was removed'):
        fetch_annotations(tmp_path, archive_source(server.url, '0'*64), **FAST)
    assert contents(tmp_path).keys() == {LOCK} and read_jsonl(tmp_path/LOCK) == []


def test_an_archive_that_came_unchecked_is_checked_later(server, tmp_path):
    fetch_annotations(tmp_path, archive_source(server.url, 'any'), **FAST)
    with pytest.raises(FetchError, match='came with the SHA-256'): fetch_annotations(tmp_path, archive_source(server.url, '0'*64), **FAST)
    assert fetch_annotations(tmp_path, archive_source(server.url, sha256(server.folder/ZIP)), **FAST)['kept'] == 4
    assert len(asked(server, ZIP)) == 2


def test_a_file_that_the_server_exchanges_is_refused(server, tmp_path):
    fetch_all(server, tmp_path)
    (tmp_path/PHOTO).unlink()
    server.trouble[PHOTO] = [(server.folder/PHOTO).read_bytes() + b'more']
    with pytest.raises(FetchError, match='recorded in fetch.lock.jsonl'): fetch_all(server, tmp_path)
    assert not (tmp_path/PHOTO).exists()


@pytest.mark.parametrize('damage', ['truncated', 'page', 'other size', 'empty'])
def test_a_photo_that_is_none(server, tmp_path, damage):
    "It is removed and named, all others are there, and the next run has it."
    good = (server.folder/PHOTO).read_bytes()
    bad = {'truncated': good[:-200], 'page': b'<html>try later</html>', 'other size': (server.folder/'train2017/000000000041.jpg').read_bytes(), 'empty': b''}[damage]
    server.trouble[PHOTO] = [bad]
    with pytest.raises(FetchError, match=r'1 of 8 photos did not come: .*000000000025') as caught: fetch_all(server, tmp_path, max_missing=.2)
    assert 'run again' in str(caught.value)
    assert not (tmp_path/PHOTO).exists() and len(list((tmp_path/'train2017').iterdir())) == 5
    fetch_all(server, tmp_path)
    assert (tmp_path/PHOTO).read_bytes() == good


def test_damage_on_this_side_is_repaired(server, whole, tmp_path):
    fetch_all(server, tmp_path/'data')
    for name in (PHOTO, 'annotations/captions_train2017.json', 'vsr/random/dev.jsonl'): (tmp_path/'data'/name).write_bytes(b'x')
    fetch_all(server, tmp_path/'data')
    assert contents(tmp_path/'data') == whole


@pytest.mark.parametrize('status', [404, 403])
def test_a_missing_photo_is_listed_and_left_out(server, tmp_path, status):
    server.trouble[PHOTO] = [status]*2
    assert [row['path'] for row in fetch_all(server, tmp_path, max_missing=.2)['missing']] == [PHOTO]
    row, = read_jsonl(tmp_path/'missing.jsonl')
    assert row['path'] == PHOTO and str(status) in row['reason']
    assert 25 not in [image.id for image in read_coco(tmp_path, 'train2017', 'vsr/train.jsonl').images]
    assert '| Attribution License | 3 |' in (tmp_path/'LICENCES.md').read_text()
    server.requests.clear()
    with pytest.raises(FetchError, match=r'1 of 8 photos are lost, more than the 1.0% allowed'): fetch_all(server, tmp_path)
    assert fetch_all(server, tmp_path)['missing'] == [], 'it is there now'
    assert read_jsonl(tmp_path/'missing.jsonl') == [] and 25 in [image.id for image in read_coco(tmp_path, 'train2017', 'vsr/train.jsonl').images]


def test_a_dead_server_ends_the_run_early(server, tmp_path):
    fetch(tmp_path, vsr_sources(f'{server.url}/vsr'), **FAST)
    fetch_annotations(tmp_path, archive_source(server.url, 'any'), **FAST)
    server.requests.clear()
    server.trouble = {f'train2017/{9 + 16*i:012d}.jpg': [500]*9 for i in range(6)}
    with pytest.raises(FetchError, match='are lost, more than .*the server says 500; 2 tries'): fetch_photos(tmp_path, tmp_path/'vsr/random/train.jsonl', 2, server.url, threads=1, tries=2, wait=.01)
    assert len(server.requests) <= 4, 'the others were not tried'
    with pytest.raises(FetchError, match='does not come .*refused'): download('http://127.0.0.1:9/x', tmp_path/'x', tries=2, wait=.01)


def test_a_list_of_another_data_set(server, tmp_path):
    write_jsonl(tmp_path/'ids.jsonl', [dict(file_name='000000000025.jpg'), dict(file_name='000000000026.jpg')])
    with pytest.raises(ValueError, match=r"1 of 2 images are not in .*captions_train2017.json, the first is '000000000026.jpg'"): fetch_all(server, tmp_path/'data', tmp_path/'ids.jsonl')


def test_an_annotation_file_cannot_name_a_path(server, tmp_path):
    fetch_annotations(tmp_path, archive_source(server.url, 'any'), **FAST)
    path = tmp_path/'annotations/captions_val2017.json'
    path.write_text(path.read_text().replace('"000000000148.jpg"', '"../../000000000148.jpg"'))
    with pytest.raises(ValueError, match=r"the first is '../../000000000148.jpg'"): fetch_photos(tmp_path, server.folder/'vsr/train.jsonl', 2, server.url)


def test_an_archive_that_leads_out_of_the_folder(remote, tmp_path):
    bad = write_coco_like(tmp_path/'bad', n=3, val=1)
    pack(bad, **{'../../escaped.txt': 'x'})
    with FileServer(bad) as server, pytest.raises(ValueError, match="holds '../../escaped.txt', which leads out"):
        fetch_annotations(tmp_path/'a/b/data', archive_source(server.url, 'any'), **FAST)
    assert not list(tmp_path.rglob('escaped.txt')) and not (tmp_path/'a/b/data/annotations').exists()


def zipped(path, *members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, text in members: z.writestr(name, text)
    return path


LINK = zipfile.ZipInfo('a/link')
LINK.external_attr = 0o120777 << 16


@pytest.mark.parametrize('bad', ['/etc/x', '../x', 'a/../../x', r'a\..\x', 'C:/x', LINK])
def test_a_member_that_leads_out_of_the_folder(tmp_path, bad):
    archive = zipped(tmp_path/'a.zip', ('a/two.json', '[3]'), (bad, '/etc/passwd'))
    with pytest.raises(ValueError, match='nothing was taken'): extract(archive, ['a/two.json'], tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_an_archive_that_is_not_the_one_meant(tmp_path):
    archive = zipped(tmp_path/'a.zip', ('a/two.json', '[3]'*99))
    with pytest.raises(ValueError, match='a/three.json not at all'): extract(archive, ['a/three.json'], tmp_path/'out')
    broken = bytearray(archive.read_bytes())
    broken[45] ^= 255
    archive.write_bytes(broken)
    with pytest.raises(ValueError, match='cannot be unpacked'): extract(archive, ['a/two.json'], tmp_path/'out')
    with pytest.raises(ValueError, match='more than the 1 allowed'):
        extract(zipped(tmp_path/'b.zip', ('bomb', bytes(5_000_000))), ['bomb'], tmp_path/'out', 10**6)
    assert not list(tmp_path.glob('out/**/*.json'))


# ---- which photos

def test_lists_of_photos(tmp_path):
    write_jsonl(tmp_path/'ids.jsonl', [dict(file_name=f'{i:012d}.jpg', text='a', attn_list=[]) for i in (8, 7, 8)])
    assert listed_photos(tmp_path/'ids.jsonl') == (['000000000008.jpg', '000000000007.jpg'], 0)
    write_jsonl(tmp_path/'ids.jsonl', [dict(file_name='../x.jpg')])
    with pytest.raises(ValueError, match='row 1: .*twelve digits'): listed_photos(tmp_path/'ids.jsonl')


def test_photos_of_another_split(server, tmp_path):
    fetch_annotations(tmp_path, archive_source(server.url, 'any'), **FAST)
    with pytest.raises(ValueError, match='1 of 1 images are not in'): photo_sources(tmp_path, 'val2017', ['000000000001.jpg'])


# ---- the notebook

def given(server, **more): return dict(profile='sd14', coco_url=server.url, vsr_url=f'{server.url}/vsr', **{f'{name}_url': f'{server.url}/{name}' for name in ('multigen', 'compbench', 'geneval')}, annotations_sha256=sha256(server.folder/ZIP), val_images=2, threads=3, wait=.01) | more


def test_the_notebook_fetches(server, tmp_path):
    run(NOTEBOOK, tmp_path, **given(server))
    files = contents(tmp_path/'out')
    assert {'provenance.json', 'photos.png', 'vsr/train.jsonl', 'LICENCES.md'} <= set(files)
    assert [row['category'] for row in read_compbench(tmp_path/'out'/'compbench')][::3] == list(CATEGORIES) and len(read_geneval(tmp_path/'out'/'geneval'/'evaluation_metadata.jsonl')) == 18
    assert json.loads(files['provenance.json'])['counts']['fetched'] == 8
    server.requests.clear()
    run(NOTEBOOK, tmp_path, **given(server))
    assert server.requests == []


def test_the_notebook_with_the_authors_list(server, tmp_path):
    run(NOTEBOOK, tmp_path, **given(server, image_list=str(server.folder/'authors/metadata.jsonl'), profile='sd21'))
    assert len(read_jsonl(tmp_path/'out/vsr/train.jsonl')) == 6 and not (tmp_path/'out/vsr/random').exists()


def test_the_notebook_fetches_what_fid_compares_with(server, tmp_path):
    "On top of an earlier run, over a line that breaks: then the captions of the benchmark find their pictures, and before they do not."
    fid, photos = for_benchmark(SD14, 'coco_captions', 4), lambda: {p.name for p in (tmp_path/'out/val2017').iterdir()}
    run(NOTEBOOK, tmp_path, **given(server, val_images=1))
    assert photos() == {'000000000148.jpg'}
    with pytest.raises(FileNotFoundError, match='2 of the 2 reference pictures are missing'): benchmark_prompts('coco_captions', fid, tmp_path/'out')
    held_out, licences = (tmp_path/'out/vsr/val.jsonl').read_bytes(), (tmp_path/'out/LICENCES.md').read_text()
    server.requests.clear()
    server.trouble['val2017/000000000164.jpg'] = [('cut', 700)]
    run(NOTEBOOK, tmp_path, **given(server, val_images=1, coco_captions=4))
    rows = benchmark_prompts('coco_captions', fid, tmp_path/'out')
    assert photos() == {row['image'] for row in rows} | {'000000000148.jpg'} and len(rows) == 4
    assert asked(server, 'val2017/000000000164.jpg') == [None, 'bytes=512-'] and asked(server, 'val2017/000000000180.jpg') == [None] and len(server.requests) == 3
    assert {row['path'] for row in read_jsonl(tmp_path/'out'/LOCK)} >= {f'val2017/{name}' for name in photos()}
    assert (tmp_path/'out/vsr/val.jsonl').read_bytes() == held_out and (tmp_path/'out/LICENCES.md').read_text() != licences
    (tmp_path/'out/val2017/000000000180.jpg').write_bytes(b'x')
    server.requests.clear()
    run(NOTEBOOK, tmp_path, **given(server, val_images=1, coco_captions=4))
    assert server.requests == [('val2017/000000000180.jpg', None)], 'only the damaged one comes again'
    with pytest.raises(ValueError, match='has 15 captions, 10000 were asked for'): run(NOTEBOOK, tmp_path, **given(server, val_images=1, coco_captions=-1))


def test_multigen_is_of_the_authors_files(server, tmp_path, monkeypatch):
    "Fetched, checked, used at the paper's profiles; a file that is another one is refused wherever it comes from."
    run(NOTEBOOK, tmp_path, **given(server))
    data = tmp_path/'out'
    rows = benchmark_prompts('multigen_ade20k', for_benchmark(SD14, 'multigen_ade20k', 2), data)
    assert rows == read_prompts(server.folder/'multigen'/'ade20k_obj_comp_5_1k.json')[:2]
    assert which_prompts('multigen_ade20k', rows, data) == which_prompts('multigen_ade20k', rows[:2], data) and which_prompts('multigen_ade20k', rows, data)['published']
    assert not which_prompts('multigen_coco', rows, data)['published'] and not which_prompts('multigen_ade20k', rows[1:], data)['published']
    drawn = benchmark_prompts('multigen_ade20k', for_benchmark(SD14.replace(prompt_source='drawn'), 'multigen_ade20k', 2), data)
    assert not which_prompts('multigen_ade20k', drawn, data)['published']
    with pytest.raises(ValueError, match='ask for 5 things, not 3'): benchmark_prompts('multigen_coco', for_benchmark(SD14, 'multigen_coco', 2), data, objects=3)
    monkeypatch.undo()
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    assert not which_prompts('multigen_ade20k', rows, data)['published'], 'the invented file is not the published one'
    with pytest.raises(FetchError, match='_obj_comp_5_1k.json came with the SHA-256 .* where [0-9a-f]{16}… is published'): fetch(tmp_path/'new', multigen_sources(f'{server.url}/multigen'), 'prompts', **FAST)


def test_drawn_scenes_are_not_fetched(server, tmp_path):
    with pytest.raises(ValueError, match='the data of mini are drawn scenes, which data_prep/00_scenes.ipynb makes: run that one, or choose sd14 or sd21 here'): run(NOTEBOOK, tmp_path, **given(server, profile='mini'))
    assert server.requests == [] and not (tmp_path/'out').exists()


@pytest.mark.parametrize('params, sentence', [
    (dict(coco_url='ftp://host/coco'), 'begins with http:// or https://'),
    (dict(annotations_sha256='abc'), 'is not a SHA-256'),
    (dict(image_list='nowhere.jsonl'), 'no list of images'),
])
def test_wrong_parameters(server, tmp_path, params, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): run(NOTEBOOK, tmp_path, **given(server, **params))


def test_a_folder_of_drawn_scenes_is_not_touched(server, tmp_path):
    (tmp_path/'out').mkdir()
    (tmp_path/'out/settings.json').write_text('{"step": "scenes"}')
    with pytest.raises(ValueError, match='other settings'): run(NOTEBOOK, tmp_path, **given(server))
    assert server.requests == []


def test_addresses_and_checksums_that_are_none():
    assert archive_source(sha256='any').sha256 == ''
    with pytest.raises(ValueError, match='http://'): vsr_sources('data/vsr')
    with pytest.raises(ValueError, match='64 digits'): archive_source(sha256='113a')


def test_the_published_checksum_and_addresses():
    source = archive_source()
    assert source.sha256.startswith('113a836d90195ee1') and source.bytes == 252_907_541 and source.url == 'https://s3.amazonaws.com/images.cocodataset.org/annotations/annotations_trainval2017.zip'
    assert all(s.url.startswith('https://') and '/master/' not in s.url for s in vsr_sources())
    assert (ROOT/NOTEBOOK).is_file()


# ---- prompts of the other benchmarks

def test_prompt_lists_come_from_named_commits_and_one_is_checked():
    sources = prompt_sources()
    assert all(len(source.url.split('/')[5]) == 40 for source in sources) and len({source.path for source in sources}) == 9
    assert [source.path for source in sources if source.sha256] == ['compbench/color_val.txt']
    assert not [source for source in prompt_sources('http://mirror') if source.sha256], 'a mirror may hold another edition'


def test_a_prompt_list_that_is_not_the_published_one(server, tmp_path):
    sources = [Source('compbench/color_val.txt', f'{server.url}/compbench/color_val.txt', 'MIT', prompt_sources()[0].sha256)]
    with pytest.raises(FetchError, match='where 1634259756dbc77d… is published'): fetch(tmp_path, sources, **FAST)
    assert not (tmp_path/'compbench'/'color_val.txt').exists() and 'T2I-CompBench' in COMPBENCH_URL
