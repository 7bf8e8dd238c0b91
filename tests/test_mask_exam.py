"""Counts, scores against the truth, and pages of found masks."""
import numpy as np
import pytest
from test_segment import record_of, world  # noqa: F401

from tokencompose.data.boxes import FoundBoxes, NounBox
from tokencompose.data.mask_exam import accuracy, class_mentions, count_masks, mask_page, truth_scores, weakest, with_true_boxes
from tokencompose.data.segment import cut_masks
from tokencompose.data.world import draw_scene, held_out_pairs, render, VSR


def test_accuracy_against_counting_by_hand(world):
    "Half of the nouns get their exact box, half a box of a quarter of it; masks are filled boxes."
    source, coco, records = world
    scenes = [draw_scene((0, 'train2017', i), VSR, 64, held_out_pairs()) for i in range(10)]
    def fill(image, boxes):
        masks = np.zeros((len(boxes), *image.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int)): mask[y0:y1, x0:x1] = True
        return masks, np.ones(len(boxes))
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
