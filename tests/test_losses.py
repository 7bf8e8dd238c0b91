"Both implementations of the losses against plain numpy loops, on drawn cases; gradients against finite differences."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from tokencompose.data.masks import pack_targets
from tokencompose.losses import column_losses, grounding_losses

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
