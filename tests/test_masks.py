"Masks: what is read from files, how they come to the size of a map, how a batch is packed."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from tokencompose.data.masks import encode_rle, load_mask, mask_fractions, mask_targets, pack_targets, RULES, save_mask
from tokencompose.data.masks import TargetTable

QUICK = settings(max_examples=40, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
sides = st.integers(1, 24)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(bool, shape)).map(torch.from_numpy)
several = st.tuples(st.integers(0, 4), sides, sides).flatmap(lambda shape: arrays(bool, shape)).map(torch.from_numpy)


# ---- sizes of maps

def counted(mask, size):
    "Covered share of every cell: each pixel is cut into h x w equal pieces, which are counted."
    fine = np.kron(mask.numpy(), np.ones(size, int))
    return fine.reshape(size[0], mask.shape[0], size[1], mask.shape[1]).mean((1, 3))


token_lists = st.lists(st.integers(1, 76), max_size=4)
samples = st.lists(st.lists(st.tuples(arrays(bool, (12, 12)), token_lists), max_size=5), min_size=1, max_size=6)


@QUICK
@given(several, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_fractions_and_rules_against_counting(found, size):
    exact = np.stack([counted(m, size) for m in found]) if len(found) else np.zeros((0, *size))
    assert np.abs(mask_fractions(found, size).numpy() - exact).max(initial=0) < 1e-6
    assert (mask_targets(found, size, 'any').numpy() == (exact > 0)).all()
    assert (mask_targets(found, size, 'majority').numpy() == (exact >= .5)).all()
    resized = torch.zeros(0, *size)
    if len(found): resized = F.interpolate(found[:, None].float(), size, mode='bilinear', antialias=False)[:, 0]
    assert torch.equal(mask_targets(found, size), (resized > 1e-4).float())


@QUICK
@given(several, st.tuples(st.integers(1, 9), st.integers(1, 9)), st.sampled_from(RULES))
def test_keep_smallest_loses_no_object_and_changes_no_other(found, size, rule):
    plain, kept = mask_targets(found, size, rule), mask_targets(found, size, rule, keep_smallest=True)
    for mask, before, after in zip(found, plain, kept):
        assert after.any() == mask.any()
        if before.any(): assert torch.equal(before, after)
        elif mask.any():
            share = mask_fractions(mask[None], size)[0]
            assert after.sum() == 1 and share[after > 0] == share.max()


@QUICK
@given(masks, st.sampled_from(['L', 'RGB', 'RGBA', '1', 'LA', 'P']), st.sampled_from([1, 128, 255]))
def test_any_picture_of_a_mask_reads_back(tmp_path, mask, mode, white):
    picture = Image.fromarray(mask.numpy().astype(np.uint8)*(255 if mode == '1' else white))
    (picture.convert('RGB').quantize(2) if mode == 'P' else picture.convert(mode)).save(tmp_path/'m.png')
    assert torch.equal(load_mask(tmp_path/'m.png'), mask)
    save_mask(tmp_path/'n.png', mask)
    assert torch.equal(load_mask(tmp_path/'n.png'), mask)


@QUICK
@given(masks)
def test_run_lengths_read_back(mask):
    packed = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    flat = mask.numpy().flatten(order='F')
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    runs = np.diff([0, *edges, len(flat)]).tolist()
    assert encode_rle(mask.numpy()) == dict(size=list(mask.shape), counts=packed['counts'].decode())
    for form in (packed, dict(packed, counts=packed['counts'].decode()), dict(size=list(mask.shape), counts=runs)):
        assert torch.equal(load_mask(form), mask)


@QUICK
@given(st.integers(0, 9), st.integers(0, 9), st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=10)
       | st.lists(st.integers(-3, 90), max_size=5) | st.binary(max_size=5))
def test_damaged_run_lengths_give_one_sentence_or_a_mask(height, width, counts):
    try: assert load_mask(dict(size=[height, width], counts=counts)).shape == (height, width)
    except ValueError as error: assert str(error).startswith('The COCO mask cannot be read: ')


@QUICK
@given(samples, st.data(), st.sampled_from(RULES))
def test_a_row_of_a_batch_does_not_know_its_neighbours(found, data, rule):
    sizes = [(4, 4), (3, 6)]
    images = [torch.from_numpy(np.array([m for m, _ in sample], bool).reshape(-1, 12, 12)) for sample in found]
    tokens = [[ids for _, ids in sample] for sample in found]
    indices = data.draw(st.lists(st.integers(0, len(found) - 1), min_size=1, max_size=6))
    batch = TargetTable.build(zip(images, tokens), sizes, rule).batch(indices)
    for place, i in enumerate(indices):
        pairs = [(n, token) for n, ids in enumerate(tokens[i]) for token in ids]
        used = batch.column_noun[place] >= 0
        assert [(int(n), int(t)) for n, t in zip(batch.column_noun[place][used], batch.token_ids[place][used])] == pairs
        for size in sizes:
            target = mask_targets(images[i], size, rule).flatten(1)
            count = len(target)
            assert torch.equal(batch.masks[size][place, :count], target) and not batch.masks[size][place, count:].any()
            valid = [bool(ids) and bool(t.any()) for ids, t in zip(tokens[i], target)]
            assert batch.valid[size][place].tolist() == valid + [False]*(batch.valid[size].shape[1] - count)
    alone = pack_targets([images[indices[0]]], [tokens[indices[0]]], sizes, rule)
    for size in sizes: assert torch.equal(alone.masks[size][0], batch.masks[size][0, :alone.masks[size].shape[1]])


# ---- by hand

def by_counting(mask, size):
    pieces = mask.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1).float()
    return pieces.reshape(size[0], mask.shape[0], size[1], mask.shape[1]).mean((1, 3))


@pytest.mark.parametrize('height, width, h, w', [(8, 8, 4, 4), (7, 10, 3, 4), (5, 3, 5, 3), (9, 4, 2, 6), (13, 13, 1, 8)])
def test_no_area_is_lost_or_invented(height, width, h, w):
    found = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) > .5
    fractions = mask_fractions(found, (h, w))
    torch.testing.assert_close(fractions, torch.stack([by_counting(m, (h, w)) for m in found]), atol=1e-6, rtol=0)
    torch.testing.assert_close(fractions.mean((1, 2)), found.float().mean((1, 2)), atol=1e-6, rtol=0)


@pytest.mark.parametrize('height, width, h, w', [(512, 512, 8, 8), (64, 64, 16, 16), (768, 768, 12, 12), (30, 50, 7, 9),
                                                 (9, 6, 3, 2), (4, 4, 8, 8)])
def test_rules_at_many_sizes(height, width, h, w):
    found = torch.rand(4, height, width, generator=torch.Generator().manual_seed(1)) > .9
    resized = F.interpolate(found[None].float(), (h, w), mode='bilinear', align_corners=False, antialias=False)[0]
    assert torch.equal(mask_targets(found, (h, w)), (resized > 1e-4).float())
    exact = torch.stack([by_counting(m, (h, w)) for m in found])
    assert torch.equal(mask_targets(found, (h, w), 'any'), (exact > 0).float())
    torch.testing.assert_close(mask_targets(found, (h, w), 'soft'), exact, atol=1e-6, rtol=0)


def test_half_a_cell_is_a_majority_and_nothing_stays_nothing():
    half = torch.zeros(1, 8, 8, dtype=torch.bool)
    half[0, :, :2] = True              # exactly half of each left cell
    assert mask_targets(half, (2, 2), 'majority')[0].tolist() == [[1, 0], [1, 0]]
    assert not mask_targets(half & False, (2, 2), 'any', keep_smallest=True).any()


def test_keep_smallest_by_hand():
    dot = torch.zeros(1, 64, 64, dtype=torch.bool)
    dot[0, 8:10, 40:43] = True         # 6 of the 64 pixels of cell (1, 5)
    for rule in ('majority', 'authors'):
        assert mask_targets(dot, (8, 8), rule, keep_smallest=True)[0].nonzero().tolist() == [[1, 5]]


def test_no_masks_and_wrong_arguments():
    assert mask_fractions(torch.zeros(0, 4, 4, dtype=torch.bool), (2, 2)).shape == (0, 2, 2)
    with pytest.raises(ValueError, match='shape'): mask_fractions(torch.ones(4, 4), (2, 2))
    with pytest.raises(ValueError, match='choose one of'): mask_targets(torch.ones(1, 4, 4), (2, 2), 'mean')


# ---- files

TRUTH = torch.zeros(6, 9, dtype=torch.bool)
TRUTH[1:5, 2:4] = True
TRUTH[4, 2:8] = True


def test_an_empty_mask_is_empty(tmp_path):
    Image.new('L', (9, 6)).save(tmp_path/'empty.png')
    assert not load_mask(tmp_path/'empty.png').any() and not load_mask([], size=(6, 9)).any()


def test_run_lengths_by_hand():
    runs, value = [0], False
    for pixel in TRUTH.T.flatten().tolist():      # down the columns, beginning with background
        if pixel == value: runs[-1] += 1
        else:
            runs.append(1)
            value = pixel
    assert torch.equal(load_mask(dict(size=[6, 9], counts=runs)), TRUTH)


def test_two_polygons_are_one_object():
    pieces = [[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 6, 4, 6, 6, 4, 6]]
    assert load_mask(pieces, size=(6, 9)).sum() == 8


def test_a_soft_edge(tmp_path):
    Image.fromarray(np.array([[0, 60, 100, 110, 200]], np.uint8)).save(tmp_path/'soft.png')    # the brightest has 200
    assert load_mask(tmp_path/'soft.png').tolist() == [[False, False, True, True, True]]


DISC = np.hypot(*np.mgrid[-32:32, -40:40]) < 20.5                 # 64 x 80, one thing
OTHER = np.zeros_like(DISC)
OTHER[2:10, 2:14] = True                                          # and one beside it


def read(folder, picture, name='m.png', **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(folder/name, **options)
    return load_mask(folder/name).numpy()


def grey(pixels): return np.asarray(pixels, np.uint8)


def coloured(*colours):
    "A picture with one colour a region: background, DISC, OTHER."
    pixels = np.zeros((*DISC.shape, len(colours[0])), np.uint8)
    for region, colour in zip((np.ones_like(DISC), DISC, OTHER), colours): pixels[region] = colour
    return pixels


@pytest.mark.parametrize('value', [1, 2, 100, 127, 128, 200, 255])
def test_two_colours_one_of_them_black(tmp_path, value):
    for picture in (grey(DISC*value), grey(DISC*value).astype(np.uint16)*257, grey(DISC*value).astype(np.int32), grey(DISC*value).astype(np.float32)):
        assert (read(tmp_path, picture, 'm.tif') == DISC).all()
    for colour in ((value, 0, 0), (0, value, value), (3, 3, value)): assert (read(tmp_path, coloured((0, 0, 0), colour)) == DISC).all()


@pytest.mark.parametrize('quality', [95, 75, 50, 30, 10])
@pytest.mark.parametrize('colour', [(255, 255, 255), (255, 0, 0)])
def test_a_mask_that_went_through_jpeg(tmp_path, quality, colour):
    big = np.kron(DISC, np.ones((4, 4), bool))
    picture = Image.fromarray(np.where(big[..., None], np.uint8(colour), np.uint8(0)))
    picture = picture.convert('L') if len(set(colour)) == 1 else picture
    found = read(tmp_path, picture, 'm.jpg', quality=quality)
    assert (found ^ big).sum() < .02*big.sum()
    assert (read(tmp_path, Image.open(tmp_path/'m.jpg'), 'again.png') == found).all() or quality < 30    # saved without loss later


@pytest.mark.parametrize('scale', [2, 3, 4, .5, .25])
@pytest.mark.parametrize('how', [Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.BICUBIC])
def test_a_mask_that_was_resized(tmp_path, scale, how):
    size = int(80*scale), int(64*scale)
    found = read(tmp_path, Image.fromarray(grey(DISC*255)).resize(size, how))
    exact = mask_fractions(torch.from_numpy(DISC)[None], size[::-1])[0].numpy()
    assert not found[exact == 0].any() and found[exact == 1].all() or scale > 1
    assert abs(found.sum() - DISC.sum()*scale**2) < .06*DISC.sum()*scale**2


@pytest.mark.parametrize('radius', [1, 2, 4])
def test_a_blurred_mask(tmp_path, radius):
    from PIL import ImageFilter
    found = read(tmp_path, Image.fromarray(grey(DISC*255)).filter(ImageFilter.GaussianBlur(radius)))
    assert (found ^ DISC).sum() < .08*DISC.sum()


@pytest.mark.parametrize('values', [(1, 200), (1, 2), (255, 1), (100, 255), (15, 255)])
@pytest.mark.parametrize('thin', [False, True])
def test_two_grey_values_are_two_things(tmp_path, values, thin):
    labels = grey(DISC*values[0])
    labels[(slice(3, 5), slice(3, 5)) if thin else OTHER] = values[1]
    with pytest.raises(ValueError, match='m.png cannot be used: it shows several things of different colours'): read(tmp_path, labels)


def test_a_void_border_makes_a_label_map(tmp_path):
    "As segmentation tools write it: the thing is 15, its border of a pixel 255."
    labels = grey(DISC*15)
    labels[DISC & ~np.roll(DISC, 1, 0)] = 255
    with pytest.raises(ValueError, match='several things of different colours .15'): read(tmp_path, labels)


@pytest.mark.parametrize('count', [3, 12, 20, 34, 120])
def test_a_map_of_many_labels(tmp_path, count):
    labels = np.add.outer(np.arange(64)//8, 8*(np.arange(80)//8))[:64].astype(np.uint8) % count
    labels[:, :3] = 255
    with pytest.raises(ValueError, match='cannot be used'): read(tmp_path, labels)


def test_colours_that_mean_two_things(tmp_path):
    for picture in (coloured((0, 0, 0), (255, 0, 0), (0, 255, 0)), coloured((255, 255, 255), (255, 0, 0)), grey(10 + 200*DISC), coloured((0, 0, 0), (90, 90, 90), (255, 0, 0))):
        with pytest.raises(ValueError, match='which of them is meant cannot be known; save each object as a file of its own, white on black'): read(tmp_path, picture)


def test_a_photo_is_no_mask(tmp_path):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (8, 10, 3), dtype=np.uint8)).resize((80, 64), Image.Resampling.BICUBIC)
    for picture in (photo, photo.convert('L')):
        with pytest.raises(ValueError, match='m.png cannot be used'): read(tmp_path, picture)
    cut_out = photo.convert('RGBA')
    cut_out.putalpha(Image.fromarray(grey(DISC*255)))
    assert (read(tmp_path, cut_out) == DISC).all()


@pytest.mark.parametrize('colour', [(0, 0, 0), (255, 255, 255), (255, 0, 0)])
@pytest.mark.parametrize('soft', [False, True])
def test_a_shape_that_is_in_the_alpha_channel(tmp_path, colour, soft):
    alpha = Image.fromarray(grey(DISC*255))
    if soft: alpha = alpha.resize((40, 32), Image.Resampling.BILINEAR)
    picture = Image.new('RGBA', alpha.size, colour)
    picture.putalpha(alpha)
    assert (read(tmp_path, picture) == (np.asarray(alpha) >= 128)).all()
    assert (read(tmp_path, picture.convert('LA')) == (np.asarray(alpha) >= 128)).all()


def test_what_is_clear_may_have_any_colour(tmp_path):
    "White where it can be seen, and something else beneath what is clear."
    picture = Image.fromarray(coloured((0, 200, 0), (255, 255, 255), (9, 9, 9)))
    picture.putalpha(Image.fromarray(grey(DISC*255)))
    assert (read(tmp_path, picture) == DISC).all()
    half = Image.fromarray(coloured((0, 0, 0), (255, 255, 255)))                # black and white on a canvas that is larger
    half.putalpha(Image.fromarray(grey(np.where(np.arange(80) < 60, 255, 0)*np.ones((64, 1)))))
    assert (read(tmp_path, half) == DISC & (np.arange(80) < 60)).all()
    picture.putalpha(0)
    with pytest.raises(ValueError, match='all of it is transparent'): read(tmp_path, picture)
    assert not read(tmp_path, Image.new('RGBA', (9, 6))).any()                 # nothing there: an empty mask


VOC = [c for i in range(256) for c in ((i & 1)*128, (i >> 1 & 1)*128, (i >> 2 & 1)*128)][:255*3] + [224, 224, 192]


def palette(labels, colours):
    picture = Image.fromarray(grey(labels))
    picture.putpalette(colours)
    return picture


def test_palettes(tmp_path):
    void = np.where(DISC & ~np.roll(DISC, 1, 0), 255, DISC*15)
    inside = DISC & np.roll(DISC, 1, 0)
    assert (read(tmp_path, palette(void, VOC)) == inside).all()                                 # without its border
    assert (read(tmp_path, palette(DISC*1, [255, 255, 255, 255, 0, 0])) == DISC).all()           # red on white, label 1 on 0
    assert not read(tmp_path, palette(DISC*0, [255, 255, 255, 255, 0, 0])).any()                 # nothing on white
    assert (read(tmp_path, palette(DISC*1, [0, 0, 0, 255, 255, 255])) == DISC).all()
    assert (read(tmp_path, palette(~DISC*1, [255, 255, 255, 0, 0, 0])) == DISC).all()            # white on black, whatever the numbers
    assert (read(tmp_path, palette(~DISC*1, [255, 0, 0, 0, 0, 0])) == DISC).all()                # red on black
    assert read(tmp_path, palette(DISC*0 + 7, VOC)).all()
    with pytest.raises(ValueError, match='several things of different labels .1, 2.'): read(tmp_path, palette(DISC*1 + OTHER*2, VOC))
    clear = palette(DISC*1, [0, 0, 0, 0, 0, 0])
    assert (read(tmp_path, clear, transparency=0) == DISC).all()                                # black, the shape in the transparency


@pytest.mark.parametrize('name, options', [('stack.tif', {}), ('turning.gif', {}), ('moving.webp', dict(lossless=True))])
def test_a_file_of_several_pictures(tmp_path, name, options):
    frames = [Image.fromarray(grey(m*255)) for m in (DISC, OTHER)]
    frames[0].save(tmp_path/name, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(ValueError, match=f'{name} cannot be read .it holds 2 pictures'): load_mask(tmp_path/name)


def test_values_that_are_no_brightness(tmp_path):
    with pytest.raises(ValueError, match='negative or no numbers'): read(tmp_path, np.where(DISC, np.float32('nan'), np.float32(0)), 'm.tif')
    with pytest.raises(ValueError, match='negative or no numbers'): read(tmp_path, np.where(DISC, -1, 0).astype(np.int32), 'm.tif')


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no mask .*nothing.png'): load_mask(tmp_path/'nothing.png')


@pytest.mark.parametrize('source, message', [
    (dict(size=[6, 9], counts='0~'), 'compressed counts'), (dict(size=[10**6, 10**6], counts='0'), 'more than the'),
    (dict(size=[6, 9], counts=[3, 4]), 'do not add up to 6x9'), (dict(size=[6, 9]), "the key 'counts' is missing"),
    (dict(size=[6.5, 9], counts=[54]), 'in whole pixels'),
    ([[0, 0, 1e9, 0, 1e9, 1e9]], 'far outside'), ([[1, 2, 3, 4]], 'three x, y pairs')])
def test_what_cannot_be_read_is_said(source, message):
    with pytest.raises(ValueError, match=f'The COCO mask cannot be read: .*{message}'): load_mask(source, size=(6, 9))


def test_polygons_need_a_size():
    with pytest.raises(ValueError, match='polygons need `size`'): load_mask([[0, 0, 2, 0, 2, 2]])


def test_saving_leaves_one_file(tmp_path):
    save_mask(tmp_path/'seg'/'1'/'mask.png', TRUTH)
    assert [p.name for p in (tmp_path/'seg'/'1').iterdir()] == ['mask.png']
    with pytest.raises(ValueError, match=r'mask: expected the shape \(height, width\), got \(1, '): save_mask(tmp_path/'x.png', TRUTH[None])


# ---- batches

def test_a_noun_without_a_token_is_not_valid():
    masks = torch.ones(2, 8, 8, dtype=torch.bool)
    targets = pack_targets([masks], [[[2, 3], []]], [(4, 4)])
    assert targets.valid[4, 4].tolist() == [[True, False]]
    assert targets.to('cpu').masks.keys() == targets.masks.keys() and len(targets) == 1


def test_masks_and_tokens_must_pair():
    masks = torch.ones(2, 8, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match='one mask per noun'): pack_targets([masks], [[[1]]], [(2, 2)])
    with pytest.raises(ValueError, match='one of each'): pack_targets([masks], [], [(2, 2)])
    with pytest.raises(ValueError, match='at least one size of maps'): pack_targets([masks], [[[1], [2]]], [])


def random_sample(nouns, generator):
    masks = torch.rand(nouns, 1, 1, generator=generator) > torch.rand(nouns, 16, 16, generator=generator)
    counts = torch.randint(0, 4, (nouns,), generator=generator).tolist()
    return masks, [torch.randint(1, 77, (count,), generator=generator).tolist() for count in counts]


def unpacked(targets, i):
    "One image of a batch as plain lists: tokens a noun, and the valid masks a size."
    nouns = int(targets.column_noun[i].max()) + 1
    tokens = [targets.token_ids[i][targets.column_noun[i] == n].tolist() for n in range(nouns)]
    return tokens, {s: m[i, targets.valid[s][i]] for s, m in targets.masks.items()}


SIZES = [(4, 4), (8, 8), (2, 4)]
GENERATOR = torch.Generator().manual_seed(0)
SAMPLES = [random_sample(n, GENERATOR) for n in (3, 0, 1, 5, 2)]


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('indices', [[3, 1, 0], [1], [4, 4], list(range(5))])
def test_a_batch_of_a_table_is_the_batch_of_its_samples(rule, indices):
    batch = TargetTable.build(SAMPLES, SIZES, rule).batch(indices)
    direct = pack_targets([SAMPLES[i][0] for i in indices], [SAMPLES[i][1] for i in indices], SIZES, rule)
    assert torch.equal(batch.token_ids, direct.token_ids) and torch.equal(batch.column_noun, direct.column_noun)
    for size in SIZES:
        assert torch.equal(batch.masks[size], direct.masks[size]) and torch.equal(batch.valid[size], direct.valid[size])
    for place, (masks, token_ids) in enumerate(SAMPLES[i] for i in indices):
        tokens, found = unpacked(batch, place)
        assert tokens == token_ids[:len(tokens)]
        assert not sum(token_ids[len(tokens):], [])      # nouns after the last column have no token
        for size in SIZES:
            targets = mask_targets(masks, size, rule)
            keep = [n for n, ids in enumerate(token_ids) if ids and targets[n].any()]
            assert torch.equal(found[size], targets[keep].flatten(1))


def test_padding_of_a_table():
    table = TargetTable.build(SAMPLES, SIZES)
    assert table.largest() == (5, max(sum(map(len, ids)) for _, ids in SAMPLES)) and len(table) == 5
    assert table.batch([1], nouns=6, columns=9).token_ids.shape == (1, 9)
    assert table.batch([1]).valid[4, 4].shape == (1, 1)    # a picture without nouns: one row of padding, never valid
    assert not table.batch([1]).valid[4, 4].any()
