"Null-text inversion: what is refused, and folders of inversions that survive an interruption."
import copy
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler

from tokencompose.core import keyed_randn
from tokencompose.data.world import draw_scene, render, VSR
from tokencompose.inversion import Ddim, ddim_path, distances, Inversion, inversion_path, invert, invert_pictures
from tokencompose.inversion import null_text, read_inversion, reconstruct
from tokencompose.models import loud_pipeline, new_sampler, tiny_pipeline
from tokencompose.sampling import denoise, TextStates

QUICK = dict(inference_steps=2, inner_steps=2)


def pixels_of(scene): return torch.from_numpy(render(scene)[0]).permute(2, 0, 1)/127.5 - 1


@pytest.fixture(scope='module')
def pipe(): return tiny_pipeline()


@pytest.fixture(scope='module')
def items():
    return [dict(id=f'scene {i}', caption=f'a {name}', pixel_values=pixels_of(draw_scene((0, 'files', i), VSR)))
            for i, name in enumerate(('cat', 'dog', 'teddy bear'))]


def contents(folder): return {p.name: p.read_bytes() for p in Path(folder).glob('*.safetensors')}


def test_the_library_would_take_another_path_for_v():
    "Left to itself, DDIMInverseScheduler translates v at the level it comes from."
    pipe = loud_pipeline(double=True, prediction_type='v_prediction')
    z, states = keyed_randn([(0, 0)], (4, 16, 16)).double(), TextStates(pipe)(['a cat']).double()
    ours = ddim_path(Ddim(pipe.unet.requires_grad_(False), pipe.scheduler.config, 10), z, states)[-1]
    library = DDIMInverseScheduler.from_config(new_sampler(pipe.scheduler.config).config)
    library.set_timesteps(10)
    for t in library.timesteps: z = library.step(pipe.unet(z, t, encoder_hidden_states=states).sample, t, z).prev_sample
    assert (z - ours).abs().max() > .01


@pytest.mark.parametrize('kind, stops', [('epsilon', (13.5, 57.)), ('v_prediction', (1.4, 7.4))])
def test_a_picture_does_not_depend_on_its_company(kind, stops):
    "And the fitted embeddings lead nearer to the picture than the plain empty prompt."
    pipe = loud_pipeline(double=True, prediction_type=kind)
    settings, ddim = Inversion(inference_steps=3, stop=stops[0], stop_end=stops[1]), Ddim(pipe.unet.requires_grad_(False), pipe.scheduler.config, 3)
    z0 = keyed_randn([('z', i) for i in range(3)], (4, 16, 16)).double()/3
    text, empty = (TextStates(pipe)(texts).double() for texts in (['a cat', 'a photo of a dog and a teddy bear.', 'a dog, a cat and a cat.'], ['']))
    path = ddim_path(ddim, z0, text)
    together = null_text(ddim, path, text, empty, settings)
    alone = null_text(ddim, [z[1:2] for z in path], text[1:2], empty, settings)
    for name in alone: torch.testing.assert_close(alone[name][0], together[name][1], atol=1e-8, rtol=0)
    drawn = reconstruct(ddim, path[-1], text, together['embeddings'], 7.5)
    plain = denoise(pipe.unet, new_sampler(pipe.scheduler.config), path[-1], text, empty, 3, 7.5)
    assert (distances(drawn, z0) < distances(plain, z0)).all()


def test_embeddings_of_another_run_are_refused(pipe):
    noise, states = keyed_randn([(0, i) for i in range(3)], (4, 16, 16)), TextStates(pipe)(['a cat']*3)
    with pytest.raises(ValueError, match='3 pictures and 2 steps, but 3 pictures are to be drawn in 50'):
        reconstruct(Ddim(pipe.unet, pipe.scheduler.config, 50), noise, states, states[:, None].expand(-1, 2, -1, -1), 7.5)


def test_half_precision_is_too_coarse(pipe, items):
    with pytest.raises(ValueError, match='too coarse'): invert(copy.deepcopy(pipe).to(torch.bfloat16), items[0]['pixel_values'][None], ['a cat'])


def test_bad_settings():
    with pytest.raises(ValueError, match="did you mean 'inner_steps'"): Inversion.from_params(dict(inner_step=3))
    with pytest.raises(ValueError, match='inference_steps: expected 1 or more'): Inversion(inference_steps=0)


class Interrupted(list):
    def __getitem__(self, i):
        if i == 2: raise KeyboardInterrupt
        return super().__getitem__(i)


def test_an_interrupted_run_leaves_the_same_bytes(pipe, items, tmp_path):
    "Interrupted in its second batch, with one file of the first deleted and one cut off."
    whole, part = tmp_path/'whole', tmp_path/'part'
    assert invert_pictures(pipe, items, whole, 2, **QUICK) == dict(inverted=3, skipped=0, missing=0)
    with pytest.raises(KeyboardInterrupt): invert_pictures(pipe, Interrupted(items), part, 2, **QUICK)
    assert len(contents(part)) == 2
    first, second = (inversion_path(part, item['id']) for item in items[:2])
    first.unlink(); second.write_bytes(second.read_bytes()[:-5])
    assert invert_pictures(pipe, items, part, 2, **QUICK) == dict(inverted=3, skipped=0, missing=0)
    assert contents(part) == contents(whole)
    second.unlink()
    assert invert_pictures(pipe, items, part, 2, **QUICK) == dict(inverted=1, skipped=2, missing=0)
    assert contents(part) == contents(whole)


def test_processes_share_the_batches(pipe, items, tmp_path):
    assert invert_pictures(pipe, items, tmp_path, 2, share=(1, 2), **QUICK) == dict(inverted=1, skipped=0, missing=2)


def test_files_hold_what_was_found(pipe, items, tmp_path):
    invert_pictures(pipe, items, tmp_path, 2, **QUICK)
    direct = invert(pipe, torch.stack([item['pixel_values'] for item in items[:2]]), ['a cat', 'a dog'], Inversion(**QUICK))
    again = read_inversion(tmp_path, 'scene 1')
    for name, values in direct.items(): assert torch.equal(again[name], values[1])
    with pytest.raises(FileNotFoundError, match='no inversion'): read_inversion(tmp_path, 'scene 9')


def test_a_folder_refuses_what_differs(pipe, items, tmp_path):
    invert_pictures(pipe, items, tmp_path, 2, **QUICK)
    with pytest.raises(ValueError, match='inner_steps 2 there, 3 now'): invert_pictures(pipe, items, tmp_path, 2, inference_steps=2, inner_steps=3)
    with pytest.raises(ValueError, match='other model weights'): invert_pictures(tiny_pipeline(seed=1), items, tmp_path, 2, **QUICK)
    for change in (dict(caption='a cow'), dict(pixel_values=items[1]['pixel_values'])):
        with pytest.raises(ValueError, match="another picture or caption than 'scene 0'"): invert_pictures(pipe, [items[0] | change], tmp_path, 2, **QUICK)
    (tmp_path/'settings.json').unlink()
    with pytest.raises(ValueError, match='no settings.json'): invert_pictures(pipe, items, tmp_path, 2, **QUICK)


def test_every_id_has_a_file_of_its_own():
    assert inversion_path('x', 'a.b-1').name == 'a.b-1.safetensors'
    assert len({inversion_path('x', name) for name in ('a b', 'a_b', 'a/b', 'a'*90, 'a'*91)}) == 5
