"""Boxes to masks: the segmenters against their libraries and each other, and the stage from nouns to masks.jsonl."""
import io
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from pycocotools import mask as coco_mask
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

from tokencompose.core import keyed_rng, read_jsonl
from tokencompose.data import segment
from tokencompose.data.boxes import FoundBoxes, NounBox
from tokencompose.data.coco import ClassWords, read_coco
from tokencompose.data.sam import HFSamSegmenter, load_sam, load_segmenter, new_sam, SamConfig, SamSegmenter, save_sam
from tokencompose.data.segment import cut_masks, make_masks, noun_mask
from tokencompose.data.mask_exam import accuracy, count_masks, mask_page, with_true_boxes
from tokencompose.data.world import draw_scene, held_out_pairs, render, VSR
from tokencompose.data.world_files import write_world
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
    monkeypatch.setitem(segment._SIZES, TINY.width, 'vit_l')
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


# ---- the stage

def record_of(image_id, file_name, text, nouns):
    "A record of stage 02; every noun at its first place."
    return dict(image_id=image_id, file_name=file_name, text=text, nouns=[dict(noun=n, start=text.lower().index(n.lower()), end=text.lower().index(n.lower()) + len(n)) for n in nouns], left_out=[])


def five_boxes(images, nouns):
    "A grounder that gives every noun five boxes, which depend on picture and noun alone; without nouns it is never asked."
    assert all(nouns)
    def boxes(image, names):
        draws = [keyed_rng('boxes', int(image.sum()), name).random((5, 4)) for name in names]
        corners = [np.sort(d.reshape(5, 2, 2), 1).reshape(5, 4)*np.tile(image.shape[1::-1], 2) for d in draws]
        return [NounBox(i, tuple(map(float, box)), .5) for i, five in enumerate(corners) for box in five]
    return [FoundBoxes(boxes(image, names)) for image, names in zip(images, nouns)]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A small world and the records that stage 02 would make of it with a perfect tagger."
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, train=10, val=0)
    coco = read_coco(folder)
    finder = ClassWords(coco.classes)
    records = [record_of(i.id, i.file_name, i.captions[0][1], [m.noun for m in finder.find(i.captions[0][1])]) for i in coco.images]
    return folder, coco, records


def run(folder, world, **options):
    source, _, records = world
    options = dict(records=records, images=source/'train2017', grounder=five_boxes, segmenter=SamSegmenter(random_sam(), 'cpu'), settings=dict(models='random'), batch=3) | options
    return make_masks(folder, **options)


def test_masks_are_written_as_coco_reads_them(world, tmp_path):
    "Run lengths decoded by pycocotools are the masks of the boxes in the record, and their union is the noun's."
    run(tmp_path/'masks', world)
    segmenter, records = SamSegmenter(random_sam(), 'cpu'), read_jsonl(tmp_path/'masks'/'masks.jsonl')
    for record in records:
        image = np.array(Image.open(world[0]/'train2017'/record['file_name']).convert('RGB'))
        assert record['size'] == list(image.shape[:2]) and record['prompt'].count('.') == len(record['nouns'])
        for noun in record['nouns']:
            assert record['text'][noun['start']:noun['end']] == noun['noun'] and len(noun['boxes']) == 5
            decoded = [coco_mask.decode(dict(b['rle'], counts=b['rle']['counts'].encode())).astype(bool) for b in noun['boxes']]
            masks, scores = segmenter(image, np.array([b['box'] for b in noun['boxes']]))
            np.testing.assert_array_equal(decoded, masks)
            np.testing.assert_allclose([b['mask_score'] for b in noun['boxes']], scores, atol=1e-4)
            union = noun_mask(record, noun['noun'])
            np.testing.assert_array_equal(np.logical_or.reduce(decoded), np.zeros(image.shape[:2], bool) if union is None else union.numpy())


def test_stopped_and_taken_up_again_the_bytes_are_the_same(world, tmp_path):
    run(tmp_path/'whole', world)
    calls = []
    def stops(images, nouns):
        calls.append(len(images))
        if len(calls) == 3: raise KeyboardInterrupt
        return five_boxes(images, nouns)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'stopped', world, grounder=stops)
    assert not (tmp_path/'stopped'/'masks.jsonl').exists()
    run(tmp_path/'stopped', world)
    assert (tmp_path/'stopped'/'masks.jsonl').read_bytes() == (tmp_path/'whole'/'masks.jsonl').read_bytes()


def test_two_processes_give_the_bytes_of_one(world, tmp_path):
    run(tmp_path/'one', world)
    assert len(run(tmp_path/'two', world, share=(0, 2))) == 6
    assert len(run(tmp_path/'two', world, share=(1, 2))) == 10
    assert (tmp_path/'two'/'masks.jsonl').read_bytes() == (tmp_path/'one'/'masks.jsonl').read_bytes()
    with pytest.raises(ValueError, match='other settings'): run(tmp_path/'two', world, settings=dict(models='others'))


def bad_pictures(folder):
    "File name -> whether it can be read."
    rgb, jpeg = Image.fromarray(picture(40, 61)), io.BytesIO()
    rgb.save(jpeg, 'jpeg')
    (folder/'torn.jpg').write_bytes(jpeg.getvalue()[:600])
    (folder/'text.png').write_text('no picture')
    rgb.convert('CMYK').save(folder/'cmyk.jpg')
    rgb.convert('P').save(folder/'palette.gif')
    Image.fromarray(picture(40, 61)[..., 0].astype(np.uint16)*257).save(folder/'sixteen.png')
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder/'turned one.jpg', exif=turned)
    return {'torn.jpg': False, 'text.png': False, 'lost.png': False, 'cmyk.jpg': True, 'palette.gif': True, 'sixteen.png': True, 'turned one.jpg': True}


def test_a_bad_picture_stops_nobody(tmp_path):
    (tmp_path/'images').mkdir()
    readable = bad_pictures(tmp_path/'images')
    records = [record_of(i, name, 'a cat and a hat', ['cat', 'hat']) for i, name in enumerate(readable)] + [record_of(99, 'cmyk.jpg', 'blue', [])]
    done = make_masks(tmp_path/'masks', records, tmp_path/'images', five_boxes, SamSegmenter(random_sam(), 'cpu'), {}, batch=4)
    assert [r['file_name'] for r in done] == [r['file_name'] for r in records]
    for record, good in zip(done, readable.values()):
        assert ('error' in record) != good and all(bool(n['boxes']) == good for n in record['nouns'])
        if not good: assert record['file_name'] in record['error'] and str(tmp_path) not in record['error']
    turned = next(r for r in done if r['file_name'] == 'turned one.jpg')
    assert turned['size'] == [61, 40] and turned['nouns'][0]['boxes'][0]['rle']['size'] == [61, 40]  # as the training loader sees it
    counts = count_masks(done)
    assert (counts['images'], counts['unreadable'], counts['images_without_noun'], counts['nouns'], counts['nouns_with_box'], counts['boxes']) == (8, 3, 1, 14, 8, 40)
    assert len(mask_page(done, tmp_path/'images').axes) == 2*4*2  # two rows of four, pictures and captions
    with pytest.raises(ValueError, match='none of the images can be read'): mask_page(done[:3], tmp_path/'images')


def by_mask(image, boxes, table):
    "A segmenter that knows the masks: of each box the one in the table."
    return np.array([table[tuple(box)] for box in boxes.tolist()]).reshape(-1, *image.shape[:2]), np.ones(len(boxes))


def test_the_mask_of_a_noun_is_the_union_over_its_boxes():
    "Two boxes of one noun, apart or overlapping, a noun with one box, one with an empty mask and one without."
    masks = keyed_rng('masks').random((5, 9, 12)) < .3
    masks[3], masks[4] = False, masks[0] | masks[1]
    boxes = [(float(i), 0., float(i) + 1, 5.) for i in range(5)]
    record = record_of(1, 'x.png', 'Two Dogs, a cat, a hat, a wall and a door', ['Dogs', 'cat', 'hat', 'wall', 'door'])
    found = FoundBoxes([NounBox(0, boxes[0], .9), NounBox(1, boxes[2], .8), NounBox(0, boxes[1], .7), NounBox(2, boxes[3], .6), NounBox(4, boxes[4], .5), NounBox(4, boxes[0], .4)])
    cut = json.loads(json.dumps(cut_masks(record, picture(9, 12), found, partial(by_mask, table=dict(zip(boxes, masks))))))
    np.testing.assert_array_equal(noun_mask(cut, 'dogs').numpy(), masks[0] | masks[1])
    np.testing.assert_array_equal(noun_mask(cut, 'cat').numpy(), masks[2])
    np.testing.assert_array_equal(noun_mask(cut, 'door').numpy(), masks[4])
    assert noun_mask(cut, 'hat') is None and noun_mask(cut, 'wall') is None
    assert [len(n['boxes']) for n in cut['nouns']] == [2, 1, 1, 0, 2] and count_masks([cut])['empty_masks'] == 1


def test_a_noun_inside_another_gets_its_own_boxes_only():
    record = record_of(1, 'x.png', 'a woman and a man with hot dogs and a dog', ['woman', 'hot dogs'])
    record['nouns'] += [dict(noun='man', start=14, end=17), dict(noun='dog', start=38, end=41)]
    boxes = [(float(i), 0., float(i) + 1, 5.) for i in range(4)]
    cut = cut_masks(record, picture(9, 12), FoundBoxes([NounBox(i, box, .5) for i, box in enumerate(boxes)]), partial(by_mask, table=dict(zip(boxes, np.ones((4, 9, 12), bool)))))
    assert [[tuple(b['box']) for b in n['boxes']] for n in cut['nouns']] == [[box] for box in boxes]


# ---- accuracy

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


def test_the_model_of_the_zoo_cuts_out_what_is_in_the_box():
    folder = ROOT/'tokencompose'/'zoo'/'sam'
    segmenter, scenes = load_segmenter(folder, 'cpu'), scene_pool(60, VSR, 'sam test')
    assert sam_exam(segmenter, scenes).iou.mean() > .93 and sam_exam(segmenter, scenes, jitter=.1).iou.mean() > .9
    larger = [(np.array(Image.fromarray(p).resize((150, 150))), np.array([Image.fromarray(m).resize((150, 150)) for m in masks])) for p, masks in map(render, scenes[:20])]
    def iou(a, b): return (a & b).sum()/(a | b).sum()
    def boxes(masks): return segment.mask_boxes(torch.from_numpy(masks)).numpy()
    assert np.mean([iou(found, mask) for image, masks in larger for found, mask in zip(segmenter(image, boxes(masks))[0], masks)]) > .85  # another size
    narrow = [(p[:, :44], masks[:, :, :44]) for p, masks in map(render, scenes[20:60])]
    narrow = [(p, masks[masks.sum((1, 2)) > 60]) for p, masks in narrow if (masks.sum((1, 2)) > 60).any()]
    assert np.mean([iou(found, mask) for image, masks in narrow for found, mask in zip(segmenter(np.ascontiguousarray(image), boxes(masks))[0], masks)]) > .85  # not square
