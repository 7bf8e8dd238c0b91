"""A folder of one's own images: what people really have in such folders."""
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, features

from tokencompose.core import write_jsonl
from tokencompose.data.dataset import GroundingDataset, load_image, read_rows, write_dataset
from tokencompose.data.folder import belongs_to, build_given, captions_beside, given_masks, list_pictures, listed_captions, read_folder
from tokencompose.data.masks import load_mask, MAX_PIXELS


def picture(mode='RGB', size=(30, 20), seed=0):
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def mine(tmp_path):
    "A folder with a.jpg and b.jpg, both captioned."
    for name in 'ab':
        picture().save(tmp_path/f'{name}.jpg')
        (tmp_path/f'{name}.txt').write_text(f'The caption of {name}.')
    return tmp_path


def add(folder, name, image=None, caption='A caption.', **options):
    (image or picture()).save(folder/name, **options)
    (folder/name).with_suffix('.txt').write_text(caption, encoding='utf-8')


def named(coco): return [image.file_name for image in coco.images]


# ---- pictures

@pytest.mark.parametrize('orientation', range(1, 9))
def test_sizes_are_upright(mine, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    add(mine, 'c.jpg', exif=exif)
    image = read_folder(mine).images[2]
    assert image.size == load_image(mine/'c.jpg').size[::-1] == ((30, 20) if orientation >= 5 else (20, 30))


def test_a_mask_of_that_size_fits_when_training(mine, clip_tokenizer):
    "The whole way for a portrait that a telephone stored lying: the mask is where the object is."
    values = np.zeros((20, 30, 3), np.uint8)
    values[:, :10] = 255  # white at the left as stored, at the top when turned
    exif = Image.Exif()
    exif[0x0112] = 6
    add(mine, 'c.png', Image.fromarray(values), exif=exif)
    image = read_folder(mine).images[2]
    mask = torch.zeros(image.size, dtype=torch.bool)
    mask[:10] = True
    write_dataset(mine/'set', [dict(file_name=image.file_name, text='a white cat', nouns=[('cat', mask)])])
    sample = GroundingDataset(mine/'set', mine, clip_tokenizer, 20)[0]
    white = sample['pixel_values'].mean(0) > 0
    assert white.any() and not white.all() and torch.equal(sample['masks'][0], white)


@pytest.mark.parametrize('name, mode', [('c.jpg', 'CMYK'), ('c.jpg', 'L'), ('c.png', 'P'), ('c.png', 'RGBA'), ('c.png', 'I;16'), ('c.png', '1'), ('c.WEBP', 'RGBA')])
def test_any_mode(mine, name, mode):
    add(mine, name, picture('L').convert('I;16') if mode == 'I;16' else picture(mode), **(dict(format='webp') if name.endswith('WEBP') else {}))
    assert read_folder(mine).images[2].size == (20, 30)


@pytest.mark.skipif(not features.check('webp'), reason='Pillow without WebP')
def test_the_first_frame_of_an_animation(mine):
    add(mine, 'c.webp', picture(), save_all=True, append_images=[picture(seed=1)])
    assert read_folder(mine).images[2].size == (20, 30)


def broken(folder, kind):
    if kind == 'truncated': (folder/'a.jpg').write_bytes((folder/'a.jpg').read_bytes()[:-100])
    if kind == 'empty': (folder/'a.jpg').write_bytes(b'')
    if kind == 'text': (folder/'a.jpg').write_text('<html>')
    if kind == 'bomb': Image.new('1', (MAX_PIXELS//1000 + 1, 1000)).save(folder/'a.jpg', format='PNG')


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'text', 'bomb'])
def test_a_broken_picture(mine, kind, capsys):
    broken(mine, kind)
    with pytest.raises(ValueError, match=r'has 2 images; images that cannot be read: 1 \(The image a.jpg cannot be read') as caught: read_folder(mine)
    assert 'gaps "skip"' in str(caught.value)
    assert [(image.id, image.file_name) for image in read_folder(mine, gaps='skip').images] == [('b.jpg', 'b.jpg')]
    assert 'left out: images that cannot be read: 1 (The image a.jpg' in capsys.readouterr().out


def test_nothing_is_left(mine):
    for name in 'ab': (mine/f'{name}.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='no image with a caption is left'): read_folder(mine, gaps='skip')


# ---- names

@pytest.mark.parametrize('name', ['my cat.jpg', 'cat (1).jpg', '猫.jpg', '🐈.jpg', "it's.jpg", 'a.b.c.jpg', '-x.jpg', 'UPPER.JPG'])
def test_strange_names(mine, name):
    add(mine, name)
    assert name in named(read_folder(mine))


def test_two_spellings_of_one_name(mine):
    "A disk may keep e and its accent apart, where the list has them together."
    add(mine, 'cafe\u0301.jpg')
    assert 'cafe\u0301.jpg' in named(read_folder(mine))
    write_jsonl(mine.parent/'list.jsonl', [dict(file_name=name, text='A caption.') for name in ('a.jpg', 'b.jpg', 'caf\u00e9.jpg')])
    assert 'cafe\u0301.jpg' in named(read_folder(mine, mine.parent/'list.jsonl'))


def test_a_name_that_is_not_utf8(mine):
    try: picture().save(os.fsencode(mine) + b'/\xff.jpg', format='jpeg')
    except OSError: pytest.skip('this disk has no such names')
    with pytest.raises(ValueError, match='is not UTF-8: rename it'): read_folder(mine)


@pytest.mark.parametrize('name', ['../a.jpg', '..', '.', '', '/'])
def test_a_path_that_leads_elsewhere_is_no_name(mine, name):
    write_jsonl(mine/'list.jsonl', [dict(file_name='b.jpg', text='x'), dict(file_name=name, text='x')])
    with pytest.raises(ValueError, match='list.jsonl, row 2: file_name must be the name of a file'): read_folder(mine, mine/'list.jsonl')


@pytest.mark.parametrize('name', ['/data/photos/a.jpg', 'sub/a.jpg', r'C:\pictures\a.jpg', './a.jpg', 'a', 'A.jpg', 'a.png'])
def test_a_path_of_another_machine_means_the_picture_of_that_name(mine, name):
    write_jsonl(mine/'list.jsonl', [dict(file_name='b.jpg', text='x'), dict(file_name=name, text='y')])
    assert read_folder(mine, mine/'list.jsonl').images[0].captions == ((0, 'y'),)


def test_a_name_that_two_pictures_have(mine):
    for folder in ('one', 'two'):
        (mine/folder).mkdir()
        add(mine/folder, 'c.jpg')
    rows = [dict(file_name=f'{name}.jpg', text=name) for name in 'ab']
    write_jsonl(mine.parent/'list.jsonl', [*rows, dict(file_name='c.jpg', text='x')])
    with pytest.raises(ValueError, match="'c.jpg' may be one/c.jpg or two/c.jpg: give the path below"): read_folder(mine, mine.parent/'list.jsonl')
    write_jsonl(mine.parent/'list.jsonl', [*rows, dict(file_name='set/one/c.jpg', text='x'), dict(file_name='two/c.jpg', text='y')])
    assert {i.file_name: i.captions[0][1] for i in read_folder(mine, mine.parent/'list.jsonl').images} == {'a.jpg': 'a', 'b.jpg': 'b', 'one/c.jpg': 'x', 'two/c.jpg': 'y'}
    write_jsonl(mine.parent/'list.jsonl', [*rows, dict(file_name='set/one/c.jpg', text='x'), dict(file_name='one/c.jpg', text='y')])
    with pytest.raises(ValueError, match="'one/c.jpg' is named twice"): read_folder(mine, mine.parent/'list.jsonl')


def test_duplicates(mine):
    picture().save(mine/'a.png')
    with pytest.raises(ValueError, match='a.jpg and a.png have the same name'): read_folder(mine)
    (mine/'a.png').unlink()
    write_jsonl(mine/'list.jsonl', [dict(file_name='a.jpg', text='x'), dict(file_name='b.jpg', text='z'), dict(file_name='a.jpg', text='y'), dict(file_name='a.jpg', text='x')])
    assert listed_captions(mine/'list.jsonl') == {'a.jpg': ('x', 'y'), 'b.jpg': ('z',)}, 'a caption a row, as lists of five captions a picture have it'


@pytest.mark.parametrize('same', ['a.png', 'A.webp', 'my_cat.png'])
def test_names_that_are_one_on_some_disk(mine, same):
    picture().save(mine/'my cat.jpg')
    (mine/same).write_bytes(b'')
    with pytest.raises(ValueError, match='have the same name'): list_pictures(mine)


def test_pictures_are_sorted_and_hidden_ones_left(tmp_path):
    for name in ('b cat.JPG', 'a.png', 'c.webp', 'd.jpeg', '.hidden.jpg', 'e.txt'): (tmp_path/name).write_bytes(b'')
    assert [p.name for p in list_pictures(tmp_path)] == ['a.png', 'b cat.JPG', 'c.webp', 'd.jpeg']


def test_ids(mine):
    "Twelve digits, as COCO's names are, are the id; else the name, which stays when others come."
    for name in 'ab': (mine/f'{name}.jpg').unlink(); (mine/f'{name}.txt').unlink()
    for n in (581929, 9): add(mine, f'{n:012d}.jpg')
    assert [image.id for image in read_folder(mine).images] == [9, 581929]
    add(mine, 'x.jpg')
    assert [image.id for image in read_folder(mine).images] == ['000000000009.jpg', '000000581929.jpg', 'x.jpg']


# ---- captions

@pytest.mark.parametrize('caption', ['word '*500 + 'end.', '一只猫在椅子上。', '🐈🐕‍🦺 👩🏽‍🚒', 'one\u2028line', 'a "quoted" \\ backslash'])
def test_strange_captions_come_as_they_are(mine, caption):
    add(mine, 'c.jpg', caption=caption)
    assert read_folder(mine).images[2].captions == ((0, caption),)
    write_jsonl(mine/'list.jsonl', [dict(file_name=f'{name}.jpg', text=caption) for name in 'abc'])
    assert read_folder(mine, mine/'list.jsonl').images[2].captions == ((0, caption),)


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_line_endings(mine, end):
    (mine/'a.txt').write_bytes(end.join(['\ufeffone', '', ' two ', '']).encode())
    assert read_folder(mine).images[0].captions == ((0, 'one'), (1, 'two'))


@pytest.mark.parametrize('text', ['', ' \n\n'])
def test_a_blank_caption_is_none(mine, text):
    (mine/'a.txt').write_text(text)
    with pytest.raises(ValueError, match=r'images without a caption: 1 \(a.jpg\)'): read_folder(mine)
    write_jsonl(mine/'list.jsonl', [dict(file_name='a.jpg', text=text), dict(file_name='b.jpg', texts=['', 'x'])])
    with pytest.raises(ValueError, match=r'images without a caption: 1 \(a.jpg\)'): read_folder(mine, mine/'list.jsonl')
    assert read_folder(mine, mine/'list.jsonl', gaps='skip').images[0].captions == ((0, 'x'),)


def test_gaps_are_counted_and_the_first_are_named(mine, capsys):
    for n in range(7): picture().save(mine/f'x{n}.jpg')
    (mine/'lost.txt').write_text('A caption.')
    with pytest.raises(ValueError, match=r'has 9 images; images without a caption: 7 \(x0.jpg, x1.jpg, x2.jpg, x3.jpg, x4.jpg, …\); captions without an image: 1 \(lost\)'): read_folder(mine)
    assert named(read_folder(mine, gaps='skip')) == ['a.jpg', 'b.jpg']
    assert 'images without a caption: 7' in capsys.readouterr().out


def test_what_is_not_looked_at_is_named(mine, capsys):
    (mine/'c.psd').write_bytes(b'x')
    (mine/'sub').mkdir()
    (mine/'sub'/'notes.md').write_text('x')
    (mine/'README.txt').write_text('About these.')
    (mine/'._a.jpg').write_bytes(b'left by a disk')
    (mine/'.cache').mkdir()
    picture().save(mine/'.cache'/'d.jpg')
    assert named(read_folder(mine)) == ['a.jpg', 'b.jpg']
    assert 'not looked at: 2 (c.psd, sub/notes.md)' in capsys.readouterr().out


def test_a_format_that_pillow_does_not_read_is_named(mine):
    add(mine, 'c.png')
    (mine/'c.png').rename(mine/'c.heic')
    (mine/'c.heic').write_bytes(b'x')
    with pytest.raises(ValueError, match='images that cannot be read: 1 .The image c.heic cannot be read'): read_folder(mine)


@pytest.mark.parametrize('content, sentence', [
    ('{"file_name": "a.jpg"', 'row 1: not valid JSON'),
    ('[1, 2', 'not valid JSON'),
    ('"a.jpg"', "row 1: expected an object, got 'a.jpg'"),
    ('{"file_name": "a.jpg", "text": "x"}\n{"file_name": 3, "text": "x"}', "row 2: 'file_name' must be text"),
    ('', 'names no picture: give a list that does'),
    ('{"caption": "x"}', "the key 'file_name' is missing"),
])
def test_a_list_that_is_none(mine, content, sentence):
    (mine/'list.jsonl').write_text(content)
    with pytest.raises(ValueError, match=sentence): read_folder(mine, mine/'list.jsonl')


def test_missing_inputs(mine, tmp_path):
    with pytest.raises(FileNotFoundError, match='no file of captions'): read_folder(mine, mine/'nowhere.jsonl')
    with pytest.raises(FileNotFoundError, match='no folder of images'): read_folder(mine/'nowhere')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='holds no image: expected files that end with .jpg'): read_folder(tmp_path/'empty')


ROWS = [dict(file_name='a.png', text=' A cat. '), dict(file_name='b cat.JPG', texts=['Eine Katze 🐈', '', '一只猫'])]


@pytest.mark.parametrize('row, sentence', [
    (dict(file_name='../s/a.png', text='x'), 'row 3: file_name must be the name'),
    (dict(file_name='a.png'), 'row 3: give either text'),
    (dict(file_name='c.webp', text='x', texts=[]), 'row 3: give either text'),
    (dict(file_name='c.webp', texts='x'), "row 3: 'texts' must be a list"),
    (dict(text='x'), "row 3: the key 'file_name' is missing"),
    (dict(file_name='c.webp', text=3), 'row 3: a caption must be text, got 3'),
    ([], 'row 3: expected an object'),
])
def test_a_row_that_says_nothing_clear(tmp_path, row, sentence):
    write_jsonl(tmp_path/'list.jsonl', [*ROWS, row])
    with pytest.raises(ValueError, match=sentence): listed_captions(tmp_path/'list.jsonl')


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path/'list.jsonl').write_text('{"file_name": "a.png", "text": "\\ud83d"}')
    with pytest.raises(ValueError, match='row 1: a caption holds half a surrogate pair'): listed_captions(tmp_path/'list.jsonl')
    (tmp_path/'list.jsonl').write_bytes('{"file_name": "é.png"}'.encode('latin-1'))
    with pytest.raises(ValueError, match=r'is not UTF-8 text \(byte 15\)'): listed_captions(tmp_path/'list.jsonl')
    (tmp_path/'d.TXT').write_bytes('Ünder'.encode('utf-16'))
    assert captions_beside(tmp_path) == {'d': ('Ünder',)}
    (tmp_path/'e.TXT').write_bytes('Ünder'.encode('latin-1'))
    with pytest.raises(ValueError, match='is not UTF-8 text'): captions_beside(tmp_path)


# ---- other layouts

@pytest.mark.parametrize('suffix', ['bmp', 'tif', 'tiff', 'gif', 'jfif', 'avif', 'BMP'])
def test_pictures_of_other_formats(mine, suffix):
    add(mine, f'c.{suffix}', **(dict(format='jpeg') if suffix == 'jfif' else {}))
    assert f'c.{suffix}' in named(read_folder(mine))


def test_subfolders_of_concepts(tmp_path):
    for folder, text in (('10_cat', 'a cat'), ('5_dog', 'a dog')):
        (tmp_path/folder).mkdir()
        add(tmp_path/folder, 'photo0.png', caption=text)
    coco = read_folder(tmp_path)
    assert [(i.id, i.file_name, i.captions[0][1]) for i in coco.images] == [('10_cat/photo0.png', '10_cat/photo0.png', 'a cat'), ('5_dog/photo0.png', '5_dog/photo0.png', 'a dog')]
    picture().save(tmp_path/'10_cat-photo0.png')
    with pytest.raises(ValueError, match='10_cat-photo0.png and 10_cat/photo0.png have the same name|have the same name'): list_pictures(tmp_path)


@pytest.mark.parametrize('suffix', ['caption', 'captions', 'TXT'])
def test_captions_of_other_suffixes(tmp_path, suffix):
    picture().save(tmp_path/'a.jpg')
    (tmp_path/f'a.{suffix}').write_text('A cat.\n')
    assert read_folder(tmp_path).images[0].captions == ((0, 'A cat.'),)


def test_two_files_of_captions(mine):
    (mine/'a.caption').write_text('The caption of a.')
    assert named(read_folder(mine)) == ['a.jpg', 'b.jpg']
    (mine/'a.caption').write_text('Another.')
    with pytest.raises(ValueError, match='a has two files of captions that differ .*: keep one'): read_folder(mine)


def test_captions_in_a_folder_of_their_own(mine):
    (mine.parent/'texts').mkdir(exist_ok=True)
    for name in 'ab': (mine/f'{name}.txt').rename(mine.parent/'texts'/f'{name}.txt')
    assert read_folder(mine, mine.parent/'texts').images[1].captions == ((0, 'The caption of b.'),)


def test_a_list_among_the_pictures(mine, capsys):
    for name in 'ab': (mine/f'{name}.txt').unlink()
    write_jsonl(mine/'metadata.jsonl', [dict(file_name=f'{name}.jpg', text=name) for name in 'ab'])
    assert [i.captions for i in read_folder(mine).images] == [((0, 'a'),), ((0, 'b'),)]
    assert 'captions are read from metadata.jsonl' in capsys.readouterr().out
    (mine/'a.txt').write_text('x')                                     # text files come first where there are any
    with pytest.raises(ValueError, match='images without a caption: 1'): read_folder(mine)


@pytest.mark.parametrize('name, content', [
    ('list.json', '[{"img_path": "/data/a.jpg", "caption": ["one", "two"]}, {"img_path": "/data/b.jpg", "caption": "three"}]'),
    ('list.csv', 'file_name,text\na.jpg,one\nb.jpg,"three, or four"\n'), ('list.csv', '\ufeffimage;caption\na.jpg;one\nb.jpg;three\n'),
    ('list.tsv', 'image\tprompt\na.jpg\tone\nb.jpg\tthree\n'), ('list.jsonl', '{"image": {"path": "a.jpg"}, "caption": "one"}\n{"image": "b.jpg", "captions": ["three"]}\n')])
def test_lists_of_other_forms(mine, name, content):
    (mine/name).write_text(content, encoding='utf-8')
    found = [i.captions for i in read_folder(mine, mine/name).images]
    assert found[0][0] == (0, 'one') and found[1][0][1].startswith('three')


def test_a_list_that_names_no_picture_says_what_it_needs(mine):
    (mine/'list.csv').write_text('id,label\n1,x\n')
    with pytest.raises(ValueError, match="list.csv, row 2: the key 'file_name' is missing .or img_path, image_path"): read_folder(mine, mine/'list.csv')
    (mine/'list.jsonl').write_text('{"file_name": "a.jpg", "label": 3}')
    with pytest.raises(ValueError, match='row 1: give either text .*or one of caption, captions, prompt, description; it has none of them'): read_folder(mine, mine/'list.jsonl')


@pytest.mark.parametrize('end', ['-masklabel', '-mask', '_mask', '.mask'])
def test_a_mask_beside_its_picture_is_no_picture(mine, end, capsys):
    picture('L').save(mine/f'a{end}.png')
    (mine/'masks').mkdir()
    picture('L').save(mine/'masks'/'b.png')
    assert named(read_folder(mine)) == ['a.jpg', 'b.jpg']
    assert f'not looked at: 2 (a{end}.png, masks/b.png)' in capsys.readouterr().out
    add(mine, 'an old_mask.png')                                       # a picture of a mask
    assert 'an old_mask.png' in named(read_folder(mine))


# ---- masks that exist already

def half(size=(30, 20), top=True):
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:10] = 255*top
    pixels[10:] = 255*(not top)
    return Image.fromarray(pixels)


def masked_set(mine, tmp_path, *given):
    coco = read_folder(mine)
    counts = build_given(tmp_path/'set', coco, given_masks(coco, *given))
    return counts, {row.file_name: dict(zip(row.nouns, row.masks)) for row in read_rows(tmp_path/'set')}


@pytest.fixture
def pair(tmp_path):
    folder = tmp_path/'mine'
    folder.mkdir()
    add(folder, 'a.jpg', caption='A teddy bear on a car.\nA car.')
    add(folder, 'b.jpg', caption='Two cats.')
    return folder


def test_a_folder_of_masks_for_each_picture(pair, tmp_path, capsys):
    for name, top in (('a/teddy_bear', True), ('a/car', False), ('b/cats_1', True), ('b/cats_2', False), ('b/zebra', True)):
        (tmp_path/'masks'/name).parent.mkdir(parents=True, exist_ok=True)
        half(top=top).save(tmp_path/'masks'/f'{name}.png')
    counts, rows = masked_set(pair, tmp_path, str(tmp_path/'masks'))
    assert rows == {'a.jpg': {'teddy bear': 'seg/a/mask_a_teddy_bear.png', 'car': 'seg/a/mask_a_car.png'}, 'b.jpg': {'cats': 'seg/b/mask_b_cats.png'}}
    assert load_mask(tmp_path/'set/seg/b/mask_b_cats.png').all() and load_mask(tmp_path/'set/seg/a/mask_a_car.png').float().mean() == .5
    assert counts['masks_not_in_captions'] == 1 and '1 masks show nothing that the caption says: 1 (zebra.png of b.jpg)' in capsys.readouterr().out
    half(top=True).save(tmp_path/'masks'/'a'/'car.png')                # a corrected mask
    masked_set(pair, tmp_path, str(tmp_path/'masks'))
    assert 'rows: 1 changed (a.jpg)' in capsys.readouterr().out and load_mask(tmp_path/'set/seg/a/mask_a_car.png')[:10].all()


@pytest.mark.parametrize('place', ['-masklabel', 'masks'])
def test_one_mask_a_picture(pair, tmp_path, place):
    (tmp_path/'masks').mkdir()
    half().convert('RGB').save(pair/'b-masklabel.png' if place == '-masklabel' else tmp_path/'masks'/'b.png')
    given = '' if place == '-masklabel' else str(tmp_path/'masks')
    with pytest.raises(ValueError, match='does not say what it shows: name it with noun .-p noun cat'): masked_set(pair, tmp_path, given)
    counts, rows = masked_set(pair, tmp_path, given, 'cats')
    assert rows == {'b.jpg': {'cats': 'seg/b/mask_b_cats.png'}} and counts['images_without_mask'] == 1


def test_cut_outs(tmp_path):
    folder = tmp_path/'mine'
    folder.mkdir()
    cut = picture().convert('RGBA')
    cut.putalpha(half())
    add(folder, 'a.png', cut, 'A photo of a vase.')
    _, rows = masked_set(folder, tmp_path, 'alpha', 'vase')
    assert rows == {'a.png': {'vase': 'seg/a/mask_a_vase.png'}} and load_mask(tmp_path/'set/seg/a/mask_a_vase.png').sum() == 300


def test_masks_that_are_not_there(pair, tmp_path):
    root = tmp_path/'masks'
    with pytest.raises(FileNotFoundError, match="There is no folder of masks .*: give one, a .json of COCO's instances, or alpha"): masked_set(pair, tmp_path, str(root))
    root.mkdir()
    with pytest.raises(ValueError, match='has no mask of any of the 2 pictures: name each as its picture'): masked_set(pair, tmp_path, str(root))
    (root/'a.json').write_text('{}')                                   # of labelme; or .txt of YOLO, .npy
    with pytest.raises(ValueError, match=r'no mask that is a picture, but 1 \(a.json\): write masks as pictures'): masked_set(pair, tmp_path, str(root))


def test_masks_in_a_folder_for_each_class(pair, tmp_path):
    for name, top in (('teddy_bear/a', True), ('car/a', False), ('cats/b', True)):
        (tmp_path/'masks'/name).parent.mkdir(parents=True, exist_ok=True)
        half(top=top).save(tmp_path/'masks'/f'{name}.PNG')
    _, rows = masked_set(pair, tmp_path, str(tmp_path/'masks'))
    assert rows == {'a.jpg': {'teddy bear': 'seg/a/mask_a_teddy_bear.png', 'car': 'seg/a/mask_a_car.png'}, 'b.jpg': {'cats': 'seg/b/mask_b_cats.png'}}


def test_masks_of_pictures_in_subfolders(tmp_path, capsys):
    "Masks that lie flat are taken where a name is one picture's; where two have it, none is guessed."
    for place, name in (('one', 'a'), ('one', 'b'), ('two', 'b')):
        (tmp_path/'mine'/place).mkdir(parents=True, exist_ok=True)
        add(tmp_path/'mine'/place, f'{name}.jpg', caption='A cat.')
    (tmp_path/'masks'/'b').mkdir(parents=True)
    half().save(tmp_path/'masks'/'a.png')
    half().save(tmp_path/'masks'/'b'/'cat.png')
    assert masked_set(tmp_path/'mine', tmp_path, str(tmp_path/'masks'), 'cat')[1].keys() == {'one/a.jpg'}
    assert 'masks: masks of no picture that has a caption: 1 (b/cat.png)' in capsys.readouterr().out


def test_a_mask_of_another_shape(pair, tmp_path):
    (tmp_path/'masks').mkdir()
    half((30, 40)).save(tmp_path/'masks'/'b.png')
    with pytest.raises(ValueError, match='b.png has 30x40 pixels and its picture 30x20: they do not belong together'): masked_set(pair, tmp_path, str(tmp_path/'masks'), 'cats')


def test_masks_of_one_noun_in_two_sizes(pair, tmp_path):
    (tmp_path/'masks'/'b').mkdir(parents=True)
    half().save(tmp_path/'masks'/'b'/'cats_1.png')
    half((60, 40), top=True).resize((60, 40)).save(tmp_path/'masks'/'b'/'cats_2.png')
    masked_set(pair, tmp_path, str(tmp_path/'masks'))
    mask = load_mask(tmp_path/'set/seg/b/mask_b_cats.png')
    assert mask.shape == (20, 30) and mask[:10].all() and not mask[10:].any()


def test_nouns_that_no_caption_says_are_named_where_none_is_left(pair, tmp_path, capsys):
    (tmp_path/'masks'/'b').mkdir(parents=True)
    half().save(tmp_path/'masks'/'b'/'0.png')                          # as automatic masks are numbered
    with pytest.raises(ValueError, match='None of the 2 images has a noun with a mask'): masked_set(pair, tmp_path, str(tmp_path/'masks'))
    assert 'show nothing that the caption says: 1 (0.png of b.jpg)' in capsys.readouterr().out


def test_results_do_not_go_among_the_pictures(pair):
    with pytest.raises(ValueError, match='is the folder of the pictures themselves, .*: choose another .-p out_dir FOLDER'): belongs_to(pair, pair)
    assert not (pair/'pictures.txt').exists()


def test_results_in_a_folder_inside_are_no_pictures(mine):
    before = read_folder(mine)
    belongs_to(mine/'out', mine)
    (mine/'out'/'seg').mkdir()
    (mine/'out'/'seg'/'mask_a_cat.png').write_bytes((mine/'a.jpg').read_bytes()); (mine/'out'/'captions.txt').write_text('a note')
    again = read_folder(mine)
    assert [(i.file_name, i.captions) for i in again.images] == [(i.file_name, i.captions) for i in before.images]
    belongs_to(mine/'out', mine)


@pytest.mark.parametrize('key', ['data', 'images'])
def test_a_list_inside_an_object(mine, key):
    (mine/'list.json').write_text(json.dumps({'info': {'year': 2024}, key: [dict(file_name=f'{name}.jpg', caption=name) for name in 'ab']}))
    assert [i.captions for i in read_folder(mine, mine/'list.json').images] == [((0, 'a'),), ((0, 'b'),)]


def test_a_workbook_is_no_list(mine):
    with zipfile.ZipFile(mine/'list.xlsx', 'w') as file: file.writestr('xl/workbook.xml', '')
    with pytest.raises(ValueError, match='list.xlsx is a workbook or an archive: save its list as CSV'): read_folder(mine, mine/'list.xlsx')


def test_a_file_is_no_folder(mine):
    with pytest.raises(ValueError, match='a.jpg is a file: give the folder that holds the pictures'): read_folder(mine/'a.jpg')


def test_two_folders_of_one_name(tmp_path):
    for name in ('first', 'second'): (tmp_path/name/'images').mkdir(parents=True)
    belongs_to(tmp_path/'out', tmp_path/'first'/'images')
    belongs_to(tmp_path/'out', tmp_path/'first'/'images')
    with pytest.raises(ValueError, match='belongs to the pictures in .*first/images: give those in .*second/images a folder of their own'): belongs_to(tmp_path/'out', tmp_path/'second'/'images')
    (tmp_path/'first').rename(tmp_path/'moved')
    belongs_to(tmp_path/'out', tmp_path/'moved'/'images')


def test_gaps_of_another_kind(mine):
    with pytest.raises(ValueError, match='error or skip'): read_folder(mine, gaps='ignore')


def test_all_gaps_are_told_together(mine):
    add(mine, 'c.jpg', caption=' \n')
    (mine/'lost.txt').write_text('A caption.')
    (mine/'a.jpg').write_bytes((mine/'a.jpg').read_bytes()[:200])
    told = r'has 3 images; images without a caption: 1 \(c.jpg\); captions without an image: 1 \(lost\); images that cannot be read: 1 \(The image a.jpg'
    with pytest.raises(ValueError, match=told): read_folder(mine)


def test_masks_inside_the_folder_are_no_pictures(mine, capsys):
    "With `-p masks` they are neither asked for captions nor listed as files that nobody looked at."
    (mine/'masks'/'a').mkdir(parents=True)
    shutil.copy(mine/'a.jpg', mine/'masks'/'a'/'cat.png')
    before = named(read_folder(mine, masks=mine/'masks'))
    assert 'masks' not in capsys.readouterr().out and not [name for name in before if 'masks' in name]
    with pytest.raises(ValueError, match='images without a caption: 1 .masks/a/cat.png.'): read_folder(mine)


# ---- lists, links and formats that lose nothing in silence

@pytest.mark.parametrize('content, sentence', [
    ('file_name,text\na.jpg,one\nb.jpg,a cat, a dog and a pizza\n', r"row 3: it has 3 columns and the header 2; put text that holds ',' between quotation marks"),
    ('file_name,text\na.jpg,"a cat\nb.jpg,a dog\n', r'row 2: a quotation mark is not closed'),
    ('file_name,text\na.jpg,"a 5" cat\nb.jpg,a dog\n', r'row 2: a quotation mark is not closed, or stands inside a text alone')])
def test_a_table_whose_columns_are_not_clear(tmp_path, content, sentence):
    (tmp_path/'list.csv').write_text(content)
    with pytest.raises(ValueError, match=sentence): listed_captions(tmp_path/'list.csv')


def test_empty_columns_at_the_end_may_be_there_or_not(tmp_path):
    (tmp_path/'list.csv').write_text('file_name,text,note\na.jpg,one\nb.jpg,two,,,\n')
    assert listed_captions(tmp_path/'list.csv') == {'a.jpg': ('one',), 'b.jpg': ('two',)}
    (tmp_path/'list.csv').write_text('file_name,text\na.jpg\n')
    with pytest.raises(ValueError, match='row 2: give either text'): listed_captions(tmp_path/'list.csv')


@pytest.mark.parametrize('between', ['\t', '|'])
def test_quotation_marks_in_a_table_with_tabs_or_bars_are_text(tmp_path, between):
    (tmp_path/'list.tsv').write_text('file_name\ttext\na.jpg\t"STOP" on a sign, red\nb.jpg\ta 5" cat\n'.replace('\t', between))
    assert listed_captions(tmp_path/'list.tsv') == {'a.jpg': ('"STOP" on a sign, red',), 'b.jpg': ('a 5" cat',)}


def test_a_caption_that_is_an_object(tmp_path):
    (tmp_path/'list.jsonl').write_text('{"file_name": "a.jpg", "caption": {"en": "a cat"}}')
    with pytest.raises(ValueError, match="row 1: 'caption' must be text or a list of texts, got {'en': 'a cat'}"): listed_captions(tmp_path/'list.jsonl')


def test_links_are_followed_and_those_to_nothing_named(mine, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    add(other, 'c.jpg')
    (other/'again').symlink_to(other)
    for name in ('sub', 'the same'): (mine/name).symlink_to(other)
    (mine/'itself').symlink_to(mine)
    (mine/'above').symlink_to(mine.parent/'nothing else')
    assert named(read_folder(mine)) == ['a.jpg', 'b.jpg', 'sub/c.jpg']
    (mine/'d.jpg').symlink_to(mine/'nowhere.jpg')
    (mine/'d.txt').write_text('a cat')
    with pytest.raises(ValueError, match=r'images that cannot be read: 1 \(There is no image d.jpg'): read_folder(mine)


def test_a_telephones_own_format_is_told_what_to_do(mine):
    (mine/'c.heic').write_bytes(b'\0\0\0\x18ftypheic' + b'\0'*100)
    (mine/'c.txt').write_text('a cat')
    with pytest.raises(ValueError, match=r'The image c.heic cannot be read \(no format that Pillow knows\): save it as PNG or JPEG'): read_folder(mine)


@pytest.mark.parametrize('suffix', ['jpg', 'tif', 'png', 'webp'])
def test_a_turned_picture_of_any_format_has_its_mask_where_the_object_is(tmp_path, suffix, clip_tokenizer):
    values = np.zeros((20, 30, 3), np.uint8)
    values[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path/'mine'
    folder.mkdir()
    add(folder, f'a.{suffix}', Image.fromarray(values), 'a cat', exif=exif)
    image, = read_folder(folder).images
    mask = torch.zeros(image.size, dtype=torch.bool)
    mask[:10] = True
    write_dataset(tmp_path/'set', [dict(file_name=image.file_name, text='a cat', nouns=[('cat', mask)])])
    item = GroundingDataset(tmp_path/'set', folder, clip_tokenizer, resolution=16)[0]
    assert ((item['pixel_values'].mean(0) > 0) == item['masks'][0]).float().mean() > .9


def test_empty_masks_are_none_and_named(pair, tmp_path, capsys):
    (tmp_path/'masks').mkdir()
    Image.new('L', (30, 20)).save(tmp_path/'masks'/'a.png')
    half().save(tmp_path/'masks'/'b.png')
    for name in 'ab': (pair/f'{name}.txt').write_text('a cat')
    counts, rows = masked_set(pair, tmp_path, str(tmp_path/'masks'), 'cat')
    assert list(rows) == ['b.jpg'] and counts['images_without_mask'] == 1
    assert 'Masks without a white pixel, taken for none: 1 (a.png of a.jpg)' in capsys.readouterr().out


def test_another_noun_for_the_same_pictures_makes_their_rows_anew(pair, tmp_path, capsys):
    (tmp_path/'masks').mkdir()
    for name in 'ab':
        half().save(tmp_path/'masks'/f'{name}.png')
        (pair/f'{name}.txt').write_text('a cat and a dog')
    masked_set(pair, tmp_path, str(tmp_path/'masks'), 'cat')
    _, rows = masked_set(pair, tmp_path, str(tmp_path/'masks'), 'dog')
    assert [list(row) for row in rows.values()] == [['dog'], ['dog']]
    assert 'rows: 2 changed (a.jpg, b.jpg).\n' in capsys.readouterr().out, 'none is kept'
    for name in 'ab': picture(seed=9).save(pair/f'{name}.jpg')
    with pytest.raises(ValueError, match='made of other images: none of the 2'): masked_set(pair, tmp_path, str(tmp_path/'masks'), 'dog')
