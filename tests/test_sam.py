"""Boxes to masks: the segmenters against their libraries and each other, files of all layouts, and the zoo's model."""
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from segment_anything import SamPredictor, sam_model_registry

from tokencompose.core import keyed_rng, write_json
from tokencompose.data import sam as module
from tokencompose.data.sam import HFSamSegmenter, load_sam, load_segmenter, mask_boxes, new_sam, SamConfig, SamSegmenter
from tokencompose.data.sam import save_sam
from tokencompose.data.world import render, VSR
from tokencompose.pretraining.fit import scene_pool
from tokencompose.pretraining.sam import sam_exam

TINY = SamConfig(width=16, depth=2, heads=2, global_blocks=(1,), prompt_width=16, decoder_mlp=16, iou_width=16, iou_depth=3, more_masks=3)
BOXES = np.array([[3., 4, 30, 20], [0, 0, 9.5, 12.25], [12, 2, 60, 38], [12, 2, 60, 38.5]])
SIZES = [(40, 61), (64, 64), (200, 90), (7, 300)]


def random_sam(seed=0):
    torch.manual_seed(seed)
    sam = new_sam(TINY).eval()
    with torch.no_grad():
        for p in sam.parameters(): p.add_(torch.randn_like(p)*.1)  # many start at zero, so would hide a fault
    return sam


def save_random_sam(folder):
    "What nbs/6_pretraining/pretrain_sam.ipynb leaves, with nothing learned."
    save_sam(random_sam(), TINY, folder)


def picture(height, width, *key):
    return keyed_rng('picture', height, width, *key).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- segmenters

@pytest.mark.parametrize('size', SIZES)
def test_all_boxes_at_once_are_what_the_predictor_gives_for_each(size):
    sam, image = random_sam(), picture(*size)
    masks, scores = SamSegmenter(sam, 'cpu')(image, BOXES)
    assert masks.shape == (4, *size) and masks.dtype == bool
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    for box, mask, score in zip(BOXES, masks, scores):
        alone, guess, _ = predictor.predict(box=box, multimask_output=False)
        assert (mask == alone[0]).mean() > .999 and score == pytest.approx(guess[0], abs=1e-4)


def test_the_zoo_layout_keeps_the_model(tmp_path):
    save_random_sam(tmp_path)
    rounded = random_sam().requires_grad_(False)  # as loaded; with gradients a linear layer may round otherwise
    rounded.load_state_dict({name: tensor.half() for name, tensor in rounded.state_dict().items()})
    before, after = SamSegmenter(rounded, 'cpu'), load_segmenter(tmp_path, 'cpu')
    for a, b in zip(before(picture(40, 61), BOXES), after(picture(40, 61), BOXES)): np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'model.safetensors']


def test_a_published_checkpoint_is_built_by_the_registry(tmp_path, monkeypatch):
    monkeypatch.setitem(module._SIZES, TINY.width, 'vit_l')
    monkeypatch.setitem(sam_model_registry, 'vit_l', lambda: new_sam(TINY))
    torch.save(random_sam().state_dict(), tmp_path/'sam_vit_l_0b3195.pth')
    for path in (tmp_path, tmp_path/'sam_vit_l_0b3195.pth'):
        loaded = load_sam(path).state_dict()
        for name, tensor in random_sam().state_dict().items(): assert torch.equal(loaded[name], tensor)


TO_TRANSFORMERS = [
    (r'^image_encoder\.patch_embed\.proj', 'vision_encoder.patch_embed.projection'), (r'^image_encoder\.neck\.0', 'vision_encoder.neck.conv1'), (r'^image_encoder\.neck\.1', 'vision_encoder.neck.layer_norm1'),
    (r'^image_encoder\.neck\.2', 'vision_encoder.neck.conv2'), (r'^image_encoder\.neck\.3', 'vision_encoder.neck.layer_norm2'), (r'^image_encoder\.blocks', 'vision_encoder.layers'), (r'^image_encoder', 'vision_encoder'),
    (r'\.norm(\d)', r'.layer_norm\1'), (r'^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix', 'prompt_encoder.shared_embedding.positional_embedding'), (r'point_embeddings', 'point_embed'),
    (r'mask_downscaling\.0', 'mask_embed.conv1'), (r'mask_downscaling\.1', 'mask_embed.layer_norm1'), (r'mask_downscaling\.3', 'mask_embed.conv2'), (r'mask_downscaling\.4', 'mask_embed.layer_norm2'), (r'mask_downscaling\.6', 'mask_embed.conv3'),
    (r'output_upscaling\.0', 'upscale_conv1'), (r'output_upscaling\.1', 'upscale_layer_norm'), (r'output_upscaling\.3', 'upscale_conv2'), (r'norm_final_attn', 'layer_norm_final_attn'),
    (r'(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.0', r'\1.proj_in'), (r'(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.2', r'\1.proj_out'), (r'(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.1', r'\1.layers.0')]


def transformers_name(name):
    for pattern, word in TO_TRANSFORMERS: name = re.sub(pattern, word, name)
    return name


def transformers_model(kind='sam'):
    "A tiny SamModel or SamHQModel with its processor, of the sizes of TINY."
    from transformers import SamConfig as Config, SamHQConfig, SamHQModel, SamHQProcessor, SamImageProcessor, SamModel, SamProcessor
    t = TINY
    vision = dict(hidden_size=t.width, num_hidden_layers=t.depth, num_attention_heads=t.heads, image_size=t.image_size, patch_size=t.patch_size, output_channels=t.prompt_width,
                  num_pos_feats=t.prompt_width//2, window_size=t.window, global_attn_indexes=list(t.global_blocks), mlp_dim=int(t.mlp_ratio*t.width), initializer_range=.1)
    prompt = dict(hidden_size=t.prompt_width, image_size=t.image_size, patch_size=t.patch_size, mask_input_channels=t.mask_channels)
    decoder = dict(hidden_size=t.prompt_width, mlp_dim=t.decoder_mlp, num_attention_heads=t.decoder_heads, iou_head_hidden_dim=t.iou_width, layer_norm_eps=1e-5) | ({} if kind == 'sam' else dict(vit_dim=t.width))
    square = dict(height=t.image_size, width=t.image_size)
    images = SamImageProcessor(size=dict(longest_edge=t.image_size), pad_size=square, mask_size=dict(longest_edge=t.image_size), mask_pad_size=square,
                               image_mean=[v/255 for v in t.pixel_mean], image_std=[v/255 for v in t.pixel_std])
    torch.manual_seed(0)
    return (SamModel(Config(vision, prompt, decoder)), SamProcessor(images)) if kind == 'sam' else (SamHQModel(SamHQConfig(vision, prompt, decoder)), SamHQProcessor(images))


@pytest.mark.parametrize('size', SIZES[:3])
def test_transformers_gives_the_same_masks_for_the_same_weights(size):
    "Two libraries, one model: whatever we do around them (scaling, padding, boxes, cutting back) has to agree."
    sam, (model, processor) = random_sam(), transformers_model()
    weights = {transformers_name(name): tensor for name, tensor in sam.state_dict().items()}
    weights['shared_image_embedding.positional_embedding'] = weights['prompt_encoder.shared_embedding.positional_embedding']
    model.load_state_dict(weights)
    ours, theirs = SamSegmenter(sam, 'cpu')(picture(*size), BOXES), HFSamSegmenter(model, processor, 'cpu')(picture(*size), BOXES)
    assert .02 < ours[0].mean() < .98 and (ours[0] == theirs[0]).mean() > .999
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)


@pytest.mark.parametrize('kind', ['sam', 'sam_hq'])
def test_folders_of_transformers(kind, tmp_path):
    for part in transformers_model(kind): part.save_pretrained(tmp_path)
    segmenter = load_segmenter(tmp_path, 'cpu')
    masks, scores = segmenter(picture(40, 61), BOXES)
    assert masks.shape == (4, 40, 61) and masks.dtype == bool and scores.shape == (4,)
    np.testing.assert_array_equal(segmenter(picture(40, 61), BOXES[::-1])[0], masks[::-1])
    assert segmenter(picture(40, 61), np.zeros((0, 4)))[0].shape == (0, 40, 61)


def test_the_order_of_the_boxes_does_not_matter():
    segmenter, order = SamSegmenter(random_sam(), 'cpu'), [2, 0, 3, 1]
    masks, scores = segmenter(picture(64, 64), BOXES)
    again, other = segmenter(picture(64, 64), BOXES[order])
    np.testing.assert_array_equal(again, masks[order])
    np.testing.assert_allclose(other, scores[order], atol=1e-5)


# ---- what goes wrong

@pytest.fixture
def checkpoint(tmp_path):
    "A checkpoint of no published size, with its sizes beside it."
    torch.save(random_sam().state_dict(), tmp_path/'thin.pth')
    write_json(tmp_path/'thin.json', TINY.to_dict())
    return tmp_path/'thin.pth'


def test_a_checkpoint_with_its_sizes_beside_it(checkpoint):
    assert load_sam(checkpoint).state_dict().keys() == random_sam().state_dict().keys()
    checkpoint.with_suffix('.json').unlink()
    with pytest.raises(ValueError, match='no published segment-anything checkpoint'): load_sam(checkpoint)


def test_a_checkpoint_that_is_none(checkpoint):
    torch.save(dict(code=keyed_rng), checkpoint.with_name('code.pth'))
    checkpoint.with_name('broken.pth').write_bytes(checkpoint.read_bytes()[:5000])
    for name in ('code', 'broken'):
        with pytest.raises(ValueError, match=f'{name}.pth cannot be read'): load_sam(checkpoint.with_name(f'{name}.pth'))
    with pytest.raises(FileNotFoundError, match='There is no model file'): load_sam(checkpoint.with_name('lost.pth'))
    with pytest.raises(FileNotFoundError, match='holds 3 checkpoints'): load_sam(checkpoint.parent)


def test_weights_of_other_sizes(tmp_path):
    save_sam(random_sam(), SamConfig.from_params(TINY.to_dict() | dict(depth=3)), tmp_path)
    with pytest.raises(ValueError, match=r'do not fit the model \(Missing key'): load_sam(tmp_path)


def test_models_of_another_type(tmp_path):
    write_json(tmp_path/'config.json', dict(model_type='sam'))
    with pytest.raises(ValueError, match="a model of the type 'sam'"): load_sam(tmp_path)
    write_json(tmp_path/'config.json', dict(model_type='bert'))
    with pytest.raises(ValueError, match="of the type 'bert'"): load_segmenter(tmp_path)


def test_a_torn_or_missing_folder(tmp_path):
    for part in transformers_model(): part.save_pretrained(tmp_path)
    (tmp_path/'model.safetensors').write_bytes(b'torn')
    with pytest.raises(ValueError, match='The SamModel in'): load_segmenter(tmp_path)
    with pytest.raises(FileNotFoundError, match='There is no model file'): load_segmenter(tmp_path/'nowhere')


# ---- the zoo

def test_the_model_of_the_zoo_cuts_out_what_is_in_the_box():
    folder = ROOT/'tokencompose'/'zoo'/'sam'
    segmenter, scenes = load_segmenter(folder, 'cpu'), scene_pool(60, VSR, 'sam test')
    assert sam_exam(segmenter, scenes).iou.mean() > .93 and sam_exam(segmenter, scenes, jitter=.1).iou.mean() > .9
    larger = [(np.array(Image.fromarray(p).resize((150, 150))), np.array([Image.fromarray(m).resize((150, 150)) for m in masks])) for p, masks in map(render, scenes[:20])]
    def iou(a, b): return (a & b).sum()/(a | b).sum()
    def boxes(masks): return mask_boxes(torch.from_numpy(masks)).numpy()
    assert np.mean([iou(found, mask) for image, masks in larger for found, mask in zip(segmenter(image, boxes(masks))[0], masks)]) > .85  # another size
    narrow = [(p[:, :44], masks[:, :, :44]) for p, masks in map(render, scenes[20:60])]
    narrow = [(p, masks[masks.sum((1, 2)) > 60]) for p, masks in narrow if (masks.sum((1, 2)) > 60).any()]
    assert np.mean([iou(found, mask) for image, masks in narrow for found, mask in zip(segmenter(np.ascontiguousarray(image), boxes(masks))[0], masks)]) > .85  # not square
