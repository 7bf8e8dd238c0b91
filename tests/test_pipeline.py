"""The automatic pipeline from captions to the training folder, with the models of the zoo: the same bytes however it was run, and a messy folder goes through."""
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tokencompose.core import read_jsonl, write_jsonl
from tokencompose.data.boxes import load_grounder
from tokencompose.data.build import build_automatic
from tokencompose.data.captions import load_clip, select_captions
from tokencompose.data.coco import Coco, CocoImage, read_coco
from tokencompose.data.dataset import GroundingDataset, read_rows
from tokencompose.data.folder import read_folder
from tokencompose.data.masks import load_mask, MAX_PIXELS
from tokencompose.data.sam import load_segmenter
from tokencompose.data.segment import make_masks
from tokencompose.data.tagging import load_tagger, NOUN_RULES, read_captions, tag_captions
from tokencompose.data.world import captions_of, draw_scene, render, VSR
from tokencompose.data.world_files import write_world
from tokencompose.models import load_tokenizer


@pytest.fixture(scope='module')
def models():
    zoo = 'tokencompose/zoo'
    return dict(clip=load_clip(f'{zoo}/clip', 'cpu'), tagger=load_tagger(f'{zoo}/tagger'), grounder=load_grounder(f'{zoo}/groundingdino', device='cpu'), segmenter=load_segmenter(f'{zoo}/sam', 'cpu'))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, train=14, val=0)
    return read_coco(folder)


def captions(coco, out, models, share=None): return select_captions(out/'captions', coco, *models['clip'], batch=4, share=share)
def nouns(coco, out, models, share=None): return tag_captions(out/'nouns', read_captions(out/'captions')[0], models['tagger'], batch=4, share=share, **NOUN_RULES['both'])
def masks(coco, out, models, share=None): return make_masks(out/'masks', read_jsonl(out/'nouns'/'nouns.jsonl'), coco.folder, models['grounder'], models['segmenter'], {}, batch=4, share=share)
def rows(coco, out, models, share=None): return build_automatic(out/'set', out/'masks', coco.folder)


STAGES = [captions, nouns, masks, rows]


def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.suffix != '.lock' and p.name != '.lock'}


@pytest.fixture(scope='module')
def whole(world, models, tmp_path_factory):
    "What one untroubled process leaves."
    out = tmp_path_factory.mktemp('whole')
    for stage in STAGES: stage(world, out, models)
    assert len(read_rows(out/'set')) == 14
    return contents(out)


def test_two_runs_give_the_same_bytes(world, models, whole, tmp_path):
    for stage in STAGES: stage(world, tmp_path, models)
    assert contents(tmp_path) == whole


def test_two_processes_give_the_bytes_of_one(world, models, whole, tmp_path):
    for stage in STAGES:
        for rank in (1, 0): stage(world, tmp_path, models, share=(rank, 2))
    assert contents(tmp_path) == whole


class Killed(BaseException): pass


@pytest.mark.parametrize('seed', range(3))
def test_killed_at_a_random_write_and_resumed(world, models, whole, tmp_path, monkeypatch, seed):
    "Every file is renamed into its place; the process dies before one of these renames, again and again."
    import os
    rename, left, draw = os.replace, [0], random.Random(seed)
    def dying(*args):
        left[0] -= 1
        if left[0] < 0: raise Killed
        return rename(*args)
    monkeypatch.setattr(os, 'replace', dying)
    deaths = 0
    for stage in STAGES:
        for _ in range(100):
            left[0] = draw.randint(4, 12)  # fewer than five and a batch of four never gets done
            try: stage(world, tmp_path, models); break
            except Killed: deaths += 1
    assert deaths > 3
    monkeypatch.undo()
    assert contents(tmp_path) == whole


# ---- a messy folder

def scene(i): return draw_scene((0, 'messy', i), VSR)


def messy(folder):
    "Fourteen pictures with one thing odd about each, in COCO's form; returns the images and the names of those that cannot be read."
    (folder/'images').mkdir()
    def drawn(i): return Image.fromarray(render(scene(i))[0])
    def caption(i): return captions_of(scene(i))[0]['caption']
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = io.BytesIO()
    drawn(0).save(jpeg, 'jpeg')
    pictures = {'truncated.jpg': jpeg.getvalue()[:500], 'bomb.png': None, 'lost.png': None,
                'cmyk.jpg': drawn(3).convert('CMYK'), 'palette.png': drawn(4).convert('P'), 'sixteen.png': Image.fromarray(np.array(drawn(5).convert('L')).astype(np.uint16)*257),
                'animated.gif': drawn(6), 'turned.jpg': drawn(7).crop((0, 0, 64, 48)).rotate(90, expand=True), 'no caption.png': drawn(8), 'long.png': drawn(9), 'chinese.png': drawn(10), 'emoji.png': drawn(11),
                'no noun.png': drawn(12), 'not there.png': drawn(13)}
    texts = {name: caption(i) for i, name in enumerate(pictures)} | {
        'no caption.png': '', 'long.png': caption(9) + ' and so on'*170, 'chinese.png': '一只猫在椅子上。', 'emoji.png': '🐈🐕‍🦺 👩🏽‍🚒', 'no noun.png': 'very red and blue', 'not there.png': 'a zeppelin.'}
    for name, picture in pictures.items():
        path = folder/'images'/name
        if isinstance(picture, bytes): path.write_bytes(picture)
        elif name == 'animated.gif': picture.save(path, save_all=True, append_images=[drawn(0)])
        elif name == 'turned.jpg': picture.save(path, exif=turned, quality=95)
        elif picture is not None: picture.save(path)
    Image.new('1', (MAX_PIXELS//1000 + 1, 1000)).save(folder/'images'/'bomb.png')
    images = tuple(CocoImage(i, name, (64, 64), ((i, texts[name]),), ()) for i, name in enumerate(pictures))
    return Coco(images, (), folder/'images', ()), {'truncated.jpg', 'bomb.png', 'lost.png'}


def test_a_messy_folder_goes_through(models, tmp_path):
    coco, unreadable = messy(tmp_path)
    for stage in STAGES[:3]: stage(coco, tmp_path, models)
    counts = build_automatic(tmp_path/'set', tmp_path/'masks', coco.folder)
    for stage in ('captions', 'masks'):
        told = {r['file_name']: r['error'] for r in read_jsonl(tmp_path/stage/f'{stage}.jsonl') if 'error' in r}
        assert set(told) == unreadable and all(name in reason and str(tmp_path) not in reason for name, reason in told.items())
    done = {row.file_name: row for row in read_rows(tmp_path/'set')}
    nothing = {'no caption.png', 'chinese.png', 'emoji.png', 'no noun.png', 'not there.png'}
    assert nothing.isdisjoint(done) and unreadable.isdisjoint(done)
    assert {'cmyk.jpg', 'palette.png', 'animated.gif', 'turned.jpg', 'long.png'} <= set(done)
    assert counts['images_unreadable'] == 3 and counts['rows'] + counts['images_without_mask'] + counts['images_unreadable'] == len(coco.images)
    for name, row in done.items():  # masks have the upright picture's size
        size = (48, 64) if name == 'turned.jpg' else (64, 64)
        assert all(tuple(load_mask(tmp_path/'set'/mask).shape) == size for mask in row.masks if mask), name
    samples = GroundingDataset(tmp_path/'set', coco.folder, load_tokenizer('tokencompose/zoo/sd'), 64)
    assert len(samples) == len(done) and all(torch.isfinite(samples[i]['pixel_values']).all() for i in range(len(samples)))


@pytest.mark.parametrize('name', ['../up.png', '/etc/x.png', 'a/../../up.png'])
def test_a_file_name_that_leads_elsewhere_is_refused(name, tmp_path):
    write_jsonl(tmp_path/'mine.jsonl', [dict(file_name='b.png', text='a cat.'), dict(file_name=name, text='a cat.')])
    with pytest.raises(ValueError, match='mine.jsonl, row 2: the file_name .* leads out of the folder'): read_captions(tmp_path/'mine.jsonl')


def test_an_id_that_comes_twice_is_refused(models, tmp_path):
    write_jsonl(tmp_path/'mine.jsonl', [dict(file_name='a.png', text='a cat.'), dict(file_name='a.png', text='a dog.')])
    with pytest.raises(ValueError, match='row 2: the image a.png comes twice'): read_captions(tmp_path/'mine.jsonl')


def test_ones_own_folder_becomes_a_training_set(models, tmp_path):
    "Names with spaces, several captions, and a list beside the folder."
    (tmp_path/'mine').mkdir()
    for i in range(3): Image.fromarray(render(scene(i))[0]).save(tmp_path/'mine'/f'my picture {i}.png')
    write_jsonl(tmp_path/'list.jsonl', [dict(file_name=f'my picture {i}.png', texts=[c['caption'] for c in captions_of(scene(i))]) for i in range(3)])
    mine = read_folder(tmp_path/'mine', tmp_path/'list.jsonl')
    for stage in STAGES: stage(mine, tmp_path, models)
    for row, i in zip(read_rows(tmp_path/'set'), range(3), strict=True):
        truth = {t.name: m for t, m in zip(scene(i).things, render(scene(i))[1])}
        masked = {noun: load_mask(tmp_path/'set'/mask).numpy() for noun, mask in zip(row.nouns, row.masks) if mask}
        assert set(masked) == set(truth)
        for name, exact in truth.items(): assert (masked[name] & exact).sum()/(masked[name] | exact).sum() > .8
