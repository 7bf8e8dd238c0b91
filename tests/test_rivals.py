"The rival methods of Table 1: against diffusers, on folders laid out like Stable Diffusion, in company and alone, and through nbs/sample.ipynb."
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionAttendAndExcitePipeline
from make_real_files import write_flickr_like
from make_real_models import tiny_stable_diffusion
from test_bad_input import run

from tokencompose.attention import CrossAttentionCapture
from tokencompose.rivals import layout
from tokencompose.rivals.attend_excite import AttendExcite, token_strengths
from tokencompose.rivals.call import check_variance_preserving, latent_gradient, Rival, scaled_step
from tokencompose.rivals.composable import Composable
from tokencompose.rivals.inputs import all_inputs, Inputs, make_inputs
from tokencompose.rivals.layout import Layout
from tokencompose.rivals.rivals import new_rival, RIVALS
from tokencompose.rivals.structured import Structured, value_states
from tokencompose.core import keyed_randn, read_json
from tokencompose.metrics.fid import flickr_captions
from tokencompose.metrics.multigen import prompt_row
from tokencompose.metrics.visor import relation_holds, RELATIONS, visor_row
from tokencompose.models import loud_pipeline, new_sampler, tiny_pipeline
from tokencompose.sampling import initial_noise, latent_shape, sample, sample_images

ROWS = [prompt_row(0, ['cat', 'teddy bear']), prompt_row(1, ['dog']), prompt_row(2, ['dog', 'cat', 'teddy bear'])]
TEXTS = [row['text'] for row in ROWS]
SHORT = dict(layout=dict(max_iter=2), attend_excite=dict(max_refinement_steps=2))  # options that keep a test short


def loud(kind='epsilon'):
    "A random pipeline in which the text matters, in double precision, with the sampler of the drawing loop."
    pipe = loud_pipeline(double=True, prediction_type=kind)
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


# ---- the call

@dataclass
class Plain(Rival):
    brightness: float = 0.
    def draw(self, inputs, noise, steps, guidance_scale):
        return self.denoise(noise, self.text_states([i.text for i in inputs]), steps, guidance_scale) + self.brightness


PROMPTS = ['a photo of a cat', 'a dog and a teddy bear']


def plain_rival(*options):
    return Plain(tiny_pipeline(), {text: Inputs(text) for text in PROMPTS}, *options)


def test_kinds_of_pictures():
    plain, noise = plain_rival(), initial_noise([(0, 0), (1, 0)], (4, 16, 16))
    made = {kind: plain(PROMPTS, noise, 2, output_type=kind).images for kind in ('pt', 'np', 'latent', 'pil')}
    assert [tuple(made['pt'].shape), made['np'].shape, tuple(made['latent'].shape), made['pil'][0].size] == [(2, 3, 64, 64), (2, 64, 64, 3), (2, 4, 16, 16), (64, 64)]
    np.testing.assert_allclose(made['np'], made['pt'].permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_noise_of_a_generator():
    drawn = plain_rival()(PROMPTS[0], num_inference_steps=1, output_type='latent', generator=torch.Generator().manual_seed(0)).images
    assert drawn.shape == (1, 4, 16, 16)


@pytest.mark.parametrize('change, message', [
    (dict(prompt=['a cow']), "no inputs for the prompt 'a cow'"), (dict(latents=torch.zeros(1, 4, 16, 16)), '1 latents for 2 prompts'),
    (dict(output_type='jpg'), "got 'jpg'")])
def test_bad_calls(change, message):
    call = dict(prompt=PROMPTS, latents=torch.zeros(2, 4, 16, 16), num_inference_steps=1)
    with pytest.raises(ValueError, match=message): plain_rival()(**call | change)


def test_options_have_types_and_are_the_identity():
    with pytest.raises(TypeError, match='brightness: expected float'): plain_rival('much')
    assert plain_rival(1).identity == dict(method='Plain', brightness=1.)


def test_pictures_of_other_options_are_never_mixed_in(tmp_path):
    plain, recipe = plain_rival(), dict(seed=3, inference_steps=3, guidance_scale=5.)
    sample_images(plain.pipe, PROMPTS, 1, tmp_path, call=plain, **recipe)
    assert sample_images(plain.pipe, PROMPTS, 1, tmp_path, call=plain, **recipe)['skipped'] == 2
    with pytest.raises(ValueError, match='other method'): sample_images(plain.pipe, PROMPTS, 1, tmp_path, call=Plain(plain.pipe, plain.inputs, .5), **recipe)


def test_a_gradient_leaves_the_unet_as_it_was():
    "Cut short, or whole under gradient checkpointing."
    pipe, noise = tiny_pipeline(), keyed_randn([(0, i) for i in range(2)], (4, 16, 16))
    capture, states = CrossAttentionCapture(pipe.unet, ('mid', 'up_8')), Plain(pipe, {}).text_states(PROMPTS)
    def peak(capture): return torch.stack([maps[0].mean(1)[:, :, 2].amax(1) for maps in capture.maps.values()]).sum(0)*100
    gradient, passed = latent_gradient(pipe.unet, capture, noise, 500, states, peak)[1], []
    hook = pipe.unet.conv_out.register_forward_hook(lambda *args: passed.append('conv_out'))
    latent_gradient(pipe.unet, capture, noise, 500, states, peak)
    assert not passed
    with torch.no_grad(): pipe.unet(noise, 500, encoder_hidden_states=states)
    hook.remove()
    assert passed == ['conv_out']
    pipe.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(latent_gradient(pipe.unet, capture, noise, 500, states, peak)[1], gradient, atol=1e-5, rtol=0)


def test_steps_of_a_run_of_the_same_length():
    assert scaled_step(10, 50, 50) == scaled_step(10, 25, 0) == 10


def test_latents_that_grow_with_the_noise_are_refused():
    scheduler = LMSDiscreteScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear')
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match='not of LMSDiscreteScheduler'): check_variance_preserving(scheduler, 'Layout')


# ---- each of them alone

TEXT = 'a photo of a cat and a teddy bear.'


@pytest.fixture(scope='module')
def loud_single():
    pipe = loud()
    pipe.unet.float()
    return pipe, make_inputs(TEXT, ['cat', 'teddy bear'], pipe.tokenizer), keyed_randn([(0, 0)], (4, 16, 16))


def drawn_by(method, loud_single, **options):
    pipe, inputs, noise = loud_single
    return method(pipe, {TEXT: inputs}, **options)(TEXT, noise, 4, 5., 'latent').images


@pytest.mark.parametrize('method, nothing', [(Layout, dict(max_iter=0)), (AttendExcite, dict(thresholds={}, max_iter_to_alter=0))])
def test_without_updates_it_is_plain_sampling(method, nothing, loud_single):
    pipe, _, noise = loud_single
    plain = pipe(TEXT, latents=noise, num_inference_steps=4, guidance_scale=5., output_type='latent').images
    torch.testing.assert_close(drawn_by(method, loud_single, **nothing), plain, atol=1e-3, rtol=0)
    assert (drawn_by(method, loud_single) - plain).abs().max() > .01


@pytest.mark.parametrize('options', [
    dict(token_rule='first'), dict(cut_eot=True), dict(attn_res=16), dict(scale_factor=1.), dict(scale_range=(1., 1.)), dict(max_refinement_steps=3)])
def test_every_option_of_attend_and_excite_matters(options, loud_single):
    assert (drawn_by(AttendExcite, loud_single, **options) - drawn_by(AttendExcite, loud_single)).abs().max() > 1e-4


@pytest.mark.parametrize('name, options, steps', [('layout', dict(loss_threshold=0.), [0, 1]), ('attend_excite', dict(thresholds={}), [0, 1, 2, 3, 4])])
def test_guided_steps_of_a_short_run(name, options, steps, loud_single):
    "A fifth of the steps, as 10 of 50; and half of them, as 25 of 50."
    pipe, inputs, noise = loud_single
    call = new_rival(name, pipe, {TEXT: inputs}, **options)
    call(TEXT, noise, 10, output_type='latent')
    assert sorted({h['step'] for h in call.history}) == steps


def test_layout_stops_for_good_below_its_threshold_as_published(loud_single):
    pipe, inputs, noise = loud_single
    steps = {}
    for reset in (False, True):
        call = new_rival('layout', pipe, {TEXT: inputs}, loss_threshold=1., of_steps=0, max_index_step=3, reset_loss=reset)
        call(TEXT, noise, 5, output_type='latent')
        steps[reset] = [h['step'] for h in call.history]
    assert steps == {False: [0], True: [0, 1, 2]}


def test_tokens_of_attend_and_excite(loud_single):
    pipe = loud_single[0]
    prompts = {TEXT: ['cat', 'teddy bear'], 'a dog.': ['dog'], 'a cat and a dog.': ['cat', 'dog']}
    inputs = {text: make_inputs(text, objects, pipe.tokenizer) for text, objects in prompts.items()}
    tokens, counted, ends = AttendExcite(pipe, inputs, token_rule='all', cut_eot=True).tokens(list(inputs.values()))
    assert counted.sum(1).tolist() == [sum(map(len, i.token_ids)) for i in inputs.values()]
    assert [pipe.tokenizer(text).input_ids[end] for text, end in zip(inputs, ends)] == [pipe.tokenizer.eos_token_id]*3
    assert AttendExcite(pipe, inputs).groups() == ['down_8', 'up_8']


def test_thresholds_are_read_from_a_settings_file(loud_single):
    pipe = loud_single[0]
    assert AttendExcite(pipe, {}).identity['thresholds'] == {'0': .05, '10': .5, '20': .8}
    assert AttendExcite(pipe, {}, thresholds={'0': .1}).thresholds == {0: .1}


@pytest.mark.parametrize('options, message', [(dict(token_rule='middle'), 'should be last, first, all'), (dict(attn_res=7), 'no maps with side 7')])
def test_bad_options_of_attend_and_excite(options, message, loud_single):
    with pytest.raises(ValueError, match=message): drawn_by(AttendExcite, loud_single, **options)


def test_inputs_that_a_method_cannot_use(loud_single):
    pipe, inputs, noise = loud_single
    def made(objects, **given): return {TEXT: make_inputs(TEXT, objects, pipe.tokenizer, **given)}
    for method, own, options, message in [
            (Composable, made([]), {}, 'has no sub-prompts'), (Layout, made([]), {}, 'has no boxes'),
            (Layout, made(['cat'], token_ids=[[]]), {}, 'no object of the prompt'), (AttendExcite, made([]), {}, 'no object of the prompt'),
            (Layout, {TEXT: inputs}, dict(whitespace_tokens=True), "'bear' is no word")]:
        with pytest.raises(ValueError, match=message): method(pipe, own, **options)(TEXT, noise, 1)


def test_hooks_of_the_values_go_also_after_an_error(loud_single):
    pipe, _, noise = loud_single
    states = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipe.unet(noise, 500, encoder_hidden_states=states).sample
        with pytest.raises(ZeroDivisionError), value_states(pipe.unet, 2*states): 1/0
        assert torch.equal(pipe.unet(noise, 500, encoder_hidden_states=states).sample, plain)


def test_structured_without_phrases_is_plain_sampling(loud_single):
    pipe, _, noise = loud_single
    def drawn(spans, scale, **options):
        inputs = {TEXT: make_inputs(TEXT, [], pipe.tokenizer, spans=spans)}
        return Structured(pipe, inputs, **options)(TEXT, noise, 3, scale, 'latent').images
    plain = pipe(TEXT, latents=noise, num_inference_steps=3, guidance_scale=5., output_type='latent').images
    torch.testing.assert_close(drawn([], 5., strip_full_stop=False), plain, atol=1e-4, rtol=0)
    for scale, eps in ((5., .01), (1., .001)):
        assert (drawn([(11, 16), (21, 33)], scale) - drawn([], scale, strip_full_stop=False)).abs().max() > eps


def test_identities():
    assert Composable(None, {}, normalise=True).identity == dict(method='composable', normalise=True)
    assert Structured(None, {}).identity == dict(method='structured', strip_full_stop=True)
    with pytest.raises(ValueError, match="'divide' is not one of composable"): new_rival('divide', None, {})
    with pytest.raises(TypeError, match='max_iter: expected int'): new_rival('layout', None, {}, max_iter='2')


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
    run('nbs/sample.ipynb', tmp_path, model=str(pipeline), method=rival, **SMALL)
    out = tmp_path/'out'
    assert read_json(out/'settings.json')['method']['method'] == rival
    rows, inputs = read_json(out/'prompts.json'), read_json(out/'inputs.json')
    assert [i['text'] for i in inputs] == [row['text'] for row in rows]
    assert all(len(i['boxes']) == len(i['token_ids']) == len(i['concepts']) == 2 for i in inputs)
    assert sorted(path.name for path in out.glob('*.png')) == ['0_0.png', '1_0.png']
    assert read_json(out/'provenance.json')['params']['method'] == rival


def test_inputs_of_ones_own(pipeline, tmp_path):
    def draw(out, **params): run('nbs/sample.ipynb', tmp_path, model=str(pipeline), method='composable', out_dir=str(tmp_path/out), **SMALL | params)
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
    with pytest.raises(ValueError, match="Unknown method 'composabel': did you mean 'composable'"):
        run('nbs/sample.ipynb', tmp_path, method='composabel', **SMALL)
    cases = [(dict(method='layout', rival_options=dict(iterations=3)), "no option 'iterations'"),
             (dict(method='layout', inputs=str(own)), 'own.json: Inputs of the prompt'),
             (dict(method='layout', inputs='nowhere.json'), 'no file'), (dict(inputs=str(own)), 'and frozen is none')]
    for params, message in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run('nbs/sample.ipynb', tmp_path, model=str(pipeline), **SMALL, **params)


def test_the_noise_is_that_of_plain_sampling(monkeypatch):
    pipe, seen = tiny_pipeline(), []
    for name in RIVALS:
        call = new_rival(name, pipe, all_inputs(ROWS, pipe.tokenizer))
        call.draw = lambda inputs, noise, steps, scale: seen.append(noise) or noise
        sample(pipe, ROWS, 2, batch=6, call=call, seed=7, inference_steps=1)
    items = [(i, r) for r in range(2) for i in range(3)]
    for noise in seen: assert torch.equal(noise, initial_noise(items, (4, 16, 16), 7))
    assert len(seen) == 4


def test_strengths_are_the_same_under_autocast():
    "Small strengths would tie in bfloat16, and the most neglected token would be another."
    maps, tokens, ends = [torch.rand(2, 4, 256, 12, generator=torch.Generator().manual_seed(0)).softmax(3)], torch.tensor([[2, 5], [3, 4]]), torch.tensor([11, 11])
    plain = token_strengths(maps, (16, 16), tokens, ends)
    with torch.autocast('cpu', torch.bfloat16): half = token_strengths(maps, (16, 16), tokens, ends)
    assert half.dtype == torch.float32 and torch.equal(half, plain)
