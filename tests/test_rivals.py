"The rival methods of Table 1: against diffusers, on folders laid out like Stable Diffusion, in company and alone, and through nbs/sample.ipynb."
import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionAttendAndExcitePipeline
from make_real_files import write_flickr_like
from make_real_models import tiny_stable_diffusion
from test_bad_input import run

from tokencompose.attention import CrossAttentionCapture
from tokencompose.rivals import layout
from tokencompose.rivals.inputs import all_inputs, make_inputs
from tokencompose.rivals.rivals import new_rival, RIVALS
from tokencompose.core import keyed_randn, read_json
from tokencompose.metrics.fid import flickr_captions
from tokencompose.metrics.multigen import prompt_row
from tokencompose.metrics.visor import relation_holds, RELATIONS, visor_row
from tokencompose.models import new_sampler, tiny_pipeline
from tokencompose.sampling import initial_noise, latent_shape, sample

ROWS = [prompt_row(0, ['cat', 'teddy bear']), prompt_row(1, ['dog']), prompt_row(2, ['dog', 'cat', 'teddy bear'])]
TEXTS = [row['text'] for row in ROWS]
SHORT = dict(layout=dict(max_iter=2), attend_excite=dict(max_refinement_steps=2))  # options that keep a test short


def loud(kind='epsilon'):
    "A random pipeline in which the text matters, its U-Net in double precision: a difference is a mistake, not rounding."
    pipe = tiny_pipeline(prediction_type=kind)
    for name, parameter in pipe.unet.named_parameters():
        if 'attn2.to_' in name: parameter.data *= 4
    pipe.unet.double()
    pipe.scheduler = new_sampler(pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize('text, objects, noise, passes', [('a cat and a dog.', ['cat', 'dog'], 2, 7), ('a dog.', ['dog'], 1, 3)])
def test_attend_and_excite_agrees_with_diffusers(text, objects, noise, passes, monkeypatch):
    "With refinement at a step, and without; more than a few refinements would blow rounding up."
    pipe = loud()
    inputs = make_inputs(text, objects, pipe.tokenizer)
    settings, latents = dict(thresholds={0: .25, 2: .25}, max_iter_to_alter=3), keyed_randn([(0, noise)], (4, 16, 16)).double()
    ours = new_rival('attend_excite', pipe, {text: inputs}, of_steps=0, attn_res=8, **settings)
    found = ours(text, latents, 4, 5., 'latent').images

    theirs = StableDiffusionAttendAndExcitePipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, new_sampler(pipe.scheduler.config), None, None, requires_safety_checker=False)
    encode = theirs.encode_prompt
    monkeypatch.setattr(theirs, 'encode_prompt', lambda *args, **kwargs: tuple(states.double() for states in encode(*args, **kwargs)))
    expected = theirs(text, [ids[-1] for ids in inputs.token_ids], latents=latents, num_inference_steps=4, guidance_scale=5., output_type='latent', attn_res=(8, 8), **settings).images
    assert len(ours.history) == passes
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # the blur of diffusers is rounded to single precision
    other = new_rival('attend_excite', pipe, {text: inputs}, of_steps=0, attn_res=8, **settings | dict(max_iter_to_alter=2))(text, latents, 4, 5., 'latent').images
    assert (other - expected).abs().max() > .01


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
@pytest.mark.parametrize('name', RIVALS)
def test_a_prompt_does_not_depend_on_its_company(name, kind):
    pipe = loud(kind)
    call = new_rival(name, pipe, all_inputs(ROWS, pipe.tokenizer), **SHORT.get(name, {}))
    together = sample(pipe, ROWS, 1, batch=3, call=call, inference_steps=3)
    torch.testing.assert_close(together, sample(pipe, ROWS, 1, batch=1, call=call, inference_steps=3), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], sample(pipe, ROWS[1:], 1, batch=2, call=call, inference_steps=3), atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', RIVALS)
def test_every_sampler_precision_and_resolution(name):
    pipe = tiny_pipeline(prediction_type='v_prediction')
    call = new_rival(name, pipe, all_inputs(ROWS, pipe.tokenizer), **SHORT.get(name, {}))
    for recipe in (dict(scheduler='pndm'), dict(precision='bf16'), dict(resolution=48), dict(guidance_scale=1.)):
        drawn = sample(pipe, ROWS, 1, call=call, inference_steps=2, **recipe)
        assert drawn.isfinite().all() and drawn.std() > .001, recipe
    assert type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor).__name__ == 'AttnProcessor2_0'
    with CrossAttentionCapture(pipe.unet): pass  # nothing was left open


@pytest.fixture(scope='module', params=['sd14', 'sd21'])
def stable_diffusion(request, clip_files):
    "Laid out like Stable Diffusion 1.4 or 2.1, tiny, with CLIP's own tokenizer."
    from transformers import CLIPTokenizer
    tokenizer = CLIPTokenizer(*clip_files, model_max_length=77, pad_token=dict(sd14='<|endoftext|>', sd21='!')[request.param])
    pipe = tiny_stable_diffusion(tokenizer, request.param)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet): part.eval().requires_grad_(False)
    return request.param, pipe


@pytest.mark.parametrize('name', RIVALS)
def test_on_a_folder_like_stable_diffusion(name, stable_diffusion):
    "On half of the published resolution, for speed."
    kind, pipe = stable_diffusion
    row = prompt_row(0, ['hot dog', 'cat'])
    inputs = all_inputs([row], pipe.tokenizer)[row['text']]
    ids = pipe.tokenizer(row['text']).input_ids
    assert [pipe.tokenizer.decode([ids[t] for t in tokens]).strip() for tokens in inputs.token_ids] == ['hot dog', 'cat']
    options = dict(layout=dict(max_iter=1, loss_scale=3e4), attend_excite=dict(max_refinement_steps=1)).get(name, {})  # a random model attends to everything alike
    call = new_rival(name, pipe, {row['text']: inputs}, **options)
    if name == 'attend_excite': assert call.groups() == dict(sd14=['down_16', 'up_16'], sd21=['down_24', 'up_24'])[kind]
    pipe.scheduler, noise = new_sampler(pipe.scheduler.config, dict(sd14='pndm', sd21='ddim')[kind]), initial_noise([(0, 0)], latent_shape(pipe, dict(sd14=256, sd21=384)[kind]))
    drawn = call(row['text'], noise, 1, 7.5, 'latent').images
    plain = call.denoise(noise, call.text_states([row['text']]), 1, 7.5)
    assert drawn.shape[2:] == dict(sd14=(32, 32), sd21=(48, 48))[kind]
    assert drawn.isfinite().all() and (drawn - plain).abs().max() > 1e-4


def test_layout_reads_the_layers_of_stable_diffusion(stable_diffusion, monkeypatch):
    kind, pipe = stable_diffusion
    seen, losses = [], layout.layout_losses
    monkeypatch.setattr(layout, 'layout_losses', lambda maps, masks, weights: (seen.append([m.shape[2] for m in maps]), losses(maps, masks, weights))[1])
    row = prompt_row(0, ['dog'])
    pipe.scheduler = new_sampler(pipe.scheduler.config)
    new_rival('layout', pipe, all_inputs([row], pipe.tokenizer), max_iter=1)(row['text'], initial_noise([(0, 0)], latent_shape(pipe, dict(sd14=256, sd21=384)[kind])), 1, 1., 'latent')
    assert seen == [[side**2 for side in dict(sd14=(4, 8, 8, 8), sd21=(6, 12, 12, 12))[kind]]]


# ---- what the benchmarks say themselves

def test_visor_boxes_stand_as_its_judge_counts():
    pipe = tiny_pipeline()
    rows = [visor_row(i, 'cat', relation, 'dog') for i, relation in enumerate(RELATIONS)]
    for row, inputs in zip(rows, all_inputs(rows, pipe.tokenizer).values()):
        first, second = (np.array([[(x0 + x1)/2, (y0 + y1)/2] for x0, y0, x1, y1 in boxes]) for boxes in inputs.boxes)
        assert relation_holds(first, row['rel_type'], second) and not relation_holds(second, row['rel_type'], first)


def test_flickr_phrases_are_the_objects(tmp_path):
    "From the published files; a box in cells of the picture covers the drawn thing's own box."
    pipe, rows = tiny_pipeline(), flickr_captions(write_flickr_like(tmp_path, n=3))
    for row, inputs in zip(rows, all_inputs(rows, pipe.tokenizer).values()):
        blind, ids = row['unique_id'] == 1007129818, pipe.tokenizer(row['text']).input_ids
        assert len(inputs.objects) == (1 if blind else 2) and inputs.concepts == inputs.objects
        assert [pipe.tokenizer.decode([ids[i] for i in places]).strip().lower() for places in inputs.token_ids] == [name.lower() for name in inputs.objects]
        assert [row['text'][a:b] for a, b in inputs.spans][2] == 'a grey wall'
        if blind: assert inputs.boxes == ([(0, 0, 1, 1)],)
        else:  # the ellipse is on the left and the rectangle on the right, see make_real_files.points
            assert [[round(side, 1) for side in boxes[0]] for boxes in inputs.boxes] == [[.1, .3, .5, .8], [.5, .2, .9, .7]]


# ---- through nbs/sample.ipynb

SMALL = dict(prompts=2, rounds=1, inference_steps=2, objects=2, guidance_scale=5.)


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')/'pipeline'
    tiny_pipeline(['a photo of a cat, a dog, a car and a teddy bear']*3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize('rival', RIVALS)
def test_sample_notebook(rival, pipeline, tmp_path):
    run('nbs/sample.ipynb', tmp_path, model=str(pipeline), rival=rival, **SMALL)
    out = tmp_path/'out'
    assert read_json(out/'settings.json')['method']['method'] == rival
    rows, inputs = read_json(out/'prompts.json'), read_json(out/'inputs.json')
    assert [i['text'] for i in inputs] == [row['text'] for row in rows]
    assert all(len(i['boxes']) == len(i['token_ids']) == len(i['concepts']) == 2 for i in inputs)
    assert sorted(path.name for path in out.glob('*.png')) == ['0_0.png', '1_0.png']
    assert read_json(out/'provenance.json')['params']['rival'] == rival


def test_inputs_of_ones_own(pipeline, tmp_path):
    def draw(out, **params): run('nbs/sample.ipynb', tmp_path, model=str(pipeline), rival='composable', out_dir=str(tmp_path/out), **SMALL | params)
    draw('ruled')
    rows, own = read_json(tmp_path/'ruled'/'inputs.json'), tmp_path/'own.json'
    own.write_text(json.dumps([dict(unique_id=0, concepts=['a cat'], weights=[3])]))
    draw('own', inputs=str(own))
    used = read_json(tmp_path/'own'/'inputs.json')
    assert used[0]['concepts'] == ['a cat'] and used[0]['weights'] == [3] and used[1] == rows[1]
    pictures = [[(tmp_path/out/f'{i}_0.png').read_bytes() for i in (0, 1)] for out in ('ruled', 'own')]
    assert pictures[0][0] != pictures[1][0] and pictures[0][1] == pictures[1][1]
    with pytest.raises(ValueError, match='has other inputs for the prompt'): draw('own')
    with pytest.raises(ValueError, match='other method'): draw('ruled', rival_options=dict(normalise=True))
    with pytest.raises(ValueError, match='drawn without inputs'):
        run('nbs/sample.ipynb', tmp_path, model=str(pipeline), out_dir=str(tmp_path/'plain'), **SMALL)
        draw('plain')


def test_bad_parameters_of_a_rival(pipeline, tmp_path):
    own = tmp_path/'own.json'
    own.write_text(json.dumps([dict(unique_id=0, boxes=[[[0, 0, 2, 1]], [[0, 0, 1, 1]]])]))
    for params, message in [(dict(rival='compose'), "'compose' is not one of"), (dict(rival='layout', rival_options=dict(iterations=3)), "no option 'iterations'"),
                            (dict(rival='layout', inputs=str(own)), 'own.json: Inputs of the prompt'), (dict(rival='layout', inputs='nowhere.json'), 'no file'), (dict(inputs=str(own)), 'without a rival')]:
        with pytest.raises((ValueError, FileNotFoundError), match=message): run('nbs/sample.ipynb', tmp_path, model=str(pipeline), **SMALL, **params)


def test_the_noise_is_that_of_plain_sampling(monkeypatch):
    pipe, seen = tiny_pipeline(), []
    for name in RIVALS:
        call = new_rival(name, pipe, all_inputs(ROWS, pipe.tokenizer))
        call.draw = lambda inputs, noise, steps, scale: seen.append(noise) or noise
        sample(pipe, ROWS, 2, batch=6, call=call, seed=7, inference_steps=1)
    items = [(i, r) for r in range(2) for i in range(3)]
    for noise in seen: assert torch.equal(noise, initial_noise(items, (4, 16, 16), 7))
    assert len(seen) == 4
