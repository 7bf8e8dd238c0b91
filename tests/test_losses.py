"Both implementations of the losses against plain numpy loops, on drawn cases; gradients against finite differences."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from tokencompose.data.masks import pack_targets
from tokencompose.losses import column_losses, grounding_losses, HEAD_REDUCTIONS, pixel_loss, token_loss

GRIDS = {'mid_2': (2, 3), 'up_4': (4, 6)}
TEXT = 7


def by_loops(maps, masks, token_ids, head_reduction, layer_reduction, pixel):
    """The two losses of the paper and of the authors' code, one number at a time.
    Every cell of a map is covered by a mask entirely or not at all, so that one pixel of it tells the target."""
    batch, token, pix = len(masks), {}, {}
    for group, (h, w) in GRIDS.items():
        layers, token[group], pix[group] = [m.detach().double().numpy() for m in maps[group]], 0., 0.
        for b in range(batch):
            step = masks[b].shape[-1]//w
            targets = [m[::step, ::step].numpy().astype(float).reshape(-1) for m in masks[b]]
            nouns = [(ids, t) for ids, t in zip(token_ids[b], targets) if ids and t.sum() > 0]
            for ids, target in nouns:
                for attn in layers:
                    for i in ids:
                        columns = attn[b][:, :, i]
                        if head_reduction == 'map': columns = columns.mean(0)[None]
                        ratios = np.array([sum(c[u] for u in range(h*w) if target[u])/sum(c) for c in columns])
                        value = np.mean((1 - ratios)**2) if head_reduction == 'loss' else (1 - np.mean(ratios))**2
                        token[group] += value/len(ids)/len(nouns)/batch
                        if pixel == 'paper': pix[group] += entropy(attn[b].mean(0)[:, i], target)/TEXT/(h*w)/batch
                if pixel == 'authors':
                    noun = sum(attn[b].mean(0)[:, i] for attn in layers for i in ids)/len(layers)
                    pix[group] += entropy(noun, target)/(h*w)/len(nouns)/batch
    totals = sum(token.values()), sum(pix.values())
    if layer_reduction == 'sum': return *totals, token, pix
    token_terms, pixel_terms = {g: len(m) for g, m in maps.items()}, {g: len(m) if pixel == 'paper' else 1 for g, m in maps.items()}
    return (totals[0]/sum(token_terms.values()), totals[1]/sum(pixel_terms.values()),
            {g: v/token_terms[g] for g, v in token.items()}, {g: v/pixel_terms[g] for g, v in pix.items()})


def entropy(probs, target):
    probs = np.clip(probs, 1e-6, 1 - 1e-6)
    return -sum(np.log(p) if t else np.log(1 - p) for p, t in zip(probs, target))


@st.composite
def cases(draw):
    "Ragged batches: images without nouns, nouns without tokens, shared tokens, empty masks."
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    nouns = [draw(st.integers(0, 3)) for _ in range(draw(st.integers(1, 3)))]
    # drawn on the coarsest grid, 8 pixels a cell, so that every rule of resizing agrees
    masks = [(torch.rand(n, 2, 3, generator=generator) < draw(st.sampled_from([.15, .6]))).repeat_interleave(8, 1).repeat_interleave(8, 2) for n in nouns]
    token_ids = [[draw(st.lists(st.integers(1, TEXT - 1), max_size=3, unique=True)) for _ in range(n)] for n in nouns]
    temperature = draw(st.sampled_from([.1, 1., 6.]))
    maps = {g: [(temperature*torch.randn(len(nouns), draw(st.integers(1, 3)), h*w, TEXT, generator=generator)).softmax(-1) for _ in range(draw(st.integers(1, 2)))]
            for g, (h, w) in GRIDS.items()}
    options = dict(head_reduction=draw(st.sampled_from(['ratio', 'map', 'loss'])), layer_reduction=draw(st.sampled_from(['sum', 'mean'])), pixel=draw(st.sampled_from(['authors', 'paper'])))
    return maps, masks, token_ids, options


def columns_of(maps, targets):
    return {g: [m.gather(3, targets.token_ids[:, None, None].expand(-1, *m.shape[1:3], -1)) for m in layers] for g, layers in maps.items()}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(cases())
def test_both_paths_equal_plain_loops(case):
    maps, masks, token_ids, options = case
    leaves = [m.requires_grad_() for layers in maps.values() for m in layers]
    targets = pack_targets(masks, token_ids, list(GRIDS.values()))
    slow = grounding_losses(maps, masks, token_ids, **options)
    fast = column_losses(columns_of(maps, targets), targets, GRIDS, **options, text_length=TEXT)
    token, pixel, token_by_group, pixel_by_group = by_loops(maps, masks, token_ids, **options)
    supervised = sum(bool(ids) and bool(m.any()) for image, many in zip(token_ids, masks) for ids, m in zip(image, many))
    for losses in (slow, fast):
        assert losses.token.item() == pytest.approx(token, abs=2e-6, rel=2e-6)
        assert losses.pixel.item() == pytest.approx(pixel, abs=2e-6, rel=2e-6)
        assert {g: float(v) for g, v in losses.token_by_group.items()} == pytest.approx(token_by_group, abs=2e-6, rel=2e-6)
        assert {g: float(v) for g, v in losses.pixel_by_group.items()} == pytest.approx(pixel_by_group, abs=2e-6, rel=2e-6)
        assert int(losses.supervised) == supervised
    for name in ('token', 'pixel'):
        gradients = [torch.autograd.grad(getattr(losses, name), leaves, retain_graph=True) for losses in (slow, fast)]
        for a, b in zip(*gradients):
            assert a.isfinite().all() and b.isfinite().all()
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('head_reduction', ['ratio', 'map', 'loss'])
@pytest.mark.parametrize('pixel', ['authors', 'paper'])
def test_gradient_is_the_slope(head_reduction, pixel):
    generator = torch.Generator().manual_seed(1)
    masks, token_ids = [torch.rand(2, 16, 24, generator=generator) > .5, torch.rand(1, 16, 24, generator=generator) > .5], [[[1, 2], [4]], [[6]]]
    targets = pack_targets(masks, token_ids, list(GRIDS.values()))
    maps = columns_of({g: [torch.randn(2, 2, h*w, TEXT, generator=generator).double().softmax(-1)] for g, (h, w) in GRIDS.items()}, targets)
    leaves = [m.requires_grad_() for layers in maps.values() for m in layers]

    def loss(*leaves):
        return column_losses({g: [m] for g, m in zip(maps, leaves)}, targets, GRIDS, head_reduction=head_reduction, pixel=pixel, text_length=TEXT).weighted(1., 1.)
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-7, atol=1e-6)


# ---- one token

@pytest.mark.parametrize('head_reduction', HEAD_REDUCTIONS)
def test_uniform_attention_is_the_share_outside(head_reduction):
    mask = (torch.arange(36) < 9).float()
    assert token_loss(torch.full((8, 36), 1/77), mask, head_reduction).item() == pytest.approx(.75**2, abs=1e-6)


def test_every_head_obeys_only_in_loss():
    attn, mask = torch.rand(4, 36, generator=torch.Generator().manual_seed(0)), (torch.arange(36) < 9).float()
    assert token_loss(attn, mask, 'loss') > token_loss(attn, mask)    # Jensen


def test_a_column_without_attention_counts_as_outside():
    "Below EPS = 1e-8 nothing divides by zero."
    assert token_loss(torch.tensor([[1e-9, 0.]]), torch.tensor([1., 0.])).item() == pytest.approx(.9**2, abs=1e-6)
    assert token_loss(torch.zeros(1, 2), torch.tensor([1., 0.])) == 1


def test_pixel_loss_is_clamped_not_infinite():
    assert pixel_loss(torch.tensor([0., 1.]), torch.tensor([1., 0.])).item() == pytest.approx(-math.log(1e-6), abs=.1)
    assert pixel_loss(torch.tensor([0., 1.]), torch.tensor([0., 1.])).item() == pytest.approx(0, abs=2e-6)


def test_pixel_loss_is_not_free_of_scale():
    mask = (torch.arange(36) < 9).float()
    assert pixel_loss(torch.full((36,), .1/77), mask) > pixel_loss(torch.full((36,), 1/77), mask) + .5


# ---- batches

def random_maps(batch, text=9, seed=0, heads=(2, 3), grid=((4, 6), (8, 12))):
    "Softmax maps of two groups on non-square grids, two layers each."
    g = torch.Generator().manual_seed(seed)
    return {f'up_{h}': [(2*torch.randn(batch, n, h*w, text, generator=g)).softmax(-1) for _ in range(2)]
            for n, (h, w) in zip(heads, grid)}


SIZES = dict(up_4=(4, 6), up_8=(8, 12))


@pytest.fixture
def ragged():
    "Maps, masks and tokens: nouns of one and two tokens, a noun not found, an empty mask, an image without nouns."
    generator = torch.Generator().manual_seed(3)
    masks = [torch.rand(n, 16, 24, generator=generator) > .8 for n in (3, 1, 0, 2)]
    masks[3][1] = False
    maps = {group: [m.requires_grad_() for m in layers] for group, layers in random_maps(4).items()}
    return maps, masks, [[[1, 2], [4], []], [[8]], [], [[5], [5, 6]]]


def packed(maps, masks, ids):
    "Captured columns and targets."
    targets = pack_targets(masks, ids, list(SIZES.values()))
    return columns_of(maps, targets), targets


def one_image(maps, masks, ids, b):
    return {group: [m[b:b + 1] for m in layers] for group, layers in maps.items()}, masks[b:b + 1], ids[b:b + 1]


def test_total_weighted_by_default_scales(ragged):
    losses = grounding_losses(*ragged)
    assert losses.weighted().item() == pytest.approx(1e-3*losses.token.item() + 5e-5*losses.pixel.item())


def test_a_batch_of_four_is_four_batches_of_one_by_the_reference(ragged):
    whole, ones = grounding_losses(*ragged), [grounding_losses(*one_image(*ragged, b)) for b in range(4)]
    assert sum(o.token for o in ones).item()/4 == pytest.approx(whole.token.item(), abs=1e-6)
    assert sum(o.pixel for o in ones).item()/4 == pytest.approx(whole.pixel.item(), abs=1e-6)


@pytest.mark.parametrize('kind', ['no nouns', 'empty mask'])
@pytest.mark.parametrize('path', ['reference', 'columns'])
def test_an_image_without_masks_has_zero_losses_and_gradients(ragged, kind, path):
    maps, masks, ids = one_image(*ragged, 2)
    if kind == 'empty mask': masks, ids = [torch.zeros(1, 16, 24, dtype=torch.bool)], [[[3]]]
    leaves = [m for layers in ragged[0].values() for m in layers]
    losses = grounding_losses(maps, masks, ids) if path == 'reference' else column_losses(*packed(maps, masks, ids), SIZES)
    assert [losses.token.item(), losses.pixel.item(), losses.supervised.item()] == [0, 0, 0]
    for grad in torch.autograd.grad(losses.weighted(1., 1.), leaves): assert torch.equal(grad, torch.zeros_like(grad))


def test_masks_that_vanish_at_some_sizes():
    "Each of the small ones is sampled at one of the sizes, the dot at none."
    maps = random_maps(1)
    cat, coarse_only, fine_only, dot = torch.zeros(4, 32, 48, dtype=torch.bool)
    cat[4:24, 6:30] = True
    coarse_only[3, 3] = fine_only[1, 1] = dot[0, 0] = True
    spots = [torch.stack([cat, coarse_only, fine_only, dot])], [[[3], [5], [6], [7]]]
    slow, fast = grounding_losses(maps, *spots), column_losses(*packed(maps, *spots), SIZES)
    assert int(slow.supervised) == int(fast.supervised) == 3
    assert slow.token.item() == pytest.approx(fast.token.item(), abs=1e-6)
    assert slow.pixel.item() == pytest.approx(fast.pixel.item(), abs=1e-6)


def test_keep_smallest_adds_to_the_loss():
    maps = random_maps(1)
    cat, dot = torch.zeros(2, 32, 48, dtype=torch.bool)
    cat[4:24, 6:30] = dot[0, 0] = True
    pair = [torch.stack([cat, dot])], [[[3], [5]]]
    assert grounding_losses(maps, *pair, keep_smallest=True).token > grounding_losses(maps, *pair).token


def test_losses_leave_autocast_and_half_precision(ragged):
    columns, targets = packed(*ragged)
    exact = column_losses(columns, targets, SIZES)
    with torch.autocast('cpu', torch.bfloat16): inside = column_losses(columns, targets, SIZES)
    assert inside.token.dtype == torch.float32
    assert inside.token.item() == pytest.approx(exact.token.item(), abs=1e-7)
    assert inside.pixel.item() == pytest.approx(exact.pixel.item(), abs=1e-7)
    half = column_losses({g: [m.bfloat16() for m in layers] for g, layers in columns.items()}, targets, SIZES)
    assert half.pixel.dtype == torch.float32
    assert half.token.item() == pytest.approx(exact.token.item(), abs=2e-2)


def test_mistakes_are_named(ragged):
    maps, masks, ids = ragged
    columns, targets = packed(*ragged)
    with pytest.raises(ValueError, match='head_reduction'): column_losses(columns, targets, SIZES, head_reduction='heads')
    with pytest.raises(ValueError, match='layer_reduction'): grounding_losses(*ragged, layer_reduction='max')
    with pytest.raises(ValueError, match='text_length'): column_losses(columns, targets, SIZES, pixel='paper')
    with pytest.raises(ValueError, match='up_4 has maps of 6x4'): column_losses(columns, targets, dict(SIZES, up_4=(6, 4)))
    with pytest.raises(ValueError, match='capture.select'): column_losses(maps, targets, SIZES)
    with pytest.raises(ValueError, match='3 in masks'): grounding_losses(maps, masks[:3], ids)
    with pytest.raises(ValueError, match='pass `sizes`'): grounding_losses({'up_3': [torch.rand(4, 1, 13, 9)]}, masks, ids)


def test_a_step_reaches_the_keys_of_the_supervised_layers():
    from tokencompose.attention import CrossAttentionCapture
    from tokencompose.models import tiny_unet
    unet, generator = tiny_unet(), torch.Generator().manual_seed(1)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 8:40, 8:40] = True
    targets = pack_targets([mask], [[[2, 3]]], [(4, 4), (8, 8), (16, 16)])
    with CrossAttentionCapture(unet) as capture:
        capture.select(targets.token_ids)
        unet(torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([300]), torch.randn(1, 9, 12, generator=generator))
        column_losses(capture.maps, targets, capture.sizes).weighted(.1, .02).backward()
    grad = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.grad
    assert grad.isfinite().all() and grad.abs().sum() > 0
