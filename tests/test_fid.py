"From pictures to a Frechet distance: extractors, features on disk, captions, interruptions and damaged folders."
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from make_real_models import write_inception
from test_bad_input import run
from test_toy_runs import write_pipeline
from tokencompose.core import file_sha256, read_json, repo_root, write_json
from tokencompose.data.world_files import write_world
from tokencompose.metrics import fid
from tokencompose.metrics.frechet import distance_of, Moments
from tokencompose.metrics.fid import ClipImages, coco_captions, file_features, flickr_captions, frechet_result
from tokencompose.metrics.fid import Inception, load_extractor, new_inception, prepared, read_pairs
from tokencompose.reporting.results import load_results

SAMPLE, EVALUATE = 'nbs/sample.ipynb', 'nbs/evaluate.ipynb'
CLIP = repo_root()/'tokencompose/zoo/clip'


# ---- Inception from a file

def test_the_layout_is_as_large_as_the_published_file():
    size = sum(value.numel()*value.element_size() for value in new_inception().state_dict().values())
    assert 0 < 95_628_359 - size < 200_000                                           # the file also holds its index


def test_an_extractor_that_nobody_knows(tmp_path):
    with pytest.raises(ValueError, match="got 'vgg'"): load_extractor('vgg', tmp_path)
    (tmp_path/'weights.pth').write_bytes(b'no weights')
    with pytest.raises(ValueError, match='not the weights that FID is defined by'): Inception(tmp_path/'weights.pth')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp('weights')/'inception.pth')


def test_inception_features(weights):
    extractor, rng = Inception(weights, 'cpu', file_sha256(weights)), np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((64, 64), (40, 90), (300, 280))]
    together = extractor.features(pictures)
    assert together.shape == (3, 2048) and together.std() > 1e-3
    for picture, row in zip(pictures, together):
        torch.testing.assert_close(extractor.features([picture])[0], row, rtol=1e-4, atol=1e-4)
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()/255
        x = torch.nn.functional.interpolate(x, size=(299, 299), mode='bilinear', align_corners=False)*2 - 1
        with torch.no_grad(): torch.testing.assert_close(extractor.net(x)[0], row, rtol=1e-4, atol=1e-4)
    assert extractor.record['weights_sha256'] == file_sha256(weights) and 'no antialiasing' in extractor.record['resize']


def test_other_weights_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match='not the weights that FID is defined by'): Inception(weights, 'cpu')
    torch.save(dict(weight=Image.new('RGB', (2, 2))), tmp_path/'pickle.pth')         # not only tensors
    with pytest.raises(Exception, match='holds more than numbers'): Inception(tmp_path/'pickle.pth', 'cpu', file_sha256(tmp_path/'pickle.pth'))


def test_only_inception_is_called_fid(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(fid, 'frechet_interval', lambda *args: (1., .5, 1.5, .25, dict(a=0., b=2.)))  # slow at 2,048 features, and tested elsewhere
    write_world(tmp_path/'world', 1, 4)
    rows, real = flickr_captions(tmp_path/'world/flickr30k'), tmp_path/'world/flickr30k/flickr30k-images'
    drawn = tmp_path/'drawn'
    drawn.mkdir()
    for i, row in enumerate(rows): Image.open(real/row['image']).rotate(90*(i + 1)).save(drawn/f'{row["unique_id"]}_0.png')
    for number, (extractor, names) in enumerate([(Inception(weights, 'cpu', file_sha256(weights)), {'FID', 'KID'}), (ClipImages(CLIP, 'cpu'), {'FD', 'KD'})]):
        result = frechet_result(extractor, drawn, rows, real, tmp_path/f'features {number}', tmp_path/f'references {number}')
        assert set(result['values']) == names and result['judge'].startswith('Inception' if number == 0 else 'CLIP')


# ---- features on disk

@pytest.fixture(scope='module')
def clip(): return ClipImages(CLIP, 'cpu')


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(1)
    paths = [tmp_path/'pictures'/f'{i}.png' for i in range(14)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths): Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize([(64, 64), (90, 64), (70, 120)][i % 3]).save(path)
    return paths


def test_a_killed_extraction_goes_on(clip, pictures, tmp_path, monkeypatch):
    whole, saved, save = file_features(clip, pictures, tmp_path/'whole', 64), [], fid.save_tensors
    def failing(path, entries):
        if len(saved) == 2: raise OSError('No space left on device')
        saved.append(path)
        save(path, entries)
    with monkeypatch.context() as patch:
        patch.setattr(fid, 'save_tensors', failing)
        with pytest.raises(OSError, match='No space'): file_features(clip, pictures, tmp_path/'part', 64, batch=2, part=2)
    looked, features = [], clip.features
    monkeypatch.setattr(clip, 'features', lambda images: looked.append(len(images)) or features(images))
    np.testing.assert_allclose(file_features(clip, pictures, tmp_path/'part', 64, batch=3), whole, atol=1e-5)
    assert sum(looked) == 11, 'four of fourteen were filed before; the fourth is looked at with its batch'
    file_features(clip, pictures, tmp_path/'part', 64)
    assert sum(looked) == 11


def test_two_processes_at_once(clip, pictures, tmp_path):
    whole = file_features(clip, pictures, tmp_path/'whole')
    code = ('import sys; from pathlib import Path; from tokencompose.metrics.fid import ClipImages, file_features\n'
            'try: file_features(ClipImages(sys.argv[1], "cpu"), sorted(Path(sys.argv[2]).glob("*.png")), sys.argv[3], batch=3, part=3, share=(1, 2))\n'
            'except ValueError as error: assert "still to be looked at" in str(error), error\n')
    with subprocess.Popen([sys.executable, '-c', code, str(CLIP), str(tmp_path/'pictures'), str(tmp_path/'both')], cwd=repo_root()) as other:
        with pytest.raises(ValueError, match='[2-9] of 14 pictures are still to be looked at'): file_features(clip, pictures, tmp_path/'both', batch=3, part=3, share=(0, 2))
        assert other.wait(timeout=300) == 0
    def refuse(images): raise AssertionError('nothing is left to look at')
    done = ClipImages(CLIP, 'cpu')
    done.features = refuse
    np.testing.assert_allclose(file_features(done, pictures, tmp_path/'both'), whole, atol=1e-5)


def test_a_damaged_part_is_named(clip, pictures, tmp_path):
    file_features(clip, pictures, tmp_path/'features')
    part, = (tmp_path/'features').glob('part-*')
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match=part.name): file_features(clip, pictures, tmp_path/'features')
    with pytest.raises(ValueError, match='made in another way .*prepared 0 there, 32 now'): file_features(clip, pictures, tmp_path/'features', 32)


def test_wrong_pictures_are_named(clip, pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match='1 of 2 pictures are missing, make nowhere.png first'):
        file_features(clip, [pictures[0], 'nowhere.png'], tmp_path/'features')
    with pytest.raises(ValueError, match='expected pictures to compare'): file_features(clip, [], tmp_path/'features')
    (tmp_path/'cut.png').write_bytes(pictures[0].read_bytes()[:150])
    with pytest.raises(ValueError, match='cut.png cannot be read'): file_features(clip, [tmp_path/'cut.png'], tmp_path/'features')


def test_prepared_sizes():
    wide = Image.fromarray(np.arange(20*30*3, dtype=np.uint8).reshape(20, 30, 3))
    assert [prepared(wide, side).size for side in (0, 10, 64)] == [(30, 20), (10, 10), (64, 64)]


# ---- captions

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, 1, 12)
    return folder


def test_captions_of_coco(world, tmp_path):
    path = world/'annotations/captions_val2017.json'
    drawn, notes = coco_captions(path, 40), read_json(path)['annotations']
    texts = {note['id']: (note['caption'], f'{note["image_id"]:012d}.png') for note in notes}
    assert len({row['unique_id'] for row in drawn}) == 40 and coco_captions(path, 7, seed=1) != drawn[:7]
    for row in drawn: assert (row['text'], row['image']) == texts[row['unique_id']]
    assert len({row['image'] for row in drawn}) < 40                                 # pictures come several times
    with pytest.raises(ValueError, match='has 60 captions, 61 were asked for'): coco_captions(path, 61)
    with pytest.raises(FileNotFoundError, match='00_scenes'): coco_captions(tmp_path/'nowhere.json', 1)
    with pytest.raises(ValueError, match=r"not a caption file of COCO \(KeyError: 'images'\)"): coco_captions(CLIP/'config.json', 1)


def test_sentences_of_flickr30k(world):
    folder = world/'flickr30k'
    sentences, others = flickr_captions(folder), flickr_captions(folder, seed=1)
    assert sorted(row['unique_id'] for row in sentences) == list(range(12))
    assert {row['unique_id']: row['text'] for row in others} != {row['unique_id']: row['text'] for row in sentences}
    for row in sentences:
        for phrase in row['phrases']: assert row['text'][phrase['start']:phrase['end']] == phrase['words']


def test_a_list_of_pairs(world, tmp_path):
    sentences, path = flickr_captions(world/'flickr30k'), tmp_path/'prompts.json'
    write_json(path, sentences)
    assert read_pairs(path) == sentences
    for rows, message in [(sentences + sentences[:1], 'used by several rows'), ([], 'expected a list of captions'),
                          ([dict(text='a cat')], 'row 0: expected unique_id, text and image')]:
        write_json(path, rows)
        with pytest.raises(ValueError, match=message): read_pairs(path)


# ---- results

@pytest.fixture
def drawn(world, tmp_path, clip):
    "Pictures for twelve sentences, and a function that scores them."
    rows, folder = flickr_captions(world/'flickr30k'), tmp_path/'drawn'
    folder.mkdir()
    for i, row in enumerate(rows): Image.open(world/'flickr30k/flickr30k-images'/row['image']).rotate(90*(i % 4)).save(folder/f'{row["unique_id"]}_0.png')
    def score(rows=rows, features='a', references=world/'flickr30k/flickr30k-images', **changes):
        return frechet_result(clip, folder, rows, references, tmp_path/features, tmp_path/'references', side=64, **changes)
    return rows, folder, score


def test_neither_order_nor_batch_matters(drawn):
    rows, _, score = drawn
    one, other = score(), score(rows[::-1], 'b', batch=5)
    assert set(one['values']) == {'FD', 'KD'} and one['n'] == dict(images=12, references=12)
    assert other['values'] == pytest.approx(one['values'], abs=1e-5)


def test_pictures_that_are_not_those_of_the_list(drawn, tmp_path):
    rows, folder, score = drawn
    first, whole = score(), (folder/'3_0.png').read_bytes()
    (folder/'3_0.png').write_bytes(whole[:-20])
    (folder/'4_0.png').rename(tmp_path/'kept.png')
    with pytest.raises(FileNotFoundError, match='1 missing, the first is 4_0.png; 1 broken, the first one is 3_0.png'): score()
    (folder/'3_0.png').write_bytes(whole)
    (tmp_path/'kept.png').rename(folder/'4_0.png')
    (folder/'99_0.png').write_bytes(whole)                                           # surplus: told, not counted
    again = score()
    assert again['values'] == first['values'] and again['notes']['left_out'] == 1
    texts = {str(row['unique_id']): row['text'] for row in rows} | {str(rows[0]['unique_id']): 'another text'}
    write_json(folder/'settings.json', dict(prompts=texts))
    with pytest.raises(ValueError, match=f'1 pictures in {folder} were drawn from other texts'): score()
    (folder/'settings.json').unlink()
    with pytest.raises(FileNotFoundError, match='12 of 12 reference pictures are missing, the first is'): score(references=tmp_path)


# ---- the notebooks

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('place')
    write_world(folder/'data', 1, 6)
    write_pipeline(folder/'pipeline')
    return folder


def sampled(place, tmp_path, benchmark, **params):
    run(SAMPLE, tmp_path, **dict(benchmark=benchmark, model=str(place/'pipeline'), data=str(place/'data'), out_dir=str(tmp_path/benchmark), prompts=6, inference_steps=1) | params)
    return tmp_path/benchmark


def evaluated(place, tmp_path, benchmark, **params):
    references = place/'data'/('val2017' if benchmark == 'coco_captions' else 'flickr30k/flickr30k-images')
    run(EVALUATE, tmp_path, **dict(metric='fid', benchmark=benchmark, images=str(tmp_path/benchmark), references=str(references), out_dir=str(tmp_path/'runs'/'mini'/'results')) | params)
    return load_results('mini', str(tmp_path/'runs'))


@pytest.mark.parametrize('benchmark, key', [('coco_captions', 'frechet_coco'), ('flickr30k', 'frechet_flickr30k')])
def test_from_captions_to_a_result(benchmark, key, place, tmp_path, clip):
    images = sampled(place, tmp_path, benchmark)
    rows = read_pairs(images/'prompts.json')
    expected = coco_captions(place/'data/annotations/captions_val2017.json', 6) if benchmark == 'coco_captions' else flickr_captions(place/'data/flickr30k', 6)
    assert rows == expected and read_json(images/'settings.json')['prompts'] == {str(row['unique_id']): row['text'] for row in rows}
    result, = evaluated(place, tmp_path, benchmark, method='token', train_seed=2)
    assert (result['metric'], result['method'], result['seed'], result['n']['images']) == (key, 'token', 2, 6)
    references = place/'data'/('val2017' if benchmark == 'coco_captions' else 'flickr30k/flickr30k-images')
    drawn, real = ([Image.open(path).convert('RGB') for path in paths] for paths in ([images/f'{row["unique_id"]}_0.png' for row in rows], [references/row['image'] for row in rows]))
    assert result['values']['FD'] == pytest.approx(distance_of(Moments(clip.features(drawn)), Moments(clip.features(real))), rel=1e-3)
    assert result['judge'].startswith('CLIP') and result['notes']['pictures'] == 6 and result['notes']['more_pictures_than_features'] is False
    assert result['n']['references'] == len({row['image'] for row in rows})
    again = evaluated(place, tmp_path, benchmark, method='frozen', batch=2)
    assert {r['method'] for r in again} == {'token', 'frozen'} and again[0]['values'] == pytest.approx(again[1]['values'], rel=1e-3)


def test_a_folder_that_is_not_as_it_should_be(place, tmp_path):
    images = sampled(place, tmp_path, 'flickr30k', rank=0, world=2, sample_batch=2)
    with pytest.raises(FileNotFoundError, match='holds no finished pictures'): evaluated(place, tmp_path, 'flickr30k')
    sampled(place, tmp_path, 'flickr30k', rank=1, world=2, sample_batch=2)
    first, = [r['values'] for r in evaluated(place, tmp_path, 'flickr30k')]
    other = images/'77_0.png'
    other.write_bytes((images/'0_0.png').read_bytes())
    (images/'notes.txt').write_text('not a picture')
    assert evaluated(place, tmp_path, 'flickr30k')[0]['values'] == first             # surplus: told, not counted
    assert evaluated(place, tmp_path, 'flickr30k')[0]['notes']['left_out'] == 1
    (images/'2_0.png').unlink()
    (images/'3_0.png').write_bytes(b'\x89PNG')
    with pytest.raises(FileNotFoundError, match='1 missing, the first is 2_0.png; 1 broken, the first one is 3_0.png'): evaluated(place, tmp_path, 'flickr30k')
    sampled(place, tmp_path, 'flickr30k')
    assert evaluated(place, tmp_path, 'flickr30k')[0]['values'] == pytest.approx(first, rel=1e-3)
    rows = read_pairs(images/'prompts.json')
    write_json(images/'prompts.json', [rows[0] | dict(text='another text')] + rows[1:])
    with pytest.raises(ValueError, match='drawn from other texts'): evaluated(place, tmp_path, 'flickr30k')


def test_pictures_that_were_drawn_anew_count_anew(place, tmp_path):
    images = sampled(place, tmp_path, 'flickr30k')
    first = evaluated(place, tmp_path, 'flickr30k')[0]['values']['FD']
    for path in images.glob('*.png'): Image.new('RGB', (64, 64), 'red').save(path)
    red = evaluated(place, tmp_path, 'flickr30k')[0]['values']['FD']
    assert abs(red - first) > .01*first


@pytest.mark.parametrize('notebook, benchmark, params, sentence', [
    (SAMPLE, 'coco_captions', dict(data='nowhere'), 'There is no .*captions_val2017.json'),
    (SAMPLE, 'flickr30k', dict(data='nowhere'), 'There is no .*val.txt'),
    (SAMPLE, 'flickr30k', dict(prompts=7), 'has 6 pictures, 7 were asked for'),
    (SAMPLE, 'coco_captions', dict(rounds=2), 'one picture for each caption'),
    (EVALUATE, 'flickr30k', dict(extractor='vgg'), "Parameter extractor: 'vgg' is not one of"),
    (EVALUATE, 'flickr30k', dict(profile='sd14'), 'There are no Inception weights .*pt_inception-2015-12-05-6726825d.pth: fetch'),
    (EVALUATE, 'flickr30k', dict(references='nowhere'), '6 of 6 reference pictures are missing')])
def test_bad_parameters(notebook, benchmark, params, sentence, place, tmp_path):
    if notebook == EVALUATE: sampled(place, tmp_path, benchmark)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): (sampled if notebook == SAMPLE else evaluated)(place, tmp_path, benchmark, **params)
