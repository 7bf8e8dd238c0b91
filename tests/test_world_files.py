"""The miniature world on disk: what is written is what was drawn, drawing again repairs what was lost, and the Flickr30K side points at the right things."""
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tokencompose.core import read_json, read_jsonl
from tokencompose.data.flickr30k import read_flickr30k
from tokencompose.data.world import a_or_an, ANY, captions_of, draw_scene, held_out_pairs, render, VSR
from tokencompose.data.world_files import write_world

DRAWN = ('annotations/captions_train2017.json', 'annotations/captions_val2017.json', 'annotations/instances_train2017.json', 'annotations/instances_val2017.json',
         'flickr30k/val.txt', 'held_out_pairs.json', 'vsr/train.jsonl')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    assert write_world(folder, train=6, val=20) == dict(train=6, val=20, seed=0, size=64)
    return folder


def drawn(split, i, mixture=VSR, seed=0):
    return draw_scene((seed, split, i), mixture, forbidden=held_out_pairs())


def test_all_files_are_there(folder):
    assert {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file() and p.suffix not in ('.png', '.lock') and p.parent.name not in ('Sentences', 'Annotations')} == {*DRAWN, 'provenance.json'}
    assert [len(list((folder/name).iterdir())) for name in ('train2017', 'val2017', 'flickr30k/flickr30k-images', 'flickr30k/Sentences', 'flickr30k/Annotations')] == [6, 20, 20, 20, 20]


def test_coco_counts(folder):
    captions, instances = (read_json(folder/'annotations'/f'{kind}_train2017.json') for kind in ('captions', 'instances'))
    assert (len(captions['images']), len(captions['annotations'])) == (6, 30)
    assert captions['images'] == instances['images'] and len(instances['annotations']) == sum(len(drawn('train2017', i).things) for i in range(6))
    assert [a['id'] for a in captions['annotations']] == list(range(30))


def test_masks_and_pictures_are_those_drawn(folder, capsys):
    for split, count in (('train2017', 6), ('val2017', 20)):
        coco = COCO(folder/'annotations'/f'instances_{split}.json')
        for i in range(count):
            picture, masks = render(drawn(split, i))
            assert (np.asarray(Image.open(folder/split/f'{i:012d}.png')) == picture).all()
            rows = coco.loadAnns(coco.getAnnIds(imgIds=i))
            assert (np.stack([coco.annToMask(a).astype(bool) for a in rows]) == masks).all() and [a['area'] for a in rows] == [m.sum() for m in masks]
            assert [coco.cats[a['category_id']]['name'] for a in rows] == [t.name for t in drawn(split, i).things]


def test_the_list_names_every_training_picture(folder):
    rows = read_jsonl(folder/'vsr'/'train.jsonl')
    assert [r['image_link'] for r in rows] == [f'train2017/{i:012d}.png' for i in range(6)]
    assert rows[4] == dict(image='000000000004.png', image_link='train2017/000000000004.png', caption='The flag is to the right of the elephant.', label=1, relation='to the right of', annotator_id=0)


def test_drawing_again_repairs_what_was_lost_and_nothing_else(tmp_path):
    write_world(tmp_path, train=6, val=2)
    lists = {name: (tmp_path/name).read_bytes() for name in DRAWN}
    pictures = [tmp_path/'train2017'/f'{i:012d}.png' for i in range(6)]
    whole, times = [p.read_bytes() for p in pictures], [p.stat().st_mtime_ns for p in pictures]
    pictures[1].unlink()
    pictures[2].write_bytes(whole[3])                      # another scene's
    pictures[3].write_bytes(whole[3][:90])                 # cut off
    write_world(tmp_path, train=6, val=2)
    assert {name: (tmp_path/name).read_bytes() for name in DRAWN} == lists
    assert [p.read_bytes() for p in pictures] == whole
    assert [a == p.stat().st_mtime_ns for a, p in zip(times, pictures)] == [True, False, False, False, True, True]


def test_seed_size_and_mixture_count(tmp_path):
    assert write_world(tmp_path, train=2, val=0, seed=3, size=48, mixture=ANY) == dict(train=2, val=0, seed=3, size=48)
    scene = draw_scene((3, 'train2017', 1), ANY, 48, held_out_pairs())
    assert (np.asarray(Image.open(tmp_path/'train2017'/'000000000001.png')) == render(scene)[0]).all()
    assert [a['caption'] for a in read_json(tmp_path/'annotations'/'captions_train2017.json')['annotations']][5:] == [c['caption'] for c in captions_of(scene, 3)]


# ---- the Flickr30K side

def test_the_scenes_are_not_those_of_the_validation_set(folder):
    known = read_flickr30k(folder/'flickr30k')
    assert [e.id for e in known] == [str(i) for i in range(20)]
    for i, e in enumerate(known):
        scene = drawn('flickr30k', i)
        assert scene != drawn('val2017', i)
        assert (np.asarray(Image.open(folder/'flickr30k'/'flickr30k-images'/e.file_name)) == render(scene)[0]).all()
        assert [s.text for s in e.sentences] == [c['caption'] for c in captions_of(scene)]


def test_each_marked_phrase_names_the_thing_in_its_box(folder):
    for i, e in enumerate(read_flickr30k(folder/'flickr30k')):
        scene = drawn('flickr30k', i)
        for thing, mask in zip(scene.things, render(scene)[1]):
            words = a_or_an(' '.join(w for w in (thing.texture, thing.color, thing.name) if w))
            chain, = {p.chain for s in e.sentences for p in s.phrases if s.words(p).lower() == words}
            (left, top, right, bottom), = e.boxes[chain]
            assert mask[top:bottom + 1, left:right + 1].sum() == mask.sum() > 0
        for sentence, things in zip(e.sentences, [len(scene.things)]*3 + [1, 0], strict=True):
            assert sum(p.kinds == ('other',) for p in sentence.phrases) == things
