"Boxes that move far, and the floor of the examination."
import numpy as np
import torch

from tokencompose.core import keyed_generator
from tokencompose.data.sam import mask_boxes
from tokencompose.data.world import draw_scene, render, VSR
from tokencompose.pretraining.fit import scene_pool
from tokencompose.pretraining.sam import ANYTHING, jitter_boxes, prompt_batch, sam_exam


def test_boxes_stay_inside_however_far_they_move():
    _, masks, _ = prompt_batch([draw_scene((0, 'sam look', i), ANYTHING, distractors=.2) for i in range(8)])
    boxes = mask_boxes(masks).repeat(50, 1)
    wild = jitter_boxes(boxes, torch.tensor([[64, 40]]).expand(len(boxes), 2), 2., keyed_generator(1))
    assert (wild[:, 2:] - wild[:, :2] >= 1).all() and (wild >= 0).all()
    assert (wild[:, 0::2] <= 64).all() and (wild[:, 1::2] <= 40).all()


def test_a_filled_box_has_the_share_of_its_thing():
    "With exact boxes the IoU of a filled box is the mask's share of the box."
    def fill(image, boxes):
        masks = np.zeros((len(boxes), *image.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int)): mask[y0:y1, x0:x1] = True
        return masks, np.ones(len(boxes))
    scenes = scene_pool(6, VSR, 'sam look')
    masks = torch.cat([torch.from_numpy(render(scene)[1]) for scene in scenes])
    boxes = mask_boxes(masks)
    share = masks.flatten(1).sum(1)/(boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert np.allclose(sam_exam(fill, scenes).iou, share, atol=1e-6)
