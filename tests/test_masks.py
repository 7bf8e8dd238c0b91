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


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no mask .*nothing.png'): load_mask(tmp_path/'nothing.png')


@pytest.mark.parametrize('source, message', [
    (dict(size=[6, 9], counts='0~'), 'compressed counts'), (dict(size=[10**6, 10**6], counts='0'), 'more than the'),
    (dict(size=[6, 9], counts=[3, 4]), 'do not add up to 6x9'), (dict(size=[6, 9]), "the key 'counts' is missing"),
    (dict(size=[6., 9], counts=[54]), 'in whole pixels'),
    ([[0, 0, 1e9, 0, 1e9, 1e9]], 'far outside'), ([[1, 2, 3, 4]], 'three x, y pairs')])
def test_what_cannot_be_read_is_said(source, message):
    with pytest.raises(ValueError, match=f'The COCO mask cannot be read: .*{message}'): load_mask(source, size=(6, 9))


def test_polygons_need_a_size():
    with pytest.raises(ValueError, match='polygons need size'): load_mask([[0, 0, 2, 0, 2, 2]])


def test_saving_leaves_one_file(tmp_path):
    save_mask(tmp_path/'seg'/'1'/'mask.png', TRUTH)
    assert [p.name for p in (tmp_path/'seg'/'1').iterdir()] == ['mask.png']
    with pytest.raises(ValueError, match='two dimensions'): save_mask(tmp_path/'x.png', TRUTH[None])


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
    with pytest.raises(ValueError, match='nothing to supervise'): pack_targets([masks], [[[1], [2]]], [])


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
