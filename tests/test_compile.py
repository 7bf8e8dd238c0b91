"Attention maps out of a compiled U-Net equal those of the eager one."
import shutil

import pytest
import torch

from tokencompose.attention import CrossAttentionCapture
from tokencompose import speed
from tokencompose.models import tiny_unet

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ('g++', 'clang++', 'c++'))),
                                    reason='torch.compile needs a C++ compiler (g++ or clang++) on the CPU')


def small_unet():
    return tiny_unet(sample_size=8, block_out_channels=(8, 8), cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
                     mid_block_type=None, down_block_types=('DownBlock2D', 'DownBlock2D'),
                     up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))


def step(unet, batch, token_ids):
    with CrossAttentionCapture(unet, 'up') as capture:
        capture.select(token_ids)
        output = unet(*batch).sample
        maps = [m for group in capture.maps.values() for m in group]
        (output.square().mean() + sum(m.square().sum(2).mean() for m in maps)).backward()
    return output.detach(), maps, [p.grad for p in unet.parameters() if p.grad is not None]


# Kernels are generated for the blocks that repeat, as `fast` does; the whole model, hooks included, is only traced
# (the backend that needs no compiler), in one piece, which is where a capture could break. Under checkpointing blocks run twice, and only those of convolutions are compiled.
@pytest.mark.parametrize('how, backend, checkpointing', [pytest.param('fast', 'inductor', False, marks=needs_compiler), ('whole', 'aot_eager', False), ('fast', 'aot_eager', True)])
def test_compiled_maps_equal_eager(how, backend, checkpointing, monkeypatch):
    torch._dynamo.reset()
    eager, compiled = small_unet(), small_unet()
    compiled.load_state_dict(eager.state_dict())
    if checkpointing: compiled.train().enable_gradient_checkpointing()
    monkeypatch.setattr(speed, 'BACKEND', backend)
    if not checkpointing: monkeypatch.setattr(speed, 'REGIONS', ('BasicTransformerBlock',))  # convolutions take their time, and capture nothing
    counted = torch._dynamo.utils.counters['graph_break']
    counted.clear()
    speed.compile_unet(compiled, how, anywhere=True)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 500]), torch.randn(2, 6, 8, generator=generator)
    for token_ids in (torch.tensor([[1, 3], [5, 0]]), torch.tensor([[2, 2], [4, 1]])):
        expected, found = (step(unet, batch, token_ids) for unet in (eager, compiled))
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
        assert len(found[1]) == len(expected[1]) == 2
        for a, b in zip(found[1] + found[2], expected[1] + expected[2], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not counted, f'the graph breaks: {dict(counted)}'
