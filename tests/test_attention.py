"Captured attention maps: names of layers, every branch of diffusers' attention, conditions of training, refusals."
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from tokencompose.attention import attention_probs, CaptureProcessor, cross_attention_groups, CrossAttentionCapture
from tokencompose.attention import map_size, resolve_layers, unwrap
from tokencompose.methods import relative_layers
from tokencompose.models import tiny_unet


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BATCH = dict(sample=randn(2, 4, 16, 24), timestep=torch.tensor([10, 700]), encoder_hidden_states=3*randn(2, 9, 12, seed=1))
TOKEN_IDS = torch.tensor([[1, 5, 5], [8, 2, 0]])
MID = 'mid_block.attentions.0.transformer_blocks.0.attn2'


def processors(unet):
    return {name: m.processor for name, m in unet.named_modules() if isinstance(m, Attention)}


def changed(unet, before):
    return [name for name, p in processors(unet).items() if p is not before[name]]


def test_precision_of_the_probabilities():
    query, key = randn(1, 1, 3, 4), randn(1, 1, 5, 4, seed=1)
    assert attention_probs(query.double(), key.double()).dtype == torch.float64
    assert attention_probs(query.half(), key.half()).dtype == torch.float32


# ---- names of layers

@pytest.fixture(scope='module')
def sd14():
    "Stable Diffusion 1.4's U-Net, without weights."
    with torch.device('meta'):
        return UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
                                    sample_size=64)


def test_groups_of_sd14(sd14):
    groups = cross_attention_groups(sd14)
    assert {g: len(paths) for g, paths in groups.items()} == dict(down_64=2, down_32=2, down_16=2, mid_8=1, up_16=3, up_32=3, up_64=3)
    assert groups['mid_8'] == [MID]
    assert list(cross_attention_groups(sd14, 96)) == ['down_96', 'down_48', 'down_24', 'mid_12', 'up_24', 'up_48', 'up_96']


def test_a_unet_without_text_is_refused():
    plain = UNet2DConditionModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                                 mid_block_type=None, down_block_types=('DownBlock2D',), up_block_types=('UpBlock2D',))
    with pytest.raises(ValueError, match='no cross-attention'): cross_attention_groups(plain)


def test_a_nominal_size_is_needed():
    unet = tiny_unet()
    unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match='sample_size'): cross_attention_groups(unet)
    assert list(cross_attention_groups(unet, 16)) == list(cross_attention_groups(tiny_unet()))


def test_layers_by_name(sd14):
    assert sum(map(len, resolve_layers(sd14).values())) == 10
    assert resolve_layers(sd14, 'all') == cross_attention_groups(sd14)


@pytest.mark.parametrize('groups, size', [
    (['down_16', 'mid_8', 'up_16'], 64), (['down_24', 'mid_12', 'up_24'], 96),
    (['down_18', 'mid_9', 'up_18'], 70)])   # 70, 35, 18, 9: rounded up at each halving
def test_relative_names_fit_every_size(sd14, groups, size):
    assert list(resolve_layers(sd14, relative_layers(('mid_8', 'up_16', 'down_16')), size)) == groups


def test_unknown_layers_are_refused(sd14):
    with pytest.raises(ValueError, match="size in 'up_12'"): relative_layers(['up_12'])
    for bad in [('mid', 'up_7'), ('up_16x',), ()]:
        with pytest.raises(ValueError, match='choose from down_64'): resolve_layers(sd14, bad)


def test_wrappers_are_looked_through():
    class Wrapper(nn.Module):
        def __init__(self, inner): super().__init__(); self._orig_mod = inner
    unet = tiny_unet()
    assert unwrap(Wrapper(Wrapper(unet))) is unet and unwrap(unet) is unet


def test_a_map_that_is_no_halving():
    with pytest.raises(RuntimeError, match='no halving'): map_size((16, 16), 100)


# ---- the processor against the stock one

def both(attn, *args, **kwargs):
    "Output of the stock processor and of ours."
    for p in attn.parameters(): p.data = randn(*p.shape, seed=p.numel())*.3
    out = []
    for processor in (AttnProcessor2_0(), CaptureProcessor()):
        attn.set_processor(processor)
        out.append(attn(*args, **kwargs))
    return out


BRANCHES = dict(plain={}, bias=dict(bias=True), group_norm=dict(norm_num_groups=4), text_norm=dict(cross_attention_norm='layer_norm'),
                qk_norm=dict(qk_norm='layer_norm'), residual=dict(residual_connection=True, rescale_output_factor=2.))


@pytest.mark.parametrize('branch', BRANCHES)
def test_every_branch_equals_the_stock_processor(branch):
    pixels, text = randn(3, 20, 16), randn(3, 5, 12, seed=1)
    bias = torch.zeros(3, 1, 5)
    bias[:, :, 3:] = -10000      # as the U-Net passes masks of the text: one bias a token
    attn = Attention(query_dim=16, cross_attention_dim=12, heads=2, dim_head=8, **BRANCHES[branch])
    close(*both(attn, pixels, encoder_hidden_states=text))
    close(*both(attn, pixels, encoder_hidden_states=text, attention_mask=bias))


@pytest.mark.parametrize('extra', [{}, dict(residual_connection=True), dict(spatial_norm_dim=6)])
def test_four_dimensional_input_that_attends_to_itself(extra):
    close(*both(Attention(query_dim=32, heads=2, dim_head=8, **extra), randn(3, 32, 4, 5), temb=randn(3, 6, 2, 2)))


# ---- the capture

def test_maps_and_heat_maps():
    unet = tiny_unet()
    with CrossAttentionCapture(unet) as capture: unet(**BATCH)
    assert [len(capture.maps[g]) for g in capture.groups] == [1, 2, 2]
    assert {m.dtype for maps in capture.maps.values() for m in maps} == {torch.float32}
    by_hand = torch.stack([m[:, :, :, 5].mean(1) for m in capture.maps['up_8']]).mean(0)[0]
    close(capture.heat_map('up_8')[0, 5], by_hand.detach().unflatten(0, (8, 12)), 1e-7)


def test_a_second_capture_is_refused_and_changes_nothing():
    unet = tiny_unet()
    before = processors(unet)
    with CrossAttentionCapture(unet, ('up_8',)) as one:
        assert changed(unet, before) == one.groups['up_8']
        with pytest.raises(RuntimeError, match='already inside'):
            with CrossAttentionCapture(unet, 'mid'): pass
        assert changed(unet, before) == one.groups['up_8']
        with one.paused(): assert not changed(unet, before)
        assert changed(unet, before) == one.groups['up_8']
    assert not changed(unet, before)


def test_an_exception_puts_everything_back():
    unet = tiny_unet()
    before = processors(unet)
    with pytest.raises(ZeroDivisionError):
        with CrossAttentionCapture(unet): 1/0
    assert not changed(unet, before) and not unet._forward_pre_hooks and not unet._forward_hooks


def test_maps_before_a_forward_pass_and_after_clear():
    unet = tiny_unet()
    with CrossAttentionCapture(unet, 'mid') as one:
        with pytest.raises(RuntimeError, match='No attention maps yet'): one.maps
        unet(**BATCH)
        with pytest.raises(KeyError, match='mid_4'): one.heat_map('up_8')
        one.clear()
        with pytest.raises(RuntimeError, match='No attention maps yet'): one.maps


def test_wrong_positions_are_refused():
    unet = tiny_unet()
    with CrossAttentionCapture(unet, 'mid') as one:
        with pytest.raises(ValueError, match='integer'): one.select(torch.zeros(2, 1))
        with pytest.raises(ValueError, match='negative'): one.select(torch.tensor([[-1], [0]]))
        one.select(torch.zeros(3, 1, dtype=torch.long))
        with pytest.raises(ValueError, match='batch of 2'): unet(**BATCH)
        one.select(torch.tensor([[1], [0]]))
        unet(**BATCH)
        assert one.maps['mid_4'][0].shape == (2, 4, 24, 1)


def test_an_unfinished_forward_pass_leaves_no_maps():
    "Neither half-done ones nor those of an earlier batch."
    unet = tiny_unet()
    with CrossAttentionCapture(unet, 'mid') as one:
        unet(**BATCH)
        one.select(torch.tensor([[99], [0]]))
        with pytest.raises(RuntimeError, match='out of bounds'): unet(**BATCH)
        with pytest.raises(RuntimeError, match='No attention maps yet'): one.maps


def test_a_foreign_processor_is_refused():
    class Special(AttnProcessor2_0): pass
    unet = tiny_unet()
    unet.get_submodule(MID).set_processor(Special())
    with pytest.raises(TypeError, match='Special'):
        with CrossAttentionCapture(unet): pass


# ---- conditions of training

def map_loss(maps):
    layers = [m for group in maps.values() for m in group]
    return sum((m.square()*(1 + i)).sum(2).mean() for i, m in enumerate(layers))


def step(unet, amp=False):
    "Loss and gradients of a step whose loss reads both the output and the maps."
    with CrossAttentionCapture(unet) as capture, torch.autocast('cpu', torch.bfloat16, enabled=amp):
        capture.select(TOKEN_IDS)
        sample = unet(**BATCH).sample
        loss = (sample.float() if amp else sample).square().mean() + map_loss(capture.maps)
        loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in unet.named_parameters()}


@pytest.fixture
def checkpointed():
    unet = tiny_unet().train()
    unet.enable_gradient_checkpointing()
    return unet


def test_checkpointing_changes_no_gradient(checkpointed):
    (loss_a, grads_a), (loss_b, grads_b) = step(tiny_unet().train()), step(checkpointed)
    close(loss_a, loss_b, 1e-6)
    for name in grads_a: close(grads_a[name], grads_b[name])
    assert grads_b[f'{MID}.to_q.weight'].abs().sum() > 0


def test_recomputation_stores_nothing(checkpointed):
    with CrossAttentionCapture(checkpointed) as capture:
        capture.select(TOKEN_IDS)
        checkpointed(**BATCH)
        held = [m for maps in capture.maps.values() for m in maps]
        map_loss(capture.maps).backward()
        assert all(a is b for a, b in zip(held, (m for maps in capture.maps.values() for m in maps), strict=True))


def test_a_forward_pass_before_the_backward_pass_is_noticed(checkpointed):
    with CrossAttentionCapture(checkpointed) as capture:
        capture.select(TOKEN_IDS)
        checkpointed(**BATCH)
        first = map_loss(capture.maps)
        checkpointed(**{**BATCH, 'encoder_hidden_states': BATCH['encoder_hidden_states'].clone()})
        with pytest.raises(RuntimeError, match='before the backward pass'): first.backward()


def test_reentrant_checkpointing_is_refused(checkpointed):
    def reentrant(module, *args): return torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=True)
    checkpointed.enable_gradient_checkpointing(reentrant)
    with CrossAttentionCapture(checkpointed) as capture:
        capture.select(TOKEN_IDS)
        with pytest.raises(RuntimeError, match='Reentrant'): checkpointed(**BATCH)


def test_mixed_precision():
    unet = tiny_unet()
    with torch.autocast('cpu', torch.bfloat16): stock = unet(**BATCH).sample
    with CrossAttentionCapture(unet) as capture, torch.autocast('cpu', torch.bfloat16): half = unet(**BATCH).sample
    assert half.dtype == torch.bfloat16
    close(half.float(), stock.float(), .03)
    assert {m.dtype for maps in capture.maps.values() for m in maps} == {torch.float32}
    for m in capture.maps['up_16']: close(m.sum(-1), torch.ones(m.shape[:3]), 1e-6)
    assert all(grad.isfinite().all() for grad in step(tiny_unet(), amp=True)[1].values())


class LowRank(nn.Module):
    "A frozen linear layer plus a trained rank-one update."
    def __init__(self, linear, seed=3):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(randn(1, linear.in_features, seed=seed))
        self.up = nn.Parameter(randn(linear.out_features, 1, seed=seed + 1))

    def forward(self, x): return self.linear(x) + x @ self.down.T @ self.up.T


def test_an_adapter_takes_part_in_the_map():
    adapted, merged = tiny_unet().requires_grad_(False), tiny_unet()
    attn2 = adapted.get_submodule(MID)
    attn2.to_q = LowRank(attn2.to_q)
    merged.get_submodule(MID).to_q.weight.data += attn2.to_q.up @ attn2.to_q.down
    got = []
    for net in (adapted, merged):
        with CrossAttentionCapture(net, 'mid') as capture: net(**BATCH)
        got.append(capture.maps['mid_4'][0])
    close(*got)
    got[0].square().sum().backward()
    assert attn2.to_q.down.grad.abs().sum() > 0 and attn2.to_q.linear.weight.grad is None


def test_padding_masks_of_the_text_reach_the_softmax():
    unet, padded = tiny_unet(), {**BATCH, 'encoder_attention_mask': torch.tensor([[1]*9, [1]*4 + [0]*5])}
    with torch.no_grad():
        expected = unet(**padded).sample
        with CrossAttentionCapture(unet) as capture: close(unet(**padded).sample, expected)
    for m in (m for maps in capture.maps.values() for m in maps):
        assert not m[1, :, :, 4:].any() and (m[0] > 0).all() and not m.requires_grad
