"Sampling against diffusers' own pipeline, on model folders of several kinds, and through interruptions."
import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from PIL import Image
from tokencompose import sampling
from tokencompose.metrics.multigen import draw_prompts
from tokencompose.models import load_pipeline, loud_pipeline, new_sampler
from tokencompose.core import image_name
from tokencompose.sampling import folder_state, initial_noise, latent_shape, pipeline_hash, prompt_texts, Recipe, sample
from tokencompose.sampling import sample_images, save_picture, work_list

RECIPE = dict(seed=1, inference_steps=3, guidance_scale=5.)
PROMPTS = draw_prompts(['cat', 'dog', 'pizza', 'hot dog'], 3, seed=0, objects=2)


def tiny(prediction_type='epsilon', sample_size=16, scheduler=None):
    pipe = loud_pipeline(prediction_type=prediction_type)  # captions matter
    pipe.unet.register_to_config(sample_size=sample_size)
    pipe.scheduler = scheduler or pipe.scheduler
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
        assert sample_images(pipe, PROMPTS, 2, tmp_path, batch=1, **RECIPE) == dict(drawn=3, skipped=0, missing=missing, surplus=0)


def test_damaged_weights_are_reported():
    pipe = tiny()
    pipe.unet.conv_in.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match='not finite'): sample(pipe, PROMPTS, **RECIPE)


# ---- what the notebook does not show

def levels(pictures): return (pictures*255).round()


def test_recipes_are_checked():
    with pytest.raises(ValueError, match='bf16'): Recipe(precision='int8')
    with pytest.raises(ValueError, match='inference_steps: expected 1 or more'): Recipe(inference_steps=0)


def test_prompt_ids_become_file_names():
    with pytest.raises(ValueError, match='file name'): prompt_texts([dict(unique_id='../x', text='')])
    with pytest.raises(ValueError, match="the id '7'"): prompt_texts([dict(unique_id=7, text='a'), dict(unique_id='7', text='b')])
    with pytest.raises(ValueError, match='rounds: expected 1 or more'): work_list(['a cat'], 0)


def test_wrong_arguments_are_named(pipe):
    for match, prompts, wrong in [('multiple of 4', PROMPTS, dict(resolution=50)), ('did you mean', PROMPTS, dict(guidance=2.)),
                                  ('prompts: expected some to draw', [], {}), ('batch: expected at least 1', PROMPTS, dict(batch=0))]:
        with pytest.raises(ValueError, match=match): sample(pipe, prompts, **wrong)


def test_resolution_sets_the_size(pipe):
    assert sample(pipe, ['a cat'], resolution=48, seed=3, inference_steps=1).shape == (1, 1, 3, 48, 48)


def test_autocast_changes_rounding_only_a_little(pipe):
    half, full = (levels(sample(pipe, PROMPTS, precision=name, **RECIPE)) for name in ('bf16', 'no'))
    assert 0 < (half - full).abs().max() < 64


def test_a_call_leaves_the_scheduler_as_it_was(pipe):
    before = pipe.scheduler
    sample(pipe, PROMPTS[:1], call=lambda **kwargs: pipe(**kwargs), scheduler='pndm', **RECIPE)
    assert pipe.scheduler is before


def test_other_weights_draw_other_pictures_from_the_same_noise(pipe):
    other = loud_pipeline(seed=1)
    assert (sample(other, PROMPTS[:1], **RECIPE) - sample(pipe, PROMPTS[:1], **RECIPE)).abs().max() > .1


def test_a_picture_that_was_cut_off_or_has_another_bit_is_broken(tmp_path):
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    for name in ('0_0', '1_0', '9_0'): save_picture(tmp_path/f'{name}.png', picture)
    assert (np.asarray(Image.open(tmp_path/'0_0.png')) == levels(picture).byte().permute(1, 2, 0).numpy()).all()
    content = (tmp_path/'1_0.png').read_bytes()
    for damaged in (content[:-1], content[:40], b'', content[:60] + bytes([content[60] ^ 1]) + content[61:]):
        (tmp_path/'1_0.png').write_bytes(damaged)
        state = folder_state(tmp_path, [(0, 0), (1, 0), (2, 0)])
        assert state == dict(done=[(0, 0)], missing=[(2, 0)], broken=[(1, 0)], surplus=['9_0.png'])


def test_what_is_whole_is_not_touched(pipe, tmp_path):
    sample_images(pipe, PROMPTS, 2, tmp_path, batch=6, **RECIPE)
    first = pictures(tmp_path)
    (tmp_path/'1_1.png').unlink()
    kept = (tmp_path/'0_1.png').stat().st_mtime_ns
    assert sample_images(pipe, PROMPTS, 2, tmp_path, batch=1, **RECIPE) == dict(drawn=1, skipped=5, missing=0, surplus=0)
    assert (tmp_path/'0_1.png').stat().st_mtime_ns == kept
    again = pictures(tmp_path)
    assert again.keys() == first.keys() and all(abs(again[name] - first[name]).max() <= 1 for name in first)


def test_two_processes_draw_what_one_draws(pipe, tmp_path):
    sample_images(pipe, PROMPTS, 2, tmp_path/'one', batch=2, **RECIPE)
    for rank, drawn, missing in ((0, 4, 2), (1, 2, 0)):
        state = sample_images(pipe, PROMPTS, 2, tmp_path/'two', batch=2, share=(rank, 2), **RECIPE)
        assert state == dict(drawn=drawn, skipped=0, missing=missing, surplus=0)
    one, two = pictures(tmp_path/'one'), pictures(tmp_path/'two')
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)
    with pytest.raises(ValueError, match='share: expected a rank from 0 to 1, got 2'):
        sample_images(pipe, PROMPTS, 2, tmp_path/'two', share=(2, 2), **RECIPE)


def test_a_folder_made_in_another_way_is_refused(pipe, tmp_path):
    sample_images(pipe, PROMPTS, 1, tmp_path, **RECIPE)
    with pytest.raises(ValueError, match='seed 1 there, 4 now; guidance_scale 5.0 there, 2.0 now'):
        sample_images(pipe, PROMPTS, 1, tmp_path, **RECIPE | dict(seed=4, guidance_scale=2.))
    with pytest.raises(ValueError, match='other model weights'): sample_images(loud_pipeline(seed=1), PROMPTS, 1, tmp_path, **RECIPE)
    with pytest.raises(ValueError, match='other method'): sample_images(pipe, PROMPTS, 1, tmp_path, call=len, **RECIPE)
    (tmp_path/'settings.json').unlink()
    with pytest.raises(ValueError, match='no settings.json'): sample_images(pipe, PROMPTS, 1, tmp_path, **RECIPE)
