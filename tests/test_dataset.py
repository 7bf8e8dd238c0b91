"""The data set: cases by hand, and inputs that hypothesis invents - files, sizes, nouns, rows."""
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image, ImageDraw, ImageOps
from torchvision import transforms

from tokencompose.data.dataset import collate, crop_geometry, fit_image, fit_masks, GroundingDataset, load_image
from tokencompose.data.dataset import read_rows, summary, write_dataset, write_row
from tokencompose.data.masks import load_mask, mask_fractions, mask_targets, RULES
from tokencompose.data.nouns import align_nouns, toy_tokenizer

QUICK = settings(max_examples=40, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
    data = GroundingDataset(tmp_path, tmp_path/'train2017', clip_tokenizer, 512, masks=tmp_path/'coco_gsam_seg', mask_rule='majority')
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


# ---- pictures

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)).resize((24, 16), Image.Resampling.BILINEAR)


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_as_pillow_turns_it(tmp_path, orientation):
    PHOTO.save(tmp_path/'turned.png', exif=with_orientation(orientation))
    expected = ImageOps.exif_transpose(Image.open(tmp_path/'turned.png'))
    assert (np.asarray(load_image(tmp_path/'turned.png')) == np.asarray(expected)).all()


def test_kinds_of_pictures(tmp_path):
    def read(picture, name):
        picture.save(tmp_path/name)
        return np.asarray(load_image(tmp_path/name)).astype(int)
    grey = np.asarray(PHOTO.convert('L'))
    assert abs(read(PHOTO.convert('CMYK'), 'cmyk.tif') - np.asarray(PHOTO)).max() <= 2
    assert (read(Image.fromarray(grey.astype(np.uint16)*257), 'sixteen.png') == grey[..., None]).all()
    assert (read(PHOTO.quantize(8), 'palette.png') == np.asarray(PHOTO.quantize(8).convert('RGB'))).all()
    cut_out = PHOTO.convert('RGBA')
    cut_out.putalpha(Image.new('L', PHOTO.size, 0))
    assert read(cut_out, 'clear.png').min() == 255       # transparency on white
    with pytest.raises(ValueError, match='float.tif holds floating-point values'):
        read(Image.fromarray(grey.astype(np.float32)), 'float.tif')


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 not a picture')
    with pytest.raises(ValueError, match='broken.jpg cannot be read'): load_image(tmp_path/'broken.jpg')
    with pytest.raises(FileNotFoundError, match='There is no image'): load_image(tmp_path/'none.jpg')


def disc(width, height, centre, radius):
    image = Image.new('RGB', (width, height), (210, 220, 230))
    box = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
    ImageDraw.Draw(image).ellipse(box, fill=(200, 0, 0))
    return image, torch.from_numpy(np.asarray(image)[..., 1] == 0)[None]


@pytest.mark.parametrize('shape', [(640, 427, (250, 150), 110), (300, 500, (190, 260), 90), (48, 48, (20, 30), 13)])
@pytest.mark.parametrize('resolution', [64, 50])
def test_the_mask_stays_on_the_disc(shape, resolution):
    image, mask = disc(*shape)
    pixels, fitted = fit_image(image, resolution), fit_masks(mask, resolution)
    cut = transforms.Compose([transforms.Resize(resolution), transforms.CenterCrop(resolution), transforms.ToTensor()])
    torch.testing.assert_close(pixels, 2*cut(image) - 1, atol=1e-6, rtol=0)
    red = pixels[1] < (0 + 220)/255 - 1                  # nearer to the disc's colour than to the background's
    assert (red != fitted[0]).float().mean() < .004      # only the softened edge may differ
    assert torch.equal(fit_masks(mask.repeat(2, 1, 1), resolution)[1], fitted[0])


@QUICK
@given(st.integers(20, 700), st.integers(20, 700), st.sampled_from([64, 256, 512]), st.integers(0, 10**6))
def test_the_authors_rule_is_their_chain_of_tools(tmp_path, width, height, resolution, seed):
    "Their mask file, their transforms, the tensor resize that they pin (no antialiasing), greater than zero: every cell at every map size."
    import matplotlib.pyplot as plt
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width)) < generator.uniform(2, max(width, height)/2)
    plt.imsave(tmp_path/'mask.png', mask, cmap='gray')
    if not mask.any() or mask.all(): return                                 # theirs divides by zero; matplotlib draws one value as black
    chain = transforms.Compose([transforms.Resize(resolution), transforms.CenterCrop(resolution), transforms.ToTensor()])
    first = chain(Image.open(tmp_path/'mask.png'))[0]
    if not first.max() > 0: return
    fitted = fit_masks(load_mask(tmp_path/'mask.png')[None], resolution, rule='authors')
    assert torch.equal(fitted[0], first > 0)
    for side in (8, 16, 32, 64):
        theirs = torch.nn.functional.interpolate((first/first.max())[None, None], (side, side), mode='bilinear', antialias=False)[0] > 0
        assert torch.equal(mask_targets(fitted, (side, side), 'authors') > 0, theirs)


def test_the_rule_of_a_data_set_reaches_its_batches(drawn):
    "A photo that is made smaller: the authors keep every pixel of the mask's grey edge."
    theirs, outline = drawn.set(mask_rule='authors'), drawn.set()
    assert theirs[0]['masks'].sum() > outline[0]['masks'].sum() and (theirs[0]['masks'] >= outline[0]['masks']).all()
    for rule in RULES:
        batch = collate([drawn.set(mask_rule=rule)[0]], [(8, 8)])
        expected = mask_targets(drawn.set(mask_rule=rule)[0]['masks'], (8, 8), rule)
        assert torch.equal(batch['targets'].masks[8, 8][0], expected.flatten(1))
    with pytest.raises(ValueError, match="Unknown mask rule 'mean'"): drawn.set(mask_rule='mean')


def test_a_mask_at_half_the_size_of_its_image():
    _, mask = disc(48, 48, (20, 30), 13)
    half = fit_masks(mask_fractions(mask, (24, 24)) >= .5, 64, size=(48, 48))[0]
    assert (half != fit_masks(mask, 64)[0]).float().mean() < .03


def test_a_picture_too_narrow():
    with pytest.raises(ValueError, match='too narrow'): crop_geometry(100000, 1, 512)


# ---- rows

GOOD = ('{"file_name": "a/7.jpg", "text": "a fire hydrant", '
        '"attn_list": [["fire hydrant", "seg/7/mask_7_fire_hydrant.png"], ["top", null]]}')


def rows_of(folder, text, name='metadata.jsonl'):
    (folder/name).write_text(text, encoding='utf-8')
    return read_rows(folder, name)


def test_rows_by_hand(tmp_path):
    row = rows_of(tmp_path, GOOD + '\n\n' + GOOD.replace('a/7', 'b/7') + '\n')[1]
    assert (row.id, row.file_name, row.nouns) == ('7_2', 'b/7.jpg', ['fire hydrant', 'top'])
    assert (row.masks, row.spans) == (['seg/7/mask_7_fire_hydrant.png', None], [None, None])
    assert row.where.split('/')[-1] == 'metadata.jsonl, row 3'
    assert len(rows_of(tmp_path, f'[{GOOD}, {GOOD}]', 'array.json')) == 2
    spanned = rows_of(tmp_path, GOOD[:-1] + ', "spans": [[2, 14], null], "score": 0.5}')[0]
    assert (spanned.spans, spanned.extra) == ([(2, 14), None], {'score': .5})


WRONG = {
    'holds no rows': '\n', 'row 2: not valid JSON': GOOD + '\n{"file_name":', 'text missing': GOOD.replace('"text"', '"caption"'),
    'text must be a string': GOOD.replace('"a fire hydrant"', '3'), 'must be an object': '7',
    'pairs [noun, mask path or null]': GOOD.replace('["top", null]', '["top"]'),
    'leads out of the folder': GOOD.replace('seg/7/', 'seg/../../'), "file_name 'a/../../7.jpg'": GOOD.replace('a/7', 'a/../../7'),
    "'/etc/7.jpg' leads": GOOD.replace('a/7', '/etc/7'), 'must be a path, got 4': GOOD.replace('"a/7.jpg"', '4'),
    'attn_list must be a list': GOOD.replace('[["fire', '{"x": [["fire').replace(']]}', ']]}}'),
    'for each of the 2 nouns': GOOD[:-1] + ', "spans": [[1, 2]]}', 'half a surrogate': GOOD.replace('a fire', r'\ud800'),
    'id must be a string': GOOD[:-1] + ', "id": 7}'}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_rows_are_one_sentence(tmp_path, message):
    with pytest.raises(ValueError) as error: rows_of(tmp_path, WRONG[message])
    assert message in str(error.value) and 'metadata.jsonl' in str(error.value) and '\n' not in str(error.value)


def test_no_metadata(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no metadata.jsonl'): read_rows(tmp_path)


# ---- a data set of five drawn pictures

def scene(folder, name, size, text, objects, **extra):
    "Draw coloured shapes; objects: (noun, colour, box or None for a noun without mask)."
    image, nouns = Image.new('RGB', size, 'white'), []
    for noun, colour, box in objects:
        layer = Image.new('1', size)
        if box: (ImageDraw.Draw(layer).ellipse if 'disc' in noun else ImageDraw.Draw(layer).rectangle)(box, fill=1)
        if box: image.paste(colour, mask=layer)
        nouns.append((noun, torch.from_numpy(np.array(layer)) if box else None))
    image.save(folder/name)
    return dict(file_name=name, text=text, nouns=nouns, **extra)


class Drawn:
    def __init__(self, folder):
        self.data, self.images = folder/'data', folder/'train2017'
        self.images.mkdir()
        words = 'hydrant fire square and a red blue green disc ring on the left of beside'.split()
        self.tokenizer = toy_tokenizer(words, model_max_length=24)
        self.scenes = [
            scene(self.images, '1.png', (96, 64), 'a red disc and a blue square',
                  [('disc', 'red', (20, 10, 50, 40)), ('blue square', 'blue', (56, 30, 78, 52))]),
            scene(self.images, '2.png', (48, 80), 'a blue square on the left of a disc',
                  [('blue square', 'blue', (4, 24, 20, 40)), ('disc', 'green', (26, 36, 44, 54)), ('top', None, None)]),
            scene(self.images, '3.png', (64, 64), 'a fire hydrant beside a ring',
                  [('fire hydrant', 'red', (8, 8, 20, 56)), ('hydrant', None, None), ('zebra', 'black', (40, 40, 60, 60))]),
            scene(self.images, '4.png', (64, 64), 'a green ring', [('ring', None, None)]),
            scene(self.images, '5.png', (64, 40), 'a disc', [('disc', 'blue', (0, 0, 9, 9))], note='cut off by the centre square')]
        write_dataset(self.data, self.scenes)

    def set(self, **options): return GroundingDataset(self.data, self.images, self.tokenizer, 32, **dict(mask_rule='majority') | options)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return Drawn(tmp_path_factory.mktemp('drawn'))


def test_what_is_written_is_read_back(drawn):
    rows = read_rows(drawn.data)
    assert [row.nouns for row in rows] == [[noun for noun, _ in s['nouns']] for s in drawn.scenes]
    for row, s in zip(rows, drawn.scenes):
        for path, (_, mask) in zip(row.masks, s['nouns']):
            assert path is None if mask is None else torch.equal(load_mask(drawn.data/path), mask)
    assert rows[0].masks[1] == 'seg/1/mask_1_blue_square.png' and rows[4].extra == {'note': 'cut off by the centre square'}


def test_no_two_nouns_share_a_file(tmp_path):
    "Whatever the file system makes of their names."
    nouns = ['n/a', 'n\\a', '../..', 'N/A', 'segway', 'é'*200]
    row = write_row(tmp_path/'odd', 'x.jpg', 'odd', [(noun, torch.ones(2, 2, dtype=torch.bool)) for noun in nouns])
    paths = [path for _, path in row['attn_list']]
    assert len({path.casefold() for path in paths}) == 6
    assert paths[:5] == [f'seg/x/mask_x_{name}.png' for name in ('n-a', 'n-a_2', '-', 'N-A_3', 'segway')]
    for path in paths:
        assert (tmp_path/'odd'/path).parent == tmp_path/'odd'/'seg'/'x' and load_mask(tmp_path/'odd'/path).all()


def test_an_empty_mask_is_written_as_null(tmp_path):
    row = write_row(tmp_path, 'y.jpg', 'odd', [('dot', torch.zeros(2, 2, dtype=torch.bool))])
    assert row['attn_list'] == [['dot', None]]


def test_data_sets_that_are_not_written(tmp_path, drawn):
    with pytest.raises(ValueError, match='share the mask folder'): write_dataset(tmp_path, [drawn.scenes[0]]*2)
    with pytest.raises(ValueError, match='no row'): write_dataset(tmp_path, [])


def test_every_mask_lies_on_its_object(drawn):
    samples = list(drawn.set())
    for sample in samples:
        for noun, mask in zip(sample['nouns'], sample['masks']):
            if mask.any(): assert (sample['pixel_values'].mean(0)[mask] < .7).float().mean() > .95, noun
    assert [s['masks'].flatten(1).any(1).tolist() for s in samples] == [[True, True], [True, True, False], [True, False, True], [False], [False]]
    assert samples[1]['id'] == '2' and samples[1]['token_ids'][2] == []


def test_missing_files_are_counted(tmp_path, drawn):
    with pytest.raises(FileNotFoundError) as error:
        GroundingDataset(drawn.data, tmp_path/'nowhere', drawn.tokenizer, 32, masks=tmp_path/'nowhere')
    for part in ('metadata.jsonl, row 1: ', '1.png', 'is missing (12 files'): assert part in str(error.value)


def test_masks_in_a_folder_of_their_own(tmp_path, drawn):
    shutil.copytree(drawn.data/'seg', tmp_path/'elsewhere')
    assert torch.equal(drawn.set(masks=tmp_path/'elsewhere')[0]['masks'], drawn.set()[0]['masks'])


def test_all_occurrences_look_beyond_the_one_a_row_names(tmp_path, drawn):
    twice = 'a red disc and a red disc'
    write_dataset(tmp_path, [dict(file_name='1.png', text=twice, nouns=[('red disc', None)], spans=[[17, 25]])])
    where = {o: GroundingDataset(tmp_path, drawn.images, drawn.tokenizer, 32, occurrence=o).token_ids(0)[0] for o in ('first', 'all')}
    assert where['all'] == align_nouns(twice, ['red disc'], drawn.tokenizer, 'all')[0].token_ids
    assert len(where['first']) == 2 and where['first'] == where['all'][2:]


def turn_back(picture, orientation):
    "A picture as a camera stores it that leaves this orientation as a note."
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    return picture.transpose(turns[orientation]) if turns[orientation] is not None else picture


@pytest.mark.parametrize('orientation', [1, 3, 6, 7])
def test_upright_and_stored_masks_give_the_same_sample(tmp_path, drawn, orientation):
    upright, sample = drawn.scenes[0]['nouns'][0][1], drawn.set()[0]
    turn_back(Image.open(drawn.images/'1.png').convert('RGB'), orientation).save(tmp_path/'1.png', exif=with_orientation(orientation))
    lying = torch.from_numpy(np.array(turn_back(Image.fromarray(upright.numpy().astype(np.uint8)), orientation))).bool()
    for mask, rule in ((upright, 'auto'), (lying, 'stored'), (lying, 'auto' if orientation > 4 else 'stored')):
        write_dataset(tmp_path, [dict(file_name='1.png', text='a disc', nouns=[('disc', mask)])])
        found = GroundingDataset(tmp_path, None, drawn.tokenizer, 32, mask_orientation=rule, mask_rule='majority')[0]
        assert torch.equal(found['pixel_values'], sample['pixel_values']) and torch.equal(found['masks'][0], sample['masks'][0])


def test_damaged_files_name_their_row(tmp_path, drawn):
    def first(): return GroundingDataset(tmp_path, None, drawn.tokenizer, 32)[0]
    mask = drawn.scenes[0]['nouns'][0][1][:, :50]
    shutil.copy(drawn.images/'1.png', tmp_path/'1.png')
    write_dataset(tmp_path, [dict(file_name='1.png', text='a disc', nouns=[('disc', mask)])])
    with pytest.raises(ValueError, match='metadata.jsonl, row 1: .*do not belong together'): first()
    (tmp_path/'seg'/'1'/'mask_1_disc.png').write_bytes(b'PNG?')
    with pytest.raises(ValueError, match='metadata.jsonl, row 1: The mask .*mask_1_disc.png cannot be read'): first()
    (tmp_path/'1.png').write_bytes((drawn.images/'1.png').read_bytes()[:90])
    with pytest.raises(ValueError, match='metadata.jsonl, row 1: The image .*1.png cannot be read'): first()


def test_options_of_the_data_set(drawn):
    with pytest.raises(ValueError, match="got 'sideways'"): drawn.set(mask_orientation='sideways')
    with pytest.raises(ValueError, match='between 0 and 1'): drawn.set(flip=1.5)


def test_mirroring(drawn):
    flipping, plain = drawn.set(flip=.5, seed=3), drawn.set()
    chosen = [[flipping.mirrored(i, step) for step in range(200)] for i in range(5)]
    assert not any(chosen[1])                          # "on the left of"
    for i in (0, 2, 3, 4): assert .35 < np.mean(chosen[i]) < .65
    flipped, kept = flipping.item(0, chosen[0].index(True)), flipping.item(0, chosen[0].index(False))
    assert torch.equal(flipped['pixel_values'], plain[0]['pixel_values'].flip(-1))
    assert torch.equal(flipped['masks'], plain[0]['masks'].flip(-1)) and torch.equal(kept['masks'], plain[0]['masks'])


def test_a_batch_by_hand(drawn):
    data = drawn.set()
    batch = collate(list(data), [(4, 4), (8, 8)])
    assert batch['pixel_values'].shape == (5, 3, 32, 32)
    assert batch['targets'].valid[8, 8].int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert batch['targets'].token_ids[0, :3].tolist() == [3, 6, 7]      # a red [disc] and a [blue square]
    single = collate([data[2]], [(8, 8)])
    assert torch.equal(single['targets'].masks[8, 8][0], batch['targets'].masks[8, 8][2])
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=lambda items: collate(items, [(8, 8)]))
    assert [len(part['ids']) for part in loader] == [2, 2, 1]


def test_summary_by_hand(drawn):
    assert summary(drawn.set()) == dict(
        rows=5, rows_without_mask=1, nouns=10, masked_nouns=7, supervised_nouns=6, multi_word=3,
        left_out={'not in the caption': 1}, without_mask=3, words_per_noun={1: 7, 2: 3}, sub_tokens={1: 3, 2: 3},
        masked_per_row={0: 1, 1: 1, 2: 3}, truncated_captions=0)
