"""Masks and the data set on inputs that hypothesis invents: files, sizes, nouns, rows, batches."""
import io
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import transforms

from tokencompose.data.dataset import collate, crop_geometry, fit_image, fit_masks, GroundingDataset, load_image
from tokencompose.data.dataset import read_rows, summary, write_dataset, write_row
from tokencompose.data.masks import load_mask, mask_fractions, mask_targets, pack_targets, RULES, save_mask
from tokencompose.data.masks import TargetTable

QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
sides = st.integers(1, 24)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(bool, shape)).map(torch.from_numpy)
several = st.tuples(st.integers(0, 4), sides, sides).flatmap(lambda shape: arrays(bool, shape)).map(torch.from_numpy)
names = st.text(min_size=1, max_size=40).filter(lambda text: text.strip())


@QUICK
@given(st.integers(0, 400), st.integers(0, 399), st.integers(0, 255))
def test_damaged_pictures_give_one_sentence_or_a_mask(tmp_path, length, place, value):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 50), dtype=np.uint8)*255).convert('RGBA').save(whole, 'PNG')
    damaged = bytearray(whole.getvalue()[:max(length, 1)])
    damaged[place % len(damaged)] = value
    (tmp_path/'m.png').write_bytes(damaged)
    for read, kind in ((load_mask, torch.Tensor), (load_image, Image.Image)):
        try: assert isinstance(read(tmp_path/'m.png'), kind)
        except ValueError as error: assert 'm.png' in str(error) and '\n' not in str(error)


@QUICK
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 10**6))
def test_image_and_masks_are_cut_alike(width, height, resolution, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = transforms.Compose([transforms.Resize(resolution), transforms.CenterCrop(resolution)])(image)
    assert torch.equal(fit_image(image, resolution), torch.from_numpy(np.array(theirs)).permute(2, 0, 1)/127.5 - 1)
    whole = torch.ones(1, height, width, dtype=torch.bool)
    assert fit_masks(whole, resolution).all() and fit_masks(whole, resolution).shape == (1, resolution, resolution)
    (w, h), (left, top) = crop_geometry(width, height, resolution)
    half = torch.zeros(1, height, width, dtype=torch.bool)
    half[..., :width//2] = True
    fitted = fit_masks(half, resolution)[0]
    edge = np.clip(width//2*w/width - left, 0, resolution)   # where the edge of the left half comes to lie
    assert abs(fitted.float().sum(1) - edge).max() <= .5 + 1e-6


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
almost_rows = st.fixed_dictionaries({}, optional=dict(file_name=json_values | st.just('a.png'), text=json_values | st.just('a cat'), id=json_values, spans=json_values,
                                                       attn_list=json_values | st.lists(st.lists(json_values | st.just('cat'), min_size=2, max_size=2), max_size=2)))


@QUICK
@given(st.lists(almost_rows | json_values, max_size=3), st.booleans())
def test_no_metadata_ends_in_anything_but_a_sentence(tmp_path, rows, array):
    text = json.dumps(rows) if array else '\n'.join(map(json.dumps, rows))
    (tmp_path/'metadata.jsonl').write_text(text)
    try: found = read_rows(tmp_path)
    except ValueError as error: assert 'metadata.jsonl' in str(error) and '\n' not in str(error)
    else:
        assert len({row.id.casefold() for row in found}) == len(found) == len(rows)
        for row in found:
            assert isinstance(row.text, str) and len(row.nouns) == len(row.masks) == len(row.spans)
            for path in [row.file_name, *filter(None, row.masks)]: assert os.path.abspath(tmp_path/path).startswith(str(tmp_path))


@QUICK
@given(st.binary(max_size=60))
def test_bytes_that_are_no_metadata(tmp_path, content):
    (tmp_path/'metadata.jsonl').write_bytes(content)
    with pytest.raises(ValueError, match='metadata.jsonl'): read_rows(tmp_path)


@QUICK
@given(st.lists(names, min_size=1, max_size=5), names, names)
def test_any_nouns_are_written_below_the_folder_and_read_back(tmp_path_factory, nouns, text, stem):
    folder = tmp_path_factory.mktemp('place')/'data'  # a parent of its own, so that what leads out of the folder shows
    drawn = [torch.eye(len(nouns), dtype=torch.bool)[n:n + 1] for n in range(len(nouns))]
    row = dict(file_name='1.png', text=text, nouns=list(zip(nouns, drawn)), id=stem)
    write_dataset(folder, [row])
    back, = read_rows(folder)
    assert (back.text, back.nouns, back.id) == (text, nouns, stem)
    for path, mask in zip(back.masks, drawn): assert torch.equal(load_mask(folder/path), mask)
    outside = [p for p in folder.parent.rglob('*.png') if folder not in p.parents]
    assert not outside and len(list(folder.rglob('*.png'))) == len(nouns)


def test_row_of_the_authors(tmp_path, clip_tokenizer):
    "A row as they publish it, masks as their script saves them (matplotlib, grey map), images elsewhere, a noun with 'seg'."
    import matplotlib.pyplot as plt
    (tmp_path/'train2017').mkdir()
    Image.new('RGB', (640, 480), 'white').save(tmp_path/'train2017'/'000000000397.jpg')
    mask = np.zeros((480, 640), bool)
    mask[100:300, 200:450] = True
    folder = tmp_path/'coco_gsam_seg'/'000000000397'
    folder.mkdir(parents=True)
    plt.imsave(folder/'mask_000000000397_segway.png', mask, cmap='gray')
    plt.imsave(folder/'mask_000000000397_dining_table.png', ~mask, cmap='gray')
    row = dict(file_name='000000000397.jpg', text='A segway at a dining table.', attn_list=[['segway', 'seg/000000000397/mask_000000000397_segway.png'],
               ['dining table', 'seg/000000000397/mask_000000000397_dining_table.png'], ['top', None]])
    (tmp_path/'metadata.jsonl').write_text(json.dumps(row))
    data = GroundingDataset(tmp_path, tmp_path/'train2017', clip_tokenizer, 512, masks=tmp_path/'coco_gsam_seg')
    item = data[0]
    assert item['pixel_values'].shape == (3, 512, 512) and item['input_ids'].shape == (77,)
    assert torch.equal(item['masks'][0], ~item['masks'][1]) and not item['masks'][2].any()
    assert abs(item['masks'][0].float().mean() - 200*250/480**2) < .002
    decoded = [clip_tokenizer.decode(item['input_ids'][ids]).strip() for ids in item['token_ids']]
    assert decoded[:2] == ['segway', 'dining table'] and item['token_ids'][2] == []
    batch = collate([item], [(64, 64), (8, 8)])
    assert batch['targets'].valid[8, 8].tolist() == [[True, True, False]]


def test_summary_of_captions_that_people_wrote(tmp_path, clip_tokenizer):
    "Every second row of the authors' list: no caption is cut, and about 18 % of the nouns have several tokens."
    from conftest import ROOT
    source = ROOT.parent/'shared'/'data'/'captions_nouns.jsonl'
    if not source.is_file(): pytest.skip(f"needs {source}: every second row of the authors' training list")
    rows = [json.loads(line) for line in source.read_text(encoding='utf-8').splitlines()]
    with open(tmp_path/'metadata.jsonl', 'w') as f:
        for row in rows: f.write(json.dumps(dict(file_name=row['file_name'], text=row['text'], attn_list=[[noun, f'seg/{n}.png'] for n, noun in enumerate(row['nouns'])])) + '\n')
    counts = summary(GroundingDataset(tmp_path, None, clip_tokenizer, 512, check=False))
    assert counts['rows'] == len(rows) and counts['truncated_captions'] == 0 and counts['rows_without_mask'] == 0
    assert counts['nouns'] == counts['masked_nouns'] == counts['supervised_nouns'] + sum(counts['left_out'].values()) == sum(len(row['nouns']) for row in rows)
    assert counts['multi_word'] == sum(' ' in noun for row in rows for noun in row['nouns'])
    several = sum(n for tokens, n in counts['sub_tokens'].items() if tokens > 1)/counts['supervised_nouns']
    assert .14 < several < .22, counts
