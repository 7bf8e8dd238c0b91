"""Inputs as people have them, a test each: what they reported elsewhere of tools like this one, in small. Every input is made here."""
import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from test_bad_input import run
from test_detection import save_judge
from transformers import CLIPTextModelWithProjection

from tokencompose.core import read_json, read_jsonl, write_json, write_jsonl
from tokencompose.data.coco import build_dataset, listed_images, read_coco
from tokencompose.data.dataset import dataset_digest, GroundingDataset, load_image, row_digests, save_mask, write_dataset
from tokencompose.data.folder import build_annotated, read_folder
from tokencompose.data.masks import load_mask
from tokencompose.data.tagging import load_tagger, noun_records, NOUN_RULES, read_captions
from tokencompose.data.world import captions_of, draw_scene, enumerate_words, render
from tokencompose.data.world_files import write_world
from tokencompose.metrics.benchmarks import read_benchmark
from tokencompose.metrics.fid import checked_pictures
from tokencompose.metrics.multigen import prompt_row
from tokencompose.model_files import model_digest, model_folder
from tokencompose.models import load_pipeline, new_scheduler, tiny_pipeline
from tokencompose.params import check_params, parameter_cell
from tokencompose.profiles import get_profile
from tokencompose.rivals.inputs import read_changes
from tokencompose.run_config import config_for, config_of, PARAMETERS, TrainConfig
from tokencompose.training import command_line, train


def pictures(folder, count=2, caption=True, size=64):
    "Drawn scenes, each with a text file beside it."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene = draw_scene((0, 'cases', i), size=size)
        Image.fromarray(render(scene)[0]).save(folder/f'photo{i}.png')
        if caption: (folder/f'photo{i}.txt').write_text(captions_of(scene)[0]['caption'])
    return folder


class Training:
    "A small data set and a random base model."
    def __init__(self, root):
        self.root, self.data, self.images, self.model = root, root/'data'/'set', root/'photos', root/'model'
        self.images.mkdir(parents=True)
        rows = []
        for i in range(3):
            scene = draw_scene((0, 'cases', i))
            image, masks = render(scene)
            Image.fromarray(image).save(self.images/f'{i}.png')
            text = f'a photo of {enumerate_words([thing.phrase() for thing in scene.things])}.'
            rows.append(dict(file_name=f'{i}.png', text=text, nouns=[(t.name, torch.from_numpy(m)) for t, m in zip(scene.things, masks)]))
        write_dataset(self.data, rows)
        tiny_pipeline([row['text'] for row in rows]).save_pretrained(self.model)

    def config(self, out='run', **changes):
        own = dict(data=str(self.data), images=str(self.images), model=str(self.model), out_dir=str(self.root/out), resolution=64, steps=1, batch_size=1, lr=1e-3, layers=('mid', 'up'))
        return TrainConfig(**own | changes)

    def rewrite(self, change):
        rows = read_jsonl(self.data/'metadata.jsonl')
        for row in rows: change(row)
        write_jsonl(self.data/'metadata.jsonl', rows)


@pytest.fixture
def training(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    return Training(tmp_path)


# ---- 1. what a run was made from

def test_finished_run_changed_captions(training):
    result = train(training.config())
    assert train(training.config()) == result, 'nothing changed: nothing is done again'
    def say_painting(row): row['text'] = row['text'].replace('photo', 'painting')
    training.rewrite(lambda row: say_painting(row) if row['file_name'] == '1.png' else None)
    with pytest.raises(ValueError, match=r'was trained with other settings or data \(.*set: rows 1 changed \(1\)\): choose another out_dir'): train(training.config())
    with pytest.raises(ValueError, match='rows 1 changed'): train(training.config(steps=2))              # nor is it taken up
    assert train(training.config('fresh'))['step'] == 1


@pytest.mark.parametrize('change, message', [
    (lambda t: save_mask(next((t.data/'seg'/'1').iterdir()), torch.ones(64, 64) > 0), r'rows 1 changed \(1\)'),
    (lambda t: Image.new('RGB', (64, 64)).save(t.images/'2.png'), r'rows 1 changed \(2\)'),
    (lambda t: write_jsonl(t.data/'metadata.jsonl', read_jsonl(t.data/'metadata.jsonl')[:2]), r'rows 1 gone \(2\)'),
    (lambda t: write_jsonl(t.data/'metadata.jsonl', read_jsonl(t.data/'metadata.jsonl')[::-1]), 'its rows are in another order'),
    (lambda t: tiny_pipeline(seed=5).save_pretrained(t.model), 'model: another base model')])
def test_whatever_a_run_was_made_from_counts(training, change, message):
    train(training.config())
    change(training)
    with pytest.raises(ValueError, match=message): train(training.config())


def test_what_a_run_was_made_from_may_lie_elsewhere_or_be_gone(training, capsys):
    result = train(training.config())
    training.data.rename(training.root/'moved')
    training.model.rename(training.root/'model moved')
    elsewhere = dict(data=str(training.root/'moved'), model=str(training.root/'model moved'))
    assert train(training.config(**elsewhere)) == result
    assert train(training.config()) == result and 'is done, but what it was made from is not all there' in capsys.readouterr().out
    with pytest.raises(ValueError, match='lr: 0.001 there, 0.1 now'): train(training.config(lr=.1))      # settings are compared all the same


def test_a_run_of_an_earlier_version_is_told_of_and_kept(training, capsys):
    result = train(training.config())
    old = read_json(training.root/'run'/'result.json')
    del old['digests']
    write_json(training.root/'run'/'result.json', old)
    assert train(training.config()) == result and 'was begun before runs noted what their data hold' in capsys.readouterr().out
    with pytest.raises(ValueError, match='images: '): train(training.config(images=str(training.root)))  # then by its places


def test_a_digest_belongs_to_the_content(training, tmp_path):
    before = dataset_digest(training.data, training.images)
    assert dataset_digest(training.data, training.images) == before and len(row_digests(training.data, training.images)) == 3
    training.rewrite(lambda row: row.update(note='more'))
    assert dataset_digest(training.data, training.images) == before, 'keys that training does not read'
    training.rewrite(lambda row: row.update(text=row['text'].upper()))
    assert dataset_digest(training.data, training.images) != before
    shutil.copytree(training.model, tmp_path/'again')
    assert model_digest(str(training.model)) == model_digest(str(tmp_path/'again'))
    (training.images/'1.png').unlink()
    with pytest.raises(FileNotFoundError, match='1 of .* files are missing, the first is .*1.png'): dataset_digest(training.data, training.images)


def test_own_pictures_replaced_and_more(tmp_path, monkeypatch, capsys):
    "replaced_picture, one_more_picture, leftover_world_size: in one go, since each takes the models."
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    def own(): return run('data_prep/own_images.ipynb', tmp_path, images=str(tmp_path/'mine'), batch=1)
    pictures(tmp_path/'mine')
    own()
    before = {r['file_name']: r for r in read_jsonl(tmp_path/'out'/'masks'/'masks.jsonl')}
    assert len(before) == 2, 'one process does all of it'
    Image.open(tmp_path/'mine'/'photo0.png').rotate(180).save(tmp_path/'mine'/'photo0.png')
    scene = draw_scene((0, 'cases', 7))
    Image.fromarray(render(scene)[0]).save(tmp_path/'mine'/'a new one.png')
    (tmp_path/'mine'/'a new one.txt').write_text(captions_of(scene)[0]['caption'])
    capsys.readouterr()
    own()
    after = {r['file_name']: r for r in read_jsonl(tmp_path/'out'/'masks'/'masks.jsonl')}
    assert 'masks: 1 changed (photo0.png); 1 new (a new one.png). The others are kept.' in capsys.readouterr().out
    assert after['photo1.png'] == before['photo1.png'] and after['photo0.png']['nouns'] != before['photo0.png']['nouns'] and len(after) == 3
    rows = {row['file_name']: row for row in read_jsonl(tmp_path/'out'/'tokencompose'/'metadata.jsonl')}
    turned = load_image(tmp_path/'mine'/'photo0.png')
    for _, path in rows['photo0.png']['attn_list']:                                    # where the mask is, the picture is not plain
        if path: assert np.asarray(turned)[load_mask(tmp_path/'out'/'tokencompose'/path).numpy()].std(0).max() > 5
    pictures(tmp_path/'elsewhere'/'mine')
    with pytest.raises(ValueError, match='belongs to the pictures in'): run('data_prep/own_images.ipynb', tmp_path, images=str(tmp_path/'elsewhere'/'mine'))


# ---- 2. nothing to supervise

def test_nouns_not_in_captions(training, capsys):
    def plural(row): row['attn_list'] = [[f'{noun}s', mask if row['file_name'] != '2.png' else None] for noun, mask in row['attn_list']]
    training.rewrite(plural)
    with pytest.raises(ValueError, match=r'none of its \d+ nouns can be supervised\. 3 rows, .*0 of them supervised .*not in the caption \(first .*row 1: .*no mask \(first .*row 3.*method denoise'): train(training.config())
    assert not (training.root/'run'/'checkpoints').exists()
    assert train(training.config(token_loss_scale=0., pixel_loss_scale=0.))['step'] == 1
    def first_right(row): row['attn_list'][0][0] = row['attn_list'][0][0].removesuffix('s')
    training.rewrite(lambda row: first_right(row) if row['file_name'] == '0.png' else None)
    train(training.config('some'))
    assert re.search(r'3 rows, \d+ nouns, 1 of them supervised \(.*left out: ', capsys.readouterr().out)
    lost = read_jsonl(training.root/'some'/'left_out.jsonl')
    assert {noun['reason'] for noun in lost} == {'not in the caption', 'no mask'} and all('row' in noun['where'] and noun['noun'] for noun in lost)


# ---- 3. masks

def test_mask_alpha_black(training):
    found = GroundingDataset(training.data, training.images, load_pipeline(str(training.model), device='cpu').tokenizer, 64)[0]['masks']
    for path in training.data.rglob('mask_*.png'):
        mask, picture = Image.open(path), Image.new('RGBA', (64, 64))
        picture.putalpha(mask)
        picture.save(path)
    again = GroundingDataset(training.data, training.images, load_pipeline(str(training.model), device='cpu').tokenizer, 64)[0]['masks']
    assert found.any() and torch.equal(again, found)


def test_mask_palettes_and_labels(tmp_path):
    labels = np.zeros((32, 32), np.uint8)
    labels[8:20, 8:20] = 255
    labels[9:19, 9:19] = 8
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0] + [64, 0, 0]*254 + [224, 224, 192])
    picture.save(tmp_path/'void.png')
    assert load_mask(tmp_path/'void.png').nonzero().amin(0).tolist() == [9, 9]
    picture = Image.fromarray((labels > 0).astype(np.uint8))
    picture.putpalette([255, 255, 255, 255, 0, 0])
    picture.save(tmp_path/'white.png')
    assert load_mask(tmp_path/'white.png').sum() == 144
    two = np.zeros((32, 32), np.uint8)
    two[8:20], two[24:30] = 1, 200
    Image.fromarray(two).save(tmp_path/'ids.png')
    with pytest.raises(ValueError, match='ids.png cannot be used: it shows several things'): load_mask(tmp_path/'ids.png')


# ---- 4. published files

def test_visor_whole_file(tmp_path):
    pair, single = prompt_row(0, ['cat', 'dog']), prompt_row(2, ['cat'])
    rows = [pair | dict(rel_type='above', text='a cat above a dog'), pair | dict(unique_id=1, rel_type='and', text='a cat and a dog'),
            single | dict(obj_2_attributes=[None], rel_type='single', text='a cat')]
    write_json(tmp_path/'rows.json', rows)
    assert read_benchmark('visor', tmp_path/'rows.json') == rows[:1]


def test_authors_published_layout(training):
    "Rows and photos in coco_gsam_img/train, masks in coco_gsam_seg beside coco_gsam_img."
    place = training.root/'published'
    (place/'coco_gsam_img').mkdir(parents=True)
    training.images.rename(place/'coco_gsam_img'/'train')
    (training.data/'metadata.jsonl').rename(place/'coco_gsam_img'/'train'/'metadata.jsonl')
    (training.data/'seg').rename(place/'coco_gsam_seg')
    folder = place/'coco_gsam_img'/'train'
    assert train(training.config(data=str(folder), images=str(folder)))['step'] == 1
    (place/'coco_gsam_seg').rename(training.root/'elsewhere')
    with pytest.raises(FileNotFoundError, match='files are missing'): train(training.config('other', data=str(folder), images=str(folder)))
    assert train(training.config('named', data=str(folder), images=str(folder), masks=str(training.root/'elsewhere')))['step'] == 1


def test_authors_input_list(tmp_path):
    pictures(tmp_path/'photos', caption=False)
    write_json(tmp_path/'input.json', [dict(img_path=f'/data/photos/photo{i}.png', caption=['a photo', 'a small picture']) for i in range(2)])
    assert [len(image.captions) for image in read_folder(tmp_path/'photos', tmp_path/'input.json').images] == [2, 2]


# ---- 5. words

@pytest.mark.parametrize('caption, nouns', [
    ('cat,dog', ['cat', 'dog']), ('apple,banana and a clock', ['apple', 'banana', 'clock']), ('a boat,a vase,a flag', ['boat', 'vase', 'flag']),
    ('teddy_bear, chair', ['teddy_bear', 'chair']), ('hot_dog, plate', ['hot_dog', 'plate']), ('stop_sign, traffic_light', ['stop_sign', 'traffic_light'])])
def test_comma_without_space_and_underscore_tags(caption, nouns):
    record, = noun_records([dict(image_id=0, file_name='0.jpg', text=caption)], load_tagger('tokencompose/zoo/tagger'), **NOUN_RULES['both'])
    assert [noun['noun'] for noun in record['nouns']] == nouns


# ---- 6. JSON and JSON lines

BOM = b'\xef\xbb\xbf'


def test_lists_and_prompts_with_bom(tmp_path):
    (tmp_path/'captions.jsonl').write_bytes(BOM + b'{"file_name": "1.jpg", "text": "a cat and a dog"}\n')
    assert list(read_captions(tmp_path/'captions.jsonl')[0]) == ['1.jpg']
    (tmp_path/'vsr.jsonl').write_bytes(BOM + b'{"image": "1.png", "image_link": "train2017/1.png"}\n')
    assert listed_images(tmp_path/'vsr.jsonl', 'train2017') == (['1.png'], 0)
    rows = [prompt_row(0, ['cat', 'clock'])]
    (tmp_path/'prompts.json').write_bytes(BOM + json.dumps(rows).encode())
    assert read_benchmark('multigen_coco', tmp_path/'prompts.json') == rows
    (tmp_path/'inputs.json').write_bytes(BOM + b'[{"unique_id": "0", "objects": ["cat", "clock"]}]')
    assert read_changes(tmp_path/'inputs.json', rows)[0]['objects'] == ['cat', 'clock']


@pytest.mark.parametrize('name, content, texts', [
    ('prompts.jsonl', '\n'.join(json.dumps(prompt_row(i, ['cat', name])) for i, name in enumerate(('dog', 'car'))), ['a photo of a cat and a dog.', 'a photo of a cat and a car.']),
    ('lines.txt', 'a red car\n\nthree clocks and one dog\n', ['a red car', 'three clocks and one dog']), ('texts.json', '["a cat", "a dog"]', ['a cat', 'a dog']),
    ('geneval.jsonl', '{"tag": "two_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}\n{"tag": "counting", "prompt": "three clocks"}', ['a photo of a cat', 'three clocks'])])
def test_prompts_of_other_benchmarks(tmp_path, name, content, texts):
    (tmp_path/name).write_text(content)
    rows = read_benchmark('multigen_coco', tmp_path/name, classes=False)
    assert [row['text'] for row in rows] == texts and [row['unique_id'] for row in rows] == [0, 1]
    if name != 'prompts.jsonl':
        with pytest.raises(ValueError, match='it names no classes to count'): read_benchmark('multigen_coco', tmp_path/name)


def test_prompts_that_say_nothing(tmp_path):
    (tmp_path/'rows.jsonl').write_text('{"tag": "x"}')
    with pytest.raises(ValueError, match='rows.jsonl, row 1: expected an object with text or prompt, or a text'): read_benchmark('multigen_coco', tmp_path/'rows.jsonl', classes=False)


# ---- 7. one's own folder: tests/test_own_images.py has more

def test_metadata_in_subfolder_and_beside_pictures(tmp_path):
    pictures(tmp_path/'set'/'train', caption=False)
    write_jsonl(tmp_path/'set'/'metadata.jsonl', [dict(file_name=f'train/photo{i}.png', text='a cat') for i in range(2)])
    for folder, captions in ((tmp_path/'set', ''), (tmp_path/'set', tmp_path/'set'/'metadata.jsonl'), (tmp_path/'set'/'train', tmp_path/'set'/'metadata.jsonl')):
        assert len(read_folder(folder, captions).images) == 2


@pytest.mark.parametrize('name, content', [
    ('coco.json', json.dumps(dict(images=[dict(id=i, file_name=f'photo{i}.png') for i in range(2)], annotations=[dict(id=i, image_id=i//2, caption=f'a cat {i}') for i in range(4)]))),
    ('kohya.json', json.dumps({f'/disk/photo{i}.png': dict(caption=f'a cat {i}') for i in range(2)}, indent=1)),
    ('mapping.json', json.dumps({f'photo{i}': [f'a cat {i}', 'more'] for i in range(2)})),
    ('captions.txt', 'image,caption\n' + ''.join(f'photo{i//2}.png,"a cat, {i}"\n' for i in range(4))),
    ('results.csv', 'image_name| comment_number| comment\n' + ''.join(f'photo{i//2}.png| {i}| a cat {i}\n' for i in range(4))),
    ('list.tsv', 'filepath\tfile_name\ttitle\n' + ''.join(f'x\tphoto{i}.png\ta cat; a dog, {i}\n' for i in range(2))),
    ('excel.csv', '\ufefffile_name;text\r\n' + ''.join(f'photo{i}.png;a cat, {i}\r\n' for i in range(2)))])
def test_lists_in_the_forms_that_are_in_use(tmp_path, name, content):
    pictures(tmp_path/'mine', caption=False)
    (tmp_path/name).write_text(content, encoding='utf-8')
    found = read_folder(tmp_path/'mine', tmp_path/name).images
    assert [image.file_name for image in found] == ['photo0.png', 'photo1.png'] and all(text.startswith('a cat') for image in found for _, text in image.captions[:1])


def test_a_folder_that_packs_its_pictures_is_told_of(tmp_path):
    (tmp_path/'data-00000-of-00001.arrow').write_bytes(b'')
    with pytest.raises(ValueError, match=r'holds no image: .* Its 1 \(data-00000-of-00001.arrow\) may hold them: write them out'): read_folder(tmp_path)


def test_instances_of_coco_for_ones_own_pictures(tmp_path, capsys):
    pictures(tmp_path/'mine'/'a', 2)
    for i, text in enumerate(('two cats and a car', 'a photo of a dog')): (tmp_path/'mine'/'a'/f'photo{i}.txt').write_text(text)
    square, cat = [[1, 1, 30, 1, 30, 30, 1, 30]], dict(category_id=3, image_id=1)
    things = [dict(cat, id=1, segmentation=square), dict(cat, id=2, segmentation=[[40, 40, 60, 40, 60, 60]]), dict(cat, id=3, segmentation=[[1, 1, 2, 2]]), dict(id=4, image_id=2, category_id=3, segmentation=square)]
    images = [dict(id=1, file_name='somewhere/a/photo0.png', height=64., width=64.), dict(id=2, file_name='photo1.png', height=32, width=32)]
    write_json(tmp_path/'instances.json', dict(images=images, annotations=things, categories=[dict(id=3, name='cat')]))
    counts = build_annotated(tmp_path/'set', read_folder(tmp_path/'mine'), str(tmp_path/'instances.json'))
    row, = read_jsonl(tmp_path/'set'/'metadata.jsonl')
    assert row['attn_list'][0][0] == 'cats' and 900 < load_mask(tmp_path/'set'/row['attn_list'][0][1]).sum() < 1200 and counts['images_without_mask'] == 1
    assert '1 odd records are left out' in (said := capsys.readouterr().out) and 'another size: masks of 1 (a/photo1.png)' in said
    write_json(tmp_path/'other.json', dict(images=[dict(id=1, file_name='x.png', height=64, width=64)], annotations=[], categories=[]))
    with pytest.raises(ValueError, match=r'other.json has no mask of any of the 2 pictures: .*give the file that belongs to them'): build_annotated(tmp_path/'other', read_folder(tmp_path/'mine'), tmp_path/'other.json')


def test_masks_that_exist_already_without_a_model(tmp_path):
    pictures(tmp_path/'mine')
    for i in range(2):
        (tmp_path/'mine'/f'photo{i}.txt').write_text('a photo of a cat')
        (tmp_path/'masks'/f'photo{i}').mkdir(parents=True)
        Image.new('L', (64, 64), 255).save(tmp_path/'masks'/f'photo{i}'/'cat.png')
    run('data_prep/own_images.ipynb', tmp_path, images=str(tmp_path/'mine'), masks=str(tmp_path/'masks'))
    assert [row['attn_list'][0][0] for row in read_jsonl(tmp_path/'out'/'tokencompose'/'metadata.jsonl')] == ['cat', 'cat'] and not (tmp_path/'out'/'captions').exists()


# ---- 9. models

def test_model_single_file(tmp_path):
    for path in ('weights/v1-5-pruned.safetensors', str(tmp_path/'model.ckpt')):
        with pytest.raises(ValueError, match=r'the folder of a pipeline is wanted\. .*from_single_file\(.*save_pretrained'): load_pipeline(path)
    with pytest.raises(FileNotFoundError, match='There is no model folder .*runs/nothing: check the parameter'): model_folder('runs/nothing')


def test_model_of_another_hub_id(tmp_path, monkeypatch):
    config = config_for(get_profile('sd14', model='me/sd15'))
    assert (config.model, config.revision) == ('me/sd15', '') and config_for(get_profile('sd14')).revision
    assert get_profile('sd14', judge='me/judge').judge_revision == '' and get_profile('sd14', model='me/sd15', revision='abc').revision == 'abc'
    assert get_profile('sd14', model=get_profile('sd14').model).revision == get_profile('sd14').revision


@pytest.mark.parametrize('options', [dict(variant='fp16'), dict(safe_serialization=False), dict(variant='fp16', safe_serialization=False), dict(max_shard_size='100KB')])
def test_model_in_other_forms_of_weights(tmp_path, options):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path/'model', **options)
    found = load_pipeline(str(tmp_path/'model'), device='cpu')
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.state_dict().values(), found.unet.state_dict().values())) and found.unet.dtype == torch.float32
    assert len(model_digest(str(tmp_path/'model'))) == 16


def test_model_with_a_variant_beside(tmp_path):
    "A folder that has both is read as it was before the variant came."
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path/'model')
    def content(): return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in (tmp_path/'model').rglob('*.*') if p.suffix in ('.json', '.txt')}
    settings, before = content(), model_digest(str(tmp_path/'model'))
    was = pipe.unet.conv_in.weight.detach().clone()
    with torch.no_grad(): pipe.unet.conv_in.weight.add_(1)
    pipe.save_pretrained(tmp_path/'model', variant='fp16')
    assert content() == settings
    assert model_digest(str(tmp_path/'model')) == before
    assert torch.equal(load_pipeline(str(tmp_path/'model'), device='cpu').unet.conv_in.weight, was)


def test_model_inpainting_sdxl_and_parts(tmp_path):
    pipe = tiny_pipeline()
    blocks = dict(down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'))
    sizes = dict(sample_size=16, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=16, attention_head_dim=(2, 2, 2), **blocks)
    plain, pipe.unet = pipe.unet, UNet2DConditionModel(in_channels=9, cross_attention_dim=32, **sizes)
    pipe.save_pretrained(tmp_path/'inpainting')
    with pytest.raises(ValueError, match='whose U-Net takes 9 channels instead of 4: Stable Diffusion 1 or 2 for text to image is wanted'): load_pipeline(str(tmp_path/'inpainting'))
    config = pipe.text_encoder.config
    config.projection_dim = 32
    unet = UNet2DConditionModel(in_channels=4, cross_attention_dim=64, addition_embed_type='text_time', addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6*8, **sizes)
    StableDiffusionXLPipeline(vae=pipe.vae, text_encoder=pipe.text_encoder, text_encoder_2=CLIPTextModelWithProjection(config), tokenizer=pipe.tokenizer, tokenizer_2=pipe.tokenizer,
                              unet=unet, scheduler=new_scheduler()).save_pretrained(tmp_path/'xl')
    with pytest.raises(ValueError, match='is a StableDiffusionXLPipeline with a text_encoder_2'): load_pipeline(str(tmp_path/'xl'))
    pipe.unet = plain
    pipe.save_pretrained(tmp_path/'half')
    for file in (tmp_path/'half'/'unet').glob('*.safetensors'): file.unlink()
    with pytest.raises(FileNotFoundError, match='has no weights in unet'): load_pipeline(str(tmp_path/'half'))
    (tmp_path/'half'/'unet'/'config.json').unlink()
    with pytest.raises(ValueError, match='without unet/config.json'): load_pipeline(str(tmp_path/'half'))


# ---- 10. odd COCO records

def test_coco_records(tmp_path):
    write_world(tmp_path/'scenes', train=4, val=1)
    captions, things = (tmp_path/'scenes'/'annotations'/f'{kind}_train2017.json' for kind in ('captions', 'instances'))
    said, drawn = read_json(captions), read_json(things)
    said['annotations'] = [a for a in said['annotations'] if a['image_id'] != 1]                                  # coco_image_without_caption
    for image in said['images'] + drawn['images']: image.update(height=64., width=64.)                            # coco_sizes_as_floats
    drawn['annotations'][0]['segmentation'] = [[1, 1, 20, 20]]                                                    # coco_two_point_polygon
    drawn['annotations'].append(dict(drawn['annotations'][0], id=9999, segmentation=[[1, 1, 20, 1, 20, 20, 1, 20], [1, 1, 20, 20]]))
    write_json(captions, said)
    write_json(things, drawn)
    coco = read_coco(tmp_path/'scenes')
    counts = build_dataset(tmp_path/'out', coco)
    assert [image.id for image in coco.images] == [0, 2, 3] and counts['rows'] == 3 and counts['odd_records'] == len(coco.left_out) == 2


# ---- 11. pictures

def test_photo_61_megapixels_and_png_large_profile(tmp_path):
    Image.new('L', (9504, 6336)).save(tmp_path/'photo.png')
    assert load_image(tmp_path/'photo.png').size == (9504, 6336)
    Image.new('RGB', (8, 8)).save(tmp_path/'profile.png', icc_profile=b'\0'*2_000_000)
    assert load_image(tmp_path/'profile.png').size == (8, 8)


@pytest.mark.parametrize('mode, clear', [('L', 7), ('RGB', (7, 7, 7)), ('P', 7), ('1', 0)])
def test_transparency_of_any_mode(tmp_path, mode, clear):
    picture = Image.new(mode, (4, 4), clear)
    if mode == 'P': picture.putpalette(list(range(30)))
    picture.putpixel((0, 0), 0 if mode != 'RGB' else (0, 0, 0)) if mode != '1' else picture.putpixel((0, 0), 1)
    picture.save(tmp_path/'a.png', transparency=clear)
    assert load_image(tmp_path/'a.png').getpixel((2, 2)) == (255, 255, 255)


# ---- 12. parameters

def test_missing_training_parameters_from_one_table():
    config = config_of(dict(profile='sd14', gradient_checkpointing=True, resolution=256))
    assert config.gradient_checkpointing and config.resolution == 256 and config.layers == ('mid_1x', 'up_2x', 'up_4x', 'up_8x')
    given = vars(command_line().parse_args(['--profile', 'sd14', '--gradient_checkpointing', '--resolution', '256', '--lr', '1e-5', '--layers', 'mid_1x', 'up_2x']))
    assert given.pop('encode_only') is False and config_of(given).lr == 1e-5 and config_of(given).layers == ('mid_1x', 'up_2x')
    cell = next(c for c in read_json(ROOT/'nbs'/'train.ipynb')['cells'] if 'parameters' in c['metadata'].get('tags', []))
    assert ''.join(cell['source']) == parameter_cell(PARAMETERS), 'the notebook and the command line have the same parameters: copy what parameter_cell(PARAMETERS) gives'
    assert vars(command_line().parse_args([])).keys() - {'encode_only'} == PARAMETERS.keys()


def test_yaml_learning_rate():
    namespace = {'In': ['', '# Parameters\nlr = "1e-5"'], '__annotations__': dict(lr=float), 'lr': '1e-5'}
    assert check_params(namespace)['lr'] == namespace['lr'] == 1e-5


# ---- 13. the machine

def test_read_only_data(training, tmp_path, monkeypatch):
    "Nothing is written beside the data; a cache that cannot be written is named, with the way out."
    before = {path: path.stat().st_mtime_ns for path in training.data.parent.rglob('*')}
    train(training.config(cache=str(tmp_path/'cache')))
    assert {path: path.stat().st_mtime_ns for path in training.data.parent.rglob('*')} == before and any((tmp_path/'cache').iterdir())
    (tmp_path/'a file').write_text('')
    with pytest.raises(OSError, match='cache .*cannot be written .*with the parameter cache or the variable TOKENCOMPOSE_CACHE'): train(training.config('other', cache=str(tmp_path/'a file'/'cache')))


def test_leftover_world_size_when_training(training, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    with pytest.raises(ValueError, match='WORLD_SIZE is 2 in the environment, but neither accelerate launch nor torchrun'): train(training.config())


# ---- 14. pictures of another program

def test_pictures_made_elsewhere(tmp_path, capsys):
    save_judge(tmp_path/'judge')
    pics = tmp_path/'pics'
    pics.mkdir()
    write_json(pics/'prompts.json', [prompt_row(0, ['cat', 'clock']), prompt_row(1, ['car', 'vase'])])
    for i in range(2): Image.new('RGB', (64, 64), 'white').save(pics/f'{i}_0.png')
    run('nbs/evaluate.ipynb', tmp_path, metric='multigen', images=str(pics), rounds=1, judge=str(tmp_path/'judge'), method='another_program')
    result = read_json(tmp_path/'out'/'multigen_coco'/'another_program.json')
    assert result['n']['images'] == 2 and 'has no settings.json: its pictures were made elsewhere' in capsys.readouterr().out


# ---- further kinds: prompts in tables, models that are not whole, pictures of others, folders that are files

@pytest.mark.parametrize('name, content', [
    ('parti.tsv', 'Prompt\tCategory\na cat, sitting\tAnimals\na dog\tAnimals\n'), ('list.csv', 'id,prompt\n1,"a cat, sitting"\n2,a dog\n')])
def test_prompts_in_a_table(tmp_path, name, content):
    (tmp_path/name).write_text(content, encoding='utf-8-sig')
    assert [(row['unique_id'], row['text']) for row in read_benchmark('multigen_coco', tmp_path/name, classes=False)] == [(0, 'a cat, sitting'), (1, 'a dog')]


def test_files_of_prompts_that_are_none(tmp_path):
    for place in (tmp_path, tmp_path/'none.txt'):
        with pytest.raises(FileNotFoundError, match='There is no file of prompts .*: name one that exists'): read_benchmark('multigen_coco', place, classes=False)
    (tmp_path/'a.txt').write_text('\n \n')
    with pytest.raises(ValueError, match='a.txt holds no prompt: write some into it'): read_benchmark('multigen_coco', tmp_path/'a.txt', classes=False)


@pytest.mark.parametrize('content', [b'\x10\0\0\0', b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n'])
def test_weights_that_broke_off(tmp_path, content):
    tiny_pipeline().save_pretrained(tmp_path/'sd')
    next((tmp_path/'sd'/'unet').glob('*.safetensors')).write_bytes(content)
    with pytest.raises(ValueError, match='The weights .*sd.* cannot be read .*: fetch or make it again'): load_pipeline(str(tmp_path/'sd'))


def test_a_pipeline_that_lacks_a_part(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path/'sd')
    shutil.rmtree(tmp_path/'sd'/'tokenizer')
    with pytest.raises(ValueError, match='StableDiffusionPipeline without tokenizer: fetch or copy it whole'): load_pipeline(str(tmp_path/'sd'))


@pytest.mark.parametrize('below', ['pipeline', 'snapshots/abc'])
def test_the_folder_above_a_pipeline(tmp_path, below):
    tiny_pipeline().save_pretrained(tmp_path/'run'/below)
    with pytest.raises(FileNotFoundError, match=f'run holds no pipeline .*, such as .*run/{below}'): load_pipeline(str(tmp_path/'run'))


def test_pictures_of_others_that_are_not_complete(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path/'0_0.jpg')
    rows = [dict(unique_id=0, text='a cat')]
    with pytest.raises(FileNotFoundError, match='1 missing, the first is 0_0.png.: put whole PNG files there, each named <unique_id>_<round>.png'): checked_pictures(tmp_path, rows)
    write_json(tmp_path/'settings.json', {})
    with pytest.raises(FileNotFoundError, match='run nbs/sample.ipynb again'): checked_pictures(tmp_path, rows)


@pytest.mark.parametrize('name', ['data', 'images'])
def test_a_run_does_not_go_into_its_own_data(training, name):
    with pytest.raises(ValueError, match='out_dir: .* is the folder of the data or of the images; choose another'): train(training.config(out_dir=str(getattr(training, name))))


def test_folders_that_are_files(training):
    with pytest.raises(ValueError, match='The data folder .*metadata.jsonl is a file: give the folder that holds it'): train(training.config(data=str(training.data/'metadata.jsonl')))
    (training.root/'file').write_text('x')
    with pytest.raises(NotADirectoryError, match='since a file is in its place'): train(training.config('file'))


def test_instances_by_the_command(tmp_path):
    pictures(tmp_path/'mine')
    for i in range(2): (tmp_path/'mine'/f'photo{i}.txt').write_text('a cat')
    images = [dict(id=i, file_name=f'photo{i}.png', width=64, height=64) for i in range(2)]
    things = [dict(id=i, image_id=i, category_id=1, segmentation=[[5, 5, 30, 5, 30, 30]]) for i in range(2)]
    given = dict(images=str(tmp_path/'mine'), masks=str(tmp_path/'instances.json'))
    with pytest.raises(Exception, match="There is no file of masks .*: give a .json of COCO's instances"): run('data_prep/own_images.ipynb', tmp_path, **given)
    write_json(tmp_path/'instances.json', dict(images=images, annotations=things, categories=[dict(id=1, name='cat')]))
    run('data_prep/own_images.ipynb', tmp_path, **given)
    assert [[noun for noun, mask in row['attn_list'] if mask] for row in read_jsonl(tmp_path/'out'/'tokencompose'/'metadata.jsonl')] == [['cat'], ['cat']]


def test_boxes_alone_are_no_masks(tmp_path):
    pictures(tmp_path/'mine')
    images = [dict(id=i, file_name=f'photo{i}.png', width=64, height=64) for i in range(2)]
    things = [dict(id=i, image_id=i, category_id=1, bbox=[5, 5, 25, 25], segmentation=[]) for i in range(2)]
    write_json(tmp_path/'boxes.json', dict(images=images, annotations=things, categories=[dict(id=1, name='cat')]))
    with pytest.raises(ValueError, match='boxes alone are no masks, export them with polygons'): build_annotated(tmp_path/'set', read_folder(tmp_path/'mine'), tmp_path/'boxes.json')


def test_a_long_prompt_is_told(tmp_path, capfd):
    (tmp_path/'prompts.txt').write_text('a cat\n' + 'a very '*60 + 'long dog\n')
    tiny_pipeline().save_pretrained(tmp_path/'sd')
    run('nbs/sample.ipynb', tmp_path, prompts_file=str(tmp_path/'prompts.txt'), model=str(tmp_path/'sd'), method='mine', rounds=1, inference_steps=1)
    assert '1 prompts are longer than the 40 tokens that the model reads, the first is 1' in capfd.readouterr().out


def test_instances_of_one_picture_in_two_entries_and_without_ids(tmp_path, capsys):
    pictures(tmp_path/'mine', 1)
    (tmp_path/'mine'/'photo0.txt').write_text('a cat and a t-shirt')
    images = [dict(id=i, file_name='photo0.png', width=64, height=64 if i < 3 else 32) for i in (1, 2, 3)]
    things = [dict(image_id=i, category_id=i, segmentation=[[5, 5, 30, 5, 30, 30]]) for i in (1, 2)]
    write_json(tmp_path/'twice.json', dict(images=images, annotations=things, categories=[dict(id=1, name='cat'), dict(id=2, name='T-Shirt')]))
    build_annotated(tmp_path/'set', read_folder(tmp_path/'mine'), tmp_path/'twice.json')
    row, = read_jsonl(tmp_path/'set'/'metadata.jsonl')
    assert [noun for noun, mask in row['attn_list'] if mask] == ['cat', 't-shirt']
    assert '1 odd records are left out, the first' in (said := capsys.readouterr().out) and 'image 3: photo0.png is listed twice, with two sizes' in said
    write_json(tmp_path/'odd.json', dict(images=[dict(id='one', file_name='photo0.png', width=64, height=64)], annotations=[], categories=[]))
    with pytest.raises(ValueError, match="it names no picture, give the file .*1 of its records are odd, the first: .*'id' must be a whole number, got 'one'"): build_annotated(tmp_path/'other', read_folder(tmp_path/'mine'), tmp_path/'odd.json')


@pytest.mark.parametrize('change, sentence', [
    (dict(scheduler=dict(_class_name='FlowMatchEulerDiscreteScheduler')), 'whose scheduler is FlowMatchEulerDiscreteScheduler'),
    (dict(scheduler=dict(prediction_type='sample')), 'predicts sample: one that predicts the noise'),
    (dict(text_encoder=dict(hidden_size=48)), 'width of text, of text encoder and U-Net: 48 and'), (dict(vae=dict(latent_channels=16)), 'channels of latents, of VAE and U-Net: 16 and 4')])
def test_a_base_model_of_another_kind(tmp_path, change, sentence):
    tiny_pipeline().save_pretrained(tmp_path/'sd')
    for part, new in change.items():
        path = tmp_path/'sd'/part/('scheduler_config.json' if part == 'scheduler' else 'config.json')
        write_json(path, read_json(path) | new)
    with pytest.raises(ValueError, match=sentence): load_pipeline(str(tmp_path/'sd'))


@pytest.mark.parametrize('name, content, sentence', [
    ('a.csv', 'prompt,kind\na cat, a dog and a pizza,animals\n', 'row 2: it has 3 columns and the header 2'), ('b.csv', 'id,prompt\n7,"a cat\n8,a dog\n', 'row 2: a quotation mark is not closed'),
    ('c.jsonl', '{"prompt": "a cat", "unique_id": [1]}', r'row 1: unique_id should be a number or a text, got \[1\]'), ('d.jsonl', '{"text": " "}', 'row 1: expected an object with text or prompt')])
def test_prompts_that_are_not_clear(tmp_path, name, content, sentence):
    (tmp_path/name).write_text(content)
    with pytest.raises(ValueError, match=sentence): read_benchmark('multigen_coco', tmp_path/name, classes=False)


def test_a_line_of_prompts_may_hold_any_sign(tmp_path):
    (tmp_path/'a.txt').write_text('a cat\u2028and a dog\r\na bird', encoding='utf-8', newline='')
    assert [row['text'] for row in read_benchmark('multigen_coco', tmp_path/'a.txt', classes=False)] == ['a cat\u2028and a dog', 'a bird']
