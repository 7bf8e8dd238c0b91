"""Counts, scores against the truth, and pages of found masks."""
import numpy as np
import pytest
import torch
from test_segment import fill, record_of, world  # noqa: F401

from tokencompose.data.boxes import FoundBoxes, NounBox
from tokencompose.data.coco import ClassWords
from tokencompose.data.dataset import load_image
from tokencompose.data.mask_exam import accuracy, class_mentions, count_masks, mask_page, truth_scores, weakest
from tokencompose.data.mask_exam import with_true_boxes
from tokencompose.data.masks import encode_rle, load_mask
from tokencompose.data.sam import mask_boxes
from tokencompose.data.segment import cut_masks
from tokencompose.data.world import draw_scene, held_out_pairs, render, VSR


@pytest.fixture(scope='module')
def stage(world):
    "What a perfect grounder and a segmenter that fills its boxes leave."
    source, coco, records = world
    scenes, done = [draw_scene((0, 'train2017', i), VSR, 64, held_out_pairs()) for i in range(10)], []
    for record, scene in zip(records, scenes):
        names, boxes = [n['noun'] for n in record['nouns']], []
        for thing in scene.things:
            x, y, w, h = thing.box
            boxes.append(NounBox(names.index(thing.name), (x, y, x + w, y + h), .9))
        done.append(cut_masks(record, render(scene)[0], FoundBoxes(boxes), fill))
    return done


@pytest.fixture
def unreadable(stage):
    return dict(stage[4], size=[0, 0], nouns=[dict(n, boxes=[]) for n in stage[4]['nouns']], error='The image cannot be read.')


# ---- counts

def test_counts(stage, unreadable):
    box = stage[0]['nouns'][0]['boxes'][0]
    nothing = dict(stage[0], nouns=[dict(noun='cat', start=0, end=3, boxes=[dict(box, rle=encode_rle(np.zeros((64, 64), bool)))])])
    twice = dict(stage[0], nouns=[dict(noun='cat', start=0, end=3, boxes=[box, box]), dict(noun='sky', start=9, end=12, boxes=[])],
                 unassigned=[dict(box=[0, 0, 1, 1], score=.3, phrase='x')], left_out=[['sky', 'no token']])
    without, boxless = dict(stage[0], nouns=[]), dict(stage[0], nouns=[dict(noun='sky', start=9, end=12, boxes=[])])
    lost = len(unreadable['nouns'])
    assert count_masks([nothing, twice, without, boxless, unreadable]) == dict(
        images=5, unreadable=1, images_without_noun=1, images_without_box=1, nouns=4 + lost, nouns_with_box=2, boxes=3,
        boxes_per_noun={0: 2 + lost, 1: 1, 2: 1}, empty_masks=1, unassigned=1, left_out=1)


def test_every_thing_is_counted(stage, world):
    assert count_masks(stage)['boxes'] == sum(len(image.instances) for image in world[1].images)


# ---- accuracy

def test_accuracy_against_counting_by_hand(world):
    "Half of the nouns get their exact box, half a box of a quarter of it; masks are filled boxes."
    source, coco, records = world
    scenes = [draw_scene((0, 'train2017', i), VSR, 64, held_out_pairs()) for i in range(10)]
    done, hits, ious = [], [], []
    for record, scene in zip(records, scenes):
        image, exact = render(scene)
        found = []
        for k, (thing, mask) in enumerate(zip(scene.things, exact)):
            y, x = np.nonzero(mask)
            box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            if k % 2: box[2:] = (box[:2] + box[2:])//2
            found.append(NounBox([n['noun'] for n in record['nouns']].index(thing.name), tuple(box.tolist()), .9))
            filled = fill(image, box[None])[0][0]
            hits.append(k % 2 == 0); ious.append((filled & mask).sum()/(filled | mask).sum())
        done.append(cut_masks(record, image, FoundBoxes(found), fill))
    table = accuracy(done, coco)
    assert table.loc['box recall at IoU 0.5', 'mean'] == pytest.approx(np.mean(hits)) and table.loc['mask IoU', 'mean'] == pytest.approx(np.mean(ious))
    assert (table['count'] == len(hits)).all() and (table.images == 10).all() and (table.low <= table['mean']).all() and (table['mean'] <= table.high).all()
    alone = accuracy(with_true_boxes(done, coco, fill), coco)
    assert alone.loc['box recall at IoU 0.5', 'mean'] == 1 and alone.loc['mask IoU', 'mean'] > table.loc['mask IoU', 'mean']


def test_what_a_tagger_misses_counts_nothing(stage, world):
    coco, every = world[1], truth_scores(stage, world[1])
    even = every[every.image_id % 2 == 0]
    lost = [dict(r, nouns=[]) if r['image_id'] % 2 else r for r in stage]
    for name, kind in {'box recall at IoU 0.5': 'box', 'mask IoU': 'mask'}.items():
        kept = even[even.score == kind].iou
        total = (kept >= .5).sum() if kind == 'box' else kept.sum()
        assert accuracy(lost, coco).loc[name, 'mean'] == pytest.approx(total/(every.score == kind).sum())


def test_boxes_elsewhere_find_nothing(stage, world):
    def shifted(noun): return dict(noun, boxes=[dict(b, box=[v + 40 for v in b['box']]) for b in noun['boxes']])
    moved = [dict(r, nouns=[shifted(n) for n in r['nouns']]) for r in stage]
    assert accuracy(moved, world[1]).loc['box recall at IoU 0.5', 'mean'] == 0


def test_nothing_to_measure_against(stage, world):
    with pytest.raises(ValueError, match='names a class that is annotated'): accuracy([dict(stage[0], text='blue', nouns=[])], world[1])


def test_a_segmenter_that_knows_the_masks(stage, world):
    coco = world[1]
    exact = {i.id: [load_mask(t.segmentation, i.size).numpy() for t in i.instances] for i in coco.images}
    pictures = {np.array(load_image(coco.folder/i.file_name)).tobytes(): exact[i.id] for i in coco.images}
    def perfect(image, boxes):
        "Of the picture's masks the one whose box it is given."
        masks = {tuple(mask_boxes(torch.from_numpy(m)[None])[0].tolist()): m for m in pictures[image.tobytes()]}
        return np.stack([masks[tuple(box)] for box in boxes.tolist()]), np.ones(len(boxes))
    assert accuracy(with_true_boxes(stage, coco, perfect), coco)['mean'].tolist() == [1, 1]


def test_a_picture_that_cannot_be_read_is_not_cut(stage, unreadable, world):
    assert len(with_true_boxes([*stage[:3], unreadable], world[1], fill)) == 3


def test_a_mention_without_a_noun(stage, world):
    pairs = class_mentions(dict(text='a teddy bear and a cat', nouns=[dict(noun='bear', start=8, end=12)]), ClassWords(world[1].classes))
    assert [(m.name, n and n['noun']) for m, n in pairs] == [('teddy bear', 'bear'), ('cat', None)]


# ---- pages

def test_a_noun_without_a_box_is_the_weakest(stage, unreadable):
    unsure = [dict(r, nouns=[dict(n, boxes=[dict(b, score=.3 + .1*i) for b in n['boxes']]) for i, n in enumerate(r['nouns'])]) for r in stage]
    unsure[3] = dict(unsure[3], nouns=[dict(n, boxes=n['boxes'][:i]) for i, n in enumerate(unsure[3]['nouns'])])
    assert weakest([*unsure, unreadable, dict(stage[0], nouns=[])])[0] is unsure[3]
    assert len(weakest(unsure, 4)) == 4


def test_a_page_leaves_out_what_cannot_be_read(stage, unreadable, world):
    loose = dict(stage[2], unassigned=[dict(box=[30., 30, 60, 60], score=.27, phrase='hot cat')])
    page = mask_page([*stage[:2], loose, unreadable], world[0]/'train2017', 3)
    assert len(page.axes) == 6
    assert [t.get_text() for t in page.axes[2].texts][-1] == 'hot cat 0.27'
