"Sampling against diffusers' own pipeline, on model folders of several kinds, and through interruptions."
import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from PIL import Image
from tokencompose import sampling
from tokencompose.metrics.multigen import draw_prompts
from tokencompose.models import load_pipeline, new_sampler, tiny_pipeline
from tokencompose.core import image_name
from tokencompose.sampling import folder_state, initial_noise, latent_shape, pipeline_hash, sample, sample_images
from tokencompose.sampling import work_list

RECIPE = dict(seed=1, inference_steps=3, guidance_scale=5.)
PROMPTS = draw_prompts(['cat', 'dog', 'pizza', 'hot dog'], 3, seed=0, objects=2)


def tiny(prediction_type='epsilon', sample_size=16, scheduler=None):
    pipe = tiny_pipeline(prediction_type=prediction_type)
    pipe.unet.register_to_config(sample_size=sample_size)
    pipe.scheduler = scheduler or pipe.scheduler
    for name, parameter in pipe.unet.named_parameters():
        if 'attn2.to_' in name: parameter.data *= 4  # captions matter
    return pipe


@pytest.fixture(scope='module')
def pipe(): return tiny()


def stock(pipe, row, round, name='ddim'):
    "One picture from the pipeline's own call."
    pipe.scheduler = new_sampler(pipe.scheduler.config, name)
    noise = initial_noise([(row['unique_id'], round)], latent_shape(pipe), 1)
    h, w = (side*pipe.vae_scale_factor for side in noise.shape[-2:])
    return pipe(row['text'], height=h, width=w, latents=noise, num_inference_steps=3, guidance_scale=5., output_type='pt').images[0]


def pictures(folder): return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob('*.png'))}


@pytest.mark.parametrize('kind', ['v_prediction', 'pndm as saved by Stable Diffusion', 'landscape'])
def test_equals_the_stock_pipeline(kind):
    schedule = dict(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear')
    model = {'v_prediction': lambda: tiny('v_prediction'), 'landscape': lambda: tiny(sample_size=(8, 16))}.get(
        kind, lambda: tiny(scheduler=PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1)))()
    name = 'pndm' if 'pndm' in kind else 'ddim'
    ours = sample(model, PROMPTS, 2, batch=4, scheduler=name, **RECIPE)
    expected = torch.stack([torch.stack([stock(model, row, r, name) for r in range(2)]) for row in PROMPTS])
    assert ours.shape == expected.shape == (3, 2, 3, 32 if kind == 'landscape' else 64, 64)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_saved_and_reloaded_model_is_the_same_model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path/'model')
    again = load_pipeline(str(tmp_path/'model'), device='cpu')
    assert pipeline_hash(again) == pipeline_hash(pipe)
    sample_images(pipe, PROMPTS, 1, tmp_path/'images', **RECIPE)
    assert sample_images(again, PROMPTS, 1, tmp_path/'images', **RECIPE)['skipped'] == 3


def test_a_stopped_run_goes_on(pipe, tmp_path, monkeypatch):
    whole, part, written = tmp_path/'whole', tmp_path/'part', []
    sample_images(pipe, PROMPTS, 3, whole, batch=9, **RECIPE)
    save = sampling.save_picture
    def failing(path, picture):
        if len(written) == 4: raise OSError('No space left on device')
        written.append(path)
        save(path, picture)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, 'save_picture', failing)
        with pytest.raises(OSError, match='No space'): sample_images(pipe, PROMPTS, 3, part, batch=2, **RECIPE)
    (part/'.2_2.123.tmp.png').write_bytes(b'half')  # what a killed process leaves
    state = folder_state(part, work_list(PROMPTS, 3))
    assert len(state['done']) == 4 and not state['broken'] and not state['surplus']
    assert sample_images(pipe, PROMPTS, 3, part, batch=4, **RECIPE) == dict(drawn=5, skipped=4, missing=0, surplus=0)
    reference = pictures(whole)
    for item in work_list(PROMPTS, 3): assert abs(reference[image_name(*item)] - np.asarray(Image.open(part/image_name(*item)))).max() <= 1
    assert len({values.tobytes() for values in reference.values()}) == 9


def test_more_prompts_and_rounds_may_follow(pipe, tmp_path):
    sample_images(pipe, PROMPTS[:2], 1, tmp_path, **RECIPE)
    assert sample_images(pipe, PROMPTS, 2, tmp_path, **RECIPE) == dict(drawn=4, skipped=2, missing=0, surplus=0)
    assert sample_images(pipe, PROMPTS[:2], 1, tmp_path, **RECIPE) == dict(drawn=0, skipped=2, missing=0, surplus=4)
    renamed = [{**PROMPTS[2], 'unique_id': 0}]
    with pytest.raises(ValueError, match='another text of prompt 0'): sample_images(pipe, renamed, 1, tmp_path, **RECIPE)


def test_the_launcher_shares_the_work(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    for rank, missing in ((0, 3), (1, 0)):
        monkeypatch.setenv('RANK', str(rank))
        assert sample_images(pipe, PROMPTS, 2, tmp_path, **RECIPE) == dict(drawn=3, skipped=0, missing=missing, surplus=0)


def test_damaged_weights_are_reported():
    pipe = tiny()
    pipe.unet.conv_in.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match='not finite'): sample(pipe, PROMPTS, **RECIPE)
