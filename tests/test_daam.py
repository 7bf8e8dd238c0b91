"Table 4 on pipelines laid out like Stable Diffusion, and against the package daam where it is installed."
import pytest
import torch
from make_real_models import tiny_stable_diffusion
from PIL import Image

from tokencompose.core import keyed_randn, read_json
from tokencompose.data.dataset import GroundingDataset, write_dataset
from tokencompose.data.world import draw_scene, render
from tokencompose.inversion import Inversion, invert_pictures, read_inversion
from tokencompose.metrics.daam import daam, daam_examples, daam_maps, daam_result
from tokencompose.models import load_pipeline, new_sampler
from tokencompose.sampling import latent_shape

QUICK = dict(inference_steps=2, inner_steps=1)


@pytest.fixture(scope='module', params=['sd14', 'sd21'])
def stable_diffusion(request, clip_tokenizer_slow, tmp_path_factory):
    "Saved in the layout of Stable Diffusion 1.4 or 2.1, tiny, and loaded like it."
    folder = tmp_path_factory.mktemp('model')/request.param
    tiny_stable_diffusion(clip_tokenizer_slow, request.param).save_pretrained(folder)
    return request.param, load_pipeline(str(folder), device='cpu')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp('pictures'), []
    for i in range(2):
        scene = draw_scene((0, 'daam test', i))
        picture, masks = render(scene)
        Image.fromarray(picture).save(folder/f'scene {i}.png')
        nouns = dict(zip([thing.name for thing in scene.things], torch.from_numpy(masks).bool()))
        rows.append(dict(file_name=f'scene {i}.png', text='a photo of ' + ' and '.join(f'a {noun}' for noun in nouns), nouns=list(nouns.items())))
    write_dataset(folder, rows)
    return folder


def test_on_a_folder_like_stable_diffusion(stable_diffusion, pictures, tmp_path):
    "Half of the published resolution, for speed: maps have the size of the model's latents, and the schedule is that of the folder."
    kind, pipe = stable_diffusion
    side = dict(sd14=256, sd21=384)[kind]
    dataset = GroundingDataset(pictures, None, pipe.tokenizer, side, occurrence='all')
    result = daam(pipe, dataset, tmp_path/'inversions', batch=2, **QUICK)
    measured = daam_result(result)
    assert measured['n']['images'] == 2 and all(0 <= value <= 1 for value in measured['values'].values())
    found = read_inversion(tmp_path/'inversions', 'scene 0')
    assert {name: tuple(values.shape) for name, values in found.items()} == dict(
        picture=latent_shape(pipe, side), noise=latent_shape(pipe, side), embeddings=(2, 77, dict(sd14=32, sd21=64)[kind]), distances=(2,), updates=(2,))
    maps = daam_examples(pipe, dataset, tmp_path/'inversions', [0], **QUICK)[0]['maps']
    assert {tuple(m.shape) for m in maps.values()} == {latent_shape(pipe, side)[1:]}
    assert read_json(tmp_path/'inversions'/'settings.json')['recipe']['inner_steps'] == 1


def test_half_precision_is_refused(stable_diffusion, tmp_path):
    _, pipe = stable_diffusion
    item = dict(id='0', caption='a cat', pixel_values=torch.zeros(3, 64, 64))
    pipe.unet.to(torch.bfloat16)
    with pytest.raises(ValueError, match='too coarse for null-text inversion'): invert_pictures(pipe, [item], tmp_path, **QUICK)
    pipe.unet.to(torch.float32)
    assert not list(tmp_path.glob('*.safetensors'))


def test_agrees_with_the_daam_package(clip_tokenizer_slow):
    "Plain guided sampling: the empty prompt is the same at every step."
    package = pytest.importorskip('daam')
    pipe, prompt, steps = tiny_stable_diffusion(clip_tokenizer_slow, 'sd14'), 'a photo of a hot dog and a cat', 2
    for name, parameter in pipe.unet.named_parameters():
        if 'attn2.to_' in name: parameter.data *= 4
    pipe.scheduler, noise = new_sampler(pipe.scheduler.config), keyed_randn([(0, 'daam')], (4, 64, 64))
    with torch.no_grad(), package.trace(pipe) as trace:
        pipe(prompt, latents=noise, num_inference_steps=steps, guidance_scale=7.5, output_type='latent')
        theirs = trace.compute_global_heat_map().heat_maps
        word = trace.compute_global_heat_map().compute_word_heat_map('hot dog').heatmap
    empty = pipe.encode_prompt([''], 'cpu', 1, False)[0].detach()
    item = dict(caption=prompt, token_ids=[*([i] for i in range(len(theirs))), [5, 6]])
    ours, _ = daam_maps(pipe, [item], dict(noise=noise, embeddings=empty[:, None].expand(1, steps, -1, -1)), Inversion(inference_steps=steps))
    torch.testing.assert_close(ours[0, :-1]*steps, theirs.float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours[0, -1]*steps, word.float(), atol=1e-4, rtol=1e-3)
    assert theirs.std() > 1e-3
