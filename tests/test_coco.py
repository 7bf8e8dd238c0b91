"""COCO as a grounding data set: files that are wrong, words that name a class, masks of nouns, and a data set that is stopped, repaired and drawn."""
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import seaborn as sns
import torch
from PIL import Image

from tokencompose.core import read_json, write_json, write_jsonl, write_text
from tokencompose.data.classes import COCO_80
from tokencompose.data.coco import bar_panels, build_dataset, caption_page, choose_caption, claim_folder, ClassWords, CocoImage, count_rows, examples_of, first_of_each, ground, Instance
from tokencompose.data.coco import plural, read_coco, read_examples, read_instances, SYNONYMS
from tokencompose.data.dataset import read_rows
from tokencompose.data.masks import encode_rle, load_mask

CATS = [[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0]]


def write_toy(folder, captions=None, instances=None, statements=None):
    "Two images of 4 x 6 pixels: two cats (a polygon, run lengths) and a crowd in the one, a dog in the other."
    folder = Path(folder)
    images = [dict(id=7, file_name='b.png', height=4, width=6), dict(id=3, file_name='a.png', height=4, width=6)]
    texts = {7: ['Two cats near people.', 'A cat and a man.'], 3: ['nothing much ', 'A Dog, a hot dog']}
    default = [dict(id=10*i + n, image_id=i, caption=c) for i in texts for n, c in enumerate(texts[i])]
    square, column = [[0, 0, 2, 0, 2, 2, 0, 2]], dict(size=[4, 6], counts=[16, 4, 4])
    things = [dict(id=1, image_id=7, category_id=17, segmentation=square, iscrowd=0), dict(id=2, image_id=7, category_id=17, segmentation=column, iscrowd=0),
              dict(id=3, image_id=7, category_id=1, segmentation=dict(size=[4, 6], counts=[20, 4]), iscrowd=1),
              dict(id=4, image_id=3, category_id=18, segmentation=encode_rle(np.eye(4, 6, dtype=bool)), iscrowd=0)]
    categories = [dict(id=i, name=n) for i, n in {1: 'person', 17: 'cat', 18: 'dog', 58: 'hot dog'}.items()]
    write_json(folder/'annotations'/'captions_val2017.json', dict(images=images, annotations=default) | (captions or {}))
    write_json(folder/'annotations'/'instances_val2017.json', dict(images=images, annotations=things, categories=categories) | (instances or {}))
    write_jsonl(folder/'vsr.jsonl', statements or [dict(image='b.png', image_link='http://host/val2017/b.png'), dict(image='c.png', image_link='http://host/train2017/c.png')])
    (folder/'val2017').mkdir(exist_ok=True)
    for image in images: Image.new('RGB', (6, 4), 'white').save(folder/'val2017'/image['file_name'])
    return folder


def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


@pytest.fixture
def data(tmp_path): return write_toy(tmp_path/'data')


@pytest.fixture
def toy(data): return read_coco(data, 'val2017')


@pytest.fixture
def words(toy): return ClassWords(toy.classes)


# ---- the files

def test_images_in_order_of_their_ids(toy, data):
    assert [image.id for image in toy.images] == [3, 7] and toy.classes == ('person', 'cat', 'dog', 'hot dog')
    assert toy.images[0].captions == ((30, 'nothing much'), (31, 'A Dog, a hot dog'))
    assert [(i.name, i.crowd) for i in toy.images[1].instances] == [('cat', False), ('cat', False), ('person', True)]
    assert toy.files == tuple(data/'annotations'/f'{kind}_val2017.json' for kind in ('captions', 'instances'))


def test_a_list_names_the_images_of_a_split(data):
    some = read_coco(data, 'val2017', 'vsr.jsonl')
    assert [image.id for image in some.images] == [7] and some.elsewhere == 1 and some.files[2] == data/'vsr.jsonl'


IMAGE = dict(id=3, file_name='a.png', height=4, width=6)


@pytest.mark.parametrize('changes, message', [
    (dict(captions=dict(images=[])), 'holds no images'),
    (dict(captions=dict(annotations={})), "'annotations' must be a list"),
    (dict(captions=dict(images=[dict(IMAGE, id=True)])), 'holds no images'),
    (dict(captions=dict(annotations=[])), 'no image has a caption (the first is 3)'),
    (dict(captions=dict(annotations=[5])), 'no image has a caption'),
    (dict(instances=dict(images=[dict(IMAGE, id=99)], annotations=[])), 'knows none of the 2 images'),
])
def test_what_is_wrong_with_a_file_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError) as caught: read_coco(write_toy(tmp_path, **changes), 'val2017')
    assert message in str(caught.value)


THING, CAPTION, SQUARE = dict(id=5, image_id=3, category_id=18), dict(id=1, image_id=3, caption='a dog'), [0, 0, 2, 0, 2, 2, 0, 2]


@pytest.mark.parametrize('changes, images, message', [
    (dict(captions=dict(annotations=[CAPTION, dict(id=2, image_id=7)])), [3], "annotation 1: the key 'caption' is missing"),
    (dict(captions=dict(annotations=[CAPTION, dict(CAPTION, id=2, image_id=9)])), [3], 'annotation 2: its image 9 is not among'),
    (dict(captions=dict(annotations=[CAPTION, 5])), [3], 'annotation 1: expected an object, got 5'),
    (dict(captions=dict(annotations=[CAPTION, dict(id=2, image_id=7, caption=' ')])), [3], 'the image 7 (b.png) has no caption'),
    (dict(captions=dict(images=[IMAGE, IMAGE])), [3], 'the id 3 comes twice'),
    (dict(captions=dict(images=[IMAGE, dict(id=7, file_name='b.png')])), [3], "image 1: the key 'height' is missing"),
    (dict(captions=dict(images=[IMAGE, dict(id=7, file_name='b.png', height=4.5, width=6)])), [3], "'height' must be a whole number, got 4.5"),
    (dict(instances=dict(images=[IMAGE], annotations=[])), [3, 7], ''),
    (dict(instances=dict(annotations=[dict(THING, category_id=99, segmentation=[SQUARE])])), [3, 7], 'annotation 5: its category 99 is not defined'),
    (dict(instances=dict(annotations=[dict(THING, segmentation='x')])), [3, 7], "'segmentation' must be polygons or run lengths"),
    (dict(instances=dict(annotations=[THING])), [3, 7], "the key 'segmentation' is missing"),
])
def test_one_odd_record_is_left_out_counted_and_named(tmp_path, changes, images, message, capsys):
    coco = read_coco(write_toy(tmp_path, **changes), 'val2017')
    assert [image.id for image in coco.images] == images
    said = capsys.readouterr().out
    assert bool(coco.left_out) == bool(message) and message in ''.join(coco.left_out[:1]) and (f'{len(coco.left_out)} odd records are left out, the first: ' in said or not message)


@pytest.mark.parametrize('segmentation, pixels', [
    ([[0, 0, 4, 0]], None), ([], None), ({}, None), ([[0, 0, 2]], None), ([[0, 0, 'x', 0, 2, 2]], None), ([[0, 0, float('nan'), 0, 2, 2]], None), (dict(counts=[24]), None),
    ([SQUARE, [0, 0, 4, 0]], 4), (SQUARE, 4), ([[float(v) for v in SQUARE]], 4), (dict(size=[4, 6], counts=[0, 4, 20]), 4), (dict(size=[4., 6.], counts=[0, 4, 20]), 4)])
def test_outlines_as_programs_export_them(tmp_path, segmentation, pixels):
    coco = read_coco(write_toy(tmp_path, instances=dict(annotations=[dict(THING, segmentation=segmentation)])), 'val2017')
    masks = ground(coco.images[0], ClassWords(coco.classes)).masks
    assert [int(mask.sum()) for mask in masks if mask is not None] == [pixels]*bool(pixels) and len(coco.left_out) == (pixels is None)


@pytest.mark.parametrize('whole', [float, str])
def test_numbers_as_programs_export_them(tmp_path, whole):
    images = [dict(IMAGE, id=whole(3) if whole is float else '3', height=whole(4), width=whole(6))]
    things = [dict(id='5', image_id=3., category_id='18', segmentation=[SQUARE], iscrowd=0)]
    coco = read_coco(write_toy(tmp_path, captions=dict(images=images, annotations=[dict(CAPTION, id=1., image_id='3')]), instances=dict(images=images, annotations=things)), 'val2017')
    image, = coco.images
    assert (image.id, image.size, image.captions) == (3, (4, 6), ((1, 'a dog'),)) and image.instances[0].name == 'dog'
    assert build_dataset(tmp_path/'out', coco)['masked_nouns'] == 1


@pytest.mark.parametrize('image_list, statements, message', [
    ('no.jsonl', None, 'There is no image list'), ('vsr.jsonl', [dict(image='z.png')], "names the image 'z.png'"),
    ('vsr.jsonl', [dict(picture='a.png')], "row 1: the key 'image' is missing"), ('vsr.jsonl', [dict(image='a.png', image_link='x/train2017/a.png')], 'names no image of val2017'),
])
def test_what_is_wrong_with_a_list_is_named(tmp_path, image_list, statements, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught: read_coco(write_toy(tmp_path, statements=statements), 'val2017', image_list)
    assert message in str(caught.value)


def test_files_that_are_no_json(data):
    with pytest.raises(FileNotFoundError, match='There is no .*captions_test2017.json'): read_coco(data, 'test2017')
    write_text(data/'annotations'/'captions_val2017.json', '{"images": [')
    with pytest.raises(ValueError, match='is not valid JSON'): read_coco(data, 'val2017')
    (data/'annotations'/'captions_val2017.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='is not UTF-8 text'): read_coco(data, 'val2017')


# ---- words that name a class

def test_the_table_of_synonyms():
    assert set(SYNONYMS) <= set(COCO_80) and len(SYNONYMS) == 49
    assert SYNONYMS['baseball glove'] == ('mitt', "catcher's mitt") and SYNONYMS['person'][:8] == ('man', 'woman', 'boy', 'girl', 'child', 'kid', 'toddler', 'lady')
    assert all(words == tuple(dict.fromkeys(words)) and all(w == w.strip() and w for w in words) for words in SYNONYMS.values())


@pytest.mark.parametrize('one, many', [('person', 'people'), ('bus', 'buses'), ('traffic light', 'traffic lights'), ('chest of drawers', 'chests of drawers'), ('sheep', 'sheep'), ('toothbrush', 'toothbrushes'), ('puppy', 'puppies'), ('knife', 'knives')])
def test_plurals(one, many): assert plural(one) == many


def names(caption, classes=COCO_80): return [(m.noun, m.name) for m in ClassWords(classes).find(caption)]


@pytest.mark.parametrize('name, caption, noun', [
    ('t-shirt', 'a t-shirt', 't-shirt'), ('T-Shirt', 'two T shirts', 'T shirts'), ('teddy_bear', 'a teddy bear', 'teddy bear'), ('teddy_bear', 'a stuffed bear', 'stuffed bear'),
    ('wine-glass', 'two wine glasses', 'wine glasses'), ('  dog ', 'a dog', 'dog'), ('caf\u00e9', 'a cafe\u0301', 'cafe\u0301'), ('cafe\u0301', 'a caf\u00e9', 'caf\u00e9')])
def test_classes_as_other_programs_write_them(name, caption, noun): assert names(caption, [name]) == [(noun, name)]


@pytest.mark.parametrize('caption, found', [
    ('Two men eat hot dogs, and a dog looks on.', [('men', 'person'), ('hot dogs', 'hot dog'), ('dog', 'dog')]),
    ('Traffic-light, STOP  sign', [('Traffic-light', 'traffic light'), ('STOP  sign', 'stop sign')]),
    ('cats, catch a bobcat and the cafe\u0301cat', [('cats', 'cat')]),
    ('An orange cat and an orange and white bus', [('cat', 'cat'), ('bus', 'bus')]),
    ('an orange, an orange on a plate, a train-shaped cake, oranges', [('orange', 'orange'), ('orange', 'orange'), ('cake', 'cake'), ('oranges', 'orange')]),
    ('a ball', [('ball', 'sports ball')]), ('', []), ('People', [('People', 'person')]),
])
def test_mentions(caption, found): assert names(caption) == found


def test_a_name_of_coco_holds_its_words_even_where_the_file_lacks_it():
    assert names('a hot dog and a dog', ['dog']) == [('dog', 'dog')]
    assert ClassWords(['dog']).find('a hot dog and a dog')[0].start == 16
    assert names("red_car,hot_dog and a fire-hydrant_cover") == [("car", "car"), ("hot_dog", "hot dog"), ("fire-hydrant", "fire hydrant")] and names("a carpet, a scar_x, bear\u0301") == []
    assert names('a ball', ['ball', 'sports ball']) == [('ball', 'ball')]


# ---- one caption, its nouns, their masks

def test_rules_for_the_caption(toy, words):
    assert choose_caption(toy.images[1], words) == (70, 'Two cats near people.')           # a tie goes to the lowest id
    assert choose_caption(toy.images[0], words)[1] == 'A Dog, a hot dog'                   # an annotated class beats none
    assert choose_caption(toy.images[0], words, 'first')[0] == 30
    drawn = [choose_caption(toy.images[0], words, 'random', seed)[0] for seed in range(40)]
    assert set(drawn) == {30, 31} and drawn == [choose_caption(toy.images[0], words, 'random', seed)[0] for seed in range(40)]
    with pytest.raises(ValueError, match="Unknown caption rule 'best'"): choose_caption(toy.images[0], words, 'best')


def test_masks_of_the_nouns(toy, words):
    grounded = ground(toy.images[1], words)
    cats, people = grounded.masks
    assert cats.int().tolist() == CATS and people[:, 5].all() and not people[:, :5].any()
    assert grounded.extra == dict(classes=['cat', 'person'], image_id=7, caption_id=70)
    assert ground(toy.images[1], words, crowds=False).masks[1] is None


def test_each_noun_once(toy, words):
    both = CocoImage(1, 'x', (4, 6), ((1, 'A man, a Man and a woman'),), toy.images[1].instances)
    assert [m.noun for m in ground(both, words).mentions] == ['man', 'woman']
    assert first_of_each(['Dogs', 'wall', 'dogs'], str.casefold) == ['Dogs', 'wall']


def test_a_broken_mask_is_named_and_left_out(capsys):
    finder, good = ClassWords(COCO_80), Instance(8, 'cat', [SQUARE], False)
    bad = CocoImage(1, 'x', (4, 6), ((1, 'a cat'),), (Instance(9, 'cat', [[1, 2]], False), good))
    assert ground(bad, finder).masks[0].sum() == 4
    assert 'left out: Annotation 9 of the image 1: The COCO mask cannot be read: a polygon needs' in capsys.readouterr().out
    small = CocoImage(1, 'x', (5, 6), ((1, 'a cat'),), (Instance(9, 'cat', dict(size=[4, 6], counts=[24]), False),))
    assert ground(small, finder).masks == [None] and 'its mask has (4, 6) pixels' in capsys.readouterr().out


# ---- the authors' layout

def test_a_folder_belongs_to_one_set_of_settings(tmp_path):
    claim_folder(tmp_path/'out', dict(rule='most'))
    claim_folder(tmp_path/'out', dict(rule='most'))
    with pytest.raises(ValueError, match=r"made with other settings \(rule: 'most' there, 'first' now; seed: None there, 1 now\)"): claim_folder(tmp_path/'out', dict(rule='first', seed=1))
    with pytest.raises(ValueError, match='files of another origin'): claim_folder(tmp_path, {})
    (tmp_path/'new'/'flickr30k').mkdir(parents=True)
    with pytest.raises(ValueError, match='files of another origin'): claim_folder(tmp_path/'new', {}, beside=('other',))
    claim_folder(tmp_path/'new', dict(step='fetch'), beside=('flickr30k',))                          # put there before the fetch
    assert (tmp_path/'new'/'settings.json').is_file()


def test_only_what_changed_is_written_again(data, tmp_path, capsys):
    out = tmp_path/'out'
    build_dataset(out, read_coco(data, 'val2017'))
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.png')}
    path = data/'annotations'/'captions_val2017.json'
    captions = read_json(path)
    captions['annotations'] = [dict(a, caption='A man.') if a['image_id'] == 7 else a for a in captions['annotations']]
    write_json(path, captions)
    build_dataset(out, read_coco(data, 'val2017'))
    assert [(row.text, row.nouns) for row in read_rows(out)] == [('A Dog, a hot dog', ['Dog', 'hot dog']), ('A man.', ['man'])]
    assert 'rows: 1 changed (7)' in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in out.rglob('*.png')}
    assert after.keys() == {out/'seg/a/mask_a_Dog.png', out/'seg/b/mask_b_man.png'} and after[out/'seg/a/mask_a_Dog.png'] == before[out/'seg/a/mask_a_Dog.png']
    Image.new('RGB', (6, 4), 'black').save(data/'val2017'/'b.png')                         # a replaced picture
    build_dataset(out, read_coco(data, 'val2017'))
    assert 'rows: 1 changed (7)' in capsys.readouterr().out
    build_dataset(out, read_coco(data, 'val2017'))
    assert 'rows:' not in capsys.readouterr().out


def test_a_folder_of_other_images_is_refused(toy, data, tmp_path):
    build_dataset(tmp_path/'out', toy)
    for name in ('a.png', 'b.png'): Image.new('RGB', (6, 4), 'red').save(data/'val2017'/name)
    with pytest.raises(ValueError, match='made of other images: none of the 2 is still the same .the first is 3.'): build_dataset(tmp_path/'out', toy)


def test_what_is_written(toy, tmp_path):
    counts = build_dataset(tmp_path/'out', toy)
    assert (counts['rows'], counts['nouns'], counts['masked_nouns'], counts['multi_word'], counts['classes_never_named']) == (2, 4, 3, 1, [])
    rows = read_rows(tmp_path/'out')
    assert (rows[1].text, rows[1].nouns, rows[1].masks) == ('Two cats near people.', ['cats', 'people'], ['seg/b/mask_b_cats.png', 'seg/b/mask_b_people.png'])
    assert [r.text[slice(*s)] for r in rows for s in r.spans] == [n for r in rows for n in r.nouns]
    assert load_mask(tmp_path/'out'/'seg/b/mask_b_cats.png').int().tolist() == CATS


def test_half_of_it_is_lost_and_comes_back(toy, tmp_path):
    out = tmp_path/'out'
    build_dataset(out, toy)
    full = tree(out)
    (out/'seg/b/mask_b_cats.png').unlink()
    (out/'metadata.jsonl').unlink()
    build_dataset(out, toy)
    assert tree(out) == full
    before = (out/'seg/a/mask_a_Dog.png').stat().st_mtime_ns
    build_dataset(out, toy)
    assert (out/'seg/a/mask_a_Dog.png').stat().st_mtime_ns == before                       # nothing is done twice


def test_stopped_in_the_middle(toy, data, tmp_path):
    build_dataset(tmp_path/'whole', toy)
    out, picture = tmp_path/'out', (data/'val2017'/'b.png').read_bytes()
    (data/'val2017'/'b.png').write_bytes(b'')
    with pytest.raises(ValueError): build_dataset(out, toy)                                # stops at the second image
    assert len(list((out/'.rows').iterdir())) == 1 and not (out/'metadata.jsonl').exists()
    (data/'val2017'/'b.png').write_bytes(picture)
    build_dataset(out, toy)
    assert tree(out) == tree(tmp_path/'whole')


def test_options_of_the_data_set(toy, data, tmp_path):
    build_dataset(tmp_path/'out', toy)
    with pytest.raises(ValueError, match=r"made with other settings \(rule: 'most' there, 'first' now\)"): build_dataset(tmp_path/'out', toy, rule='first')
    with pytest.raises(ValueError, match='files of another origin'): build_dataset(data, toy)
    assert build_dataset(tmp_path/'first', toy, rule='first')['images_without_mask'] == 1  # "nothing much"
    assert build_dataset(tmp_path/'kept', toy, rule='first', keep_empty=True)['rows_without_mask'] == 1
    assert build_dataset(tmp_path/'one', toy, max_rows=1)['rows'] == 1


@pytest.mark.parametrize('change, message', [
    (lambda f: (f/'b.png').write_bytes(b'not a picture'), 'cannot be read'),
    (lambda f: Image.new('RGB', (5, 4)).save(f/'b.png'), '5x4 pixels, its annotation says 6x4'),
    (lambda f: (f/'b.png').unlink(), 'There is no image'),
    (lambda f: f.rename(f.with_name('elsewhere')), 'There is no folder of images'),
])
def test_pictures_that_are_wrong(toy, data, tmp_path, change, message):
    change(data/'val2017')
    with pytest.raises((ValueError, FileNotFoundError), match=message): build_dataset(tmp_path/'out', toy)


def test_a_picture_lying_on_its_side(toy, data, tmp_path):
    "The size may be the stored one or, where a viewer would turn the picture, the turned one."
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (4, 6)).save(data/'val2017'/'b.png', exif=exif)
    assert build_dataset(tmp_path/'out', toy)['rows'] == 2


def test_counts_by_hand():
    rows = [dict(attn_list=[['Cat', 'm'], ['hot dog', None]], classes=['cat', 'hot dog']), dict(attn_list=[['man', 'm'], ['woman', 'n']], classes=['person', 'person']), dict(attn_list=[['x', None]]), dict(attn_list=[])]
    assert count_rows(rows, ['cat', 'person', 'bus']) == dict(
        rows=4, nouns=5, masked_nouns=3, nouns_without_mask=2, rows_without_mask=2, multi_word=1, masked_per_row={0: 2, 1: 1, 2: 1}, shared_masks=1,
        frequent_nouns={'cat': 1, 'hot dog': 1, 'man': 1, 'woman': 1, 'x': 1}, classes_never_named=['bus'])


# ---- for the eye

def test_the_page_from_the_files_and_from_what_was_written(toy, tmp_path):
    build_dataset(tmp_path/'out', toy)
    for a, b in zip(examples_of(toy), read_examples(tmp_path/'out', toy.folder), strict=True):
        assert a[1] == b[1]
        for (span, mask), (other, stored) in zip(a[2], b[2], strict=True):
            assert (tuple(span), mask is None) == (tuple(other), stored is None) and (mask is None or (mask == stored).all())


def test_colours_of_a_page():
    image = Image.new('RGB', (8, 4), (100, 100, 100))
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :2] = True
    figure = caption_page([(image, 'a $5 cat, no dog', [((5, 8), mask), ((13, 16), None)])], columns=1)
    colour, (outline,) = sns.color_palette('bright', 2)[0], figure.axes[0].collections
    assert (figure.axes[0].images[0].get_array() == 100).all()  # the picture keeps its own colours
    assert np.allclose(outline.get_edgecolor()[0][:3], colour)
    xs, _ = np.concatenate([path.vertices for path in outline.get_paths()]).T
    assert np.allclose(xs, 1.5)  # between the second and the third column
    figure.canvas.draw()
    texts = {t.get_text(): t for t in figure.findobj(plt.Text) if t.get_text()}
    assert texts['cat,'].get_color() == colour and texts['dog'].get_color() == '.6' and texts['no'].get_color() == 'black'


def test_a_page_without_a_caption():
    assert caption_page([(Image.new('RGB', (8, 4)), '', [])], columns=1).axes[0].images[0].get_array().shape == (4, 8, 3)


def test_an_empty_panel_is_drawn_empty():
    "Nothing was left out, for example."
    figure = bar_panels(dict(nouns={'cat': 2, 'dog': 1}, left_out={}))
    assert [len(ax.patches) for ax in figure.axes] == [2, 0]
    assert len(bar_panels(dict(nothing={}, none={})).axes) == 2


def test_annotations_of_another_program(tmp_path):
    write_json(tmp_path/'labelme.json', dict(shapes=[], imagePath='a.png'))
    with pytest.raises(ValueError, match="labelme.json has no images and no annotations and no categories, which files of COCO's form have"): read_instances(tmp_path/'labelme.json')
