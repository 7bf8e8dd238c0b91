"""Pictures in COCO-Gen's layout: what is read, and what stops the reading."""
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from tokencompose.data.coco_gen import alpha_mask, is_coco_gen, masked_pictures, read_coco_gen
from tokencompose.data.dataset import write_dataset


def stroke(box, colour=(0, 0, 0, 90), size=(64, 48)):
    "A dark, half clear box on a clear ground."
    picture = Image.new('RGBA', size, (255, 255, 255, 0))
    ImageDraw.Draw(picture).rectangle(box, fill=colour)
    return picture


@pytest.fixture
def gen(tmp_path):
    "Two pictures, one of them without masks, a hidden folder and a file."
    for name, text, words in (('001', 'a cat and a hot dog', ['cat', 'hot dog', 'mat']), ('000', 'a dog on a mat', [])):
        folder = tmp_path/'gen'/name
        folder.mkdir(parents=True)
        Image.new('RGB', (64, 48), 'white').save(folder/'output.png')
        (folder/'prompt.txt').write_text(text + '\n')
        for n, word in enumerate(words): stroke((8 + n, 4, 27 + n, 23)).save(folder/f'{word}.gt.png')
    (tmp_path/'gen'/'.cache').mkdir()
    (tmp_path/'gen'/'readme.txt').write_text('two pictures')
    return tmp_path/'gen'


@pytest.mark.parametrize('colour', [(0, 0, 0, 90), (255, 0, 0, 1)])
def test_what_is_not_clear_belongs_to_the_mask(tmp_path, colour):
    stroke((8, 4, 27, 23), colour).save(tmp_path/'x.png')
    expected = torch.zeros(48, 64, dtype=torch.bool)
    expected[4:24, 8:28] = True
    assert torch.equal(alpha_mask(tmp_path/'x.png'), expected)


def test_a_palette_with_a_clear_colour(tmp_path):
    clear = Image.new('P', (64, 48))
    clear.paste(1, (8, 4, 28, 24))
    clear.save(tmp_path/'x.png', transparency=0)
    assert alpha_mask(tmp_path/'x.png').sum() == 400


def test_a_mask_without_alpha(tmp_path):
    stroke((8, 4, 27, 23)).convert('RGB').save(tmp_path/'cat.gt.png')
    with pytest.raises(ValueError, match=r'cat.gt.png has no alpha channel \(its mode is RGB\)'): alpha_mask(tmp_path/'cat.gt.png')


def test_rows(gen):
    rows = read_coco_gen(gen)
    assert [(r.id, r.text, r.nouns) for r in rows] == [('000', 'a dog on a mat', []), ('001', 'a cat and a hot dog', ['cat', 'hot dog', 'mat'])]
    assert (rows[1].file_name, rows[1].masks[1]) == ('001/output.png', '001/hot dog.gt.png')


def test_a_word_that_the_prompt_does_not_say(gen, clip_tokenizer):
    dataset = masked_pictures(gen, None, clip_tokenizer, 32, occurrence='all')
    assert [bool(ids) for ids in dataset[1]['token_ids']] == [True, True, False]
    assert dataset.aligned(1)[2].reason == 'not in the caption'
    assert dataset[0]['masks'].shape == (0, 32, 32)


def test_either_layout(gen, clip_tokenizer):
    authors, mask = gen.parent/'authors', torch.ones(48, 64, dtype=torch.bool)
    write_dataset(authors, [dict(file_name='001/output.png', text='a cat', nouns=[('cat', mask)])])
    assert [is_coco_gen(folder) for folder in (gen, authors, gen/'nowhere')] == [True, False, False]
    assert masked_pictures(authors, gen, clip_tokenizer, 32).rows[0].nouns == ['cat']


def test_folders_that_hold_no_pictures(gen, clip_tokenizer):
    with pytest.raises(FileNotFoundError, match='no metadata.jsonl in'): masked_pictures(gen/'nowhere', None, clip_tokenizer, 32)
    with pytest.raises(ValueError, match='has no subfolder'): read_coco_gen(gen/'001')


@pytest.mark.parametrize('name, change, sentence', [
    ('prompt.txt', Path.unlink, 'There is no .*prompt.txt: every subfolder'),
    ('prompt.txt', lambda path: path.write_text(' \n'), 'prompt.txt is empty'),
    ('prompt.txt', lambda path: path.write_bytes(b'\xff'), r'prompt.txt is not UTF-8 text \(byte 0\).'),
    ('output.png', Path.unlink, 'There is no picture .*output.png.'),
    ('cat.gt.png', lambda path: Image.new('L', (64, 48)).save(path), r'The mask .*cat.gt.png has no alpha channel \('),
    ('cat.gt.png', lambda path: stroke((1, 1, 2, 2), size=(32, 24)).save(path), 'cat.gt.png has 32x24 pixels and its picture 64x48: they do not belong together.'),
    ('cat.gt.png', lambda path: path.write_bytes(b'PNG?'), 'cat.gt.png cannot be read'),
])
def test_a_gap_stops_the_reading_with_its_name(gen, name, change, sentence):
    change(gen/'001'/name)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): read_coco_gen(gen)
