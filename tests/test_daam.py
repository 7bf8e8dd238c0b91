"Table 4 on pipelines laid out like Stable Diffusion, and against the package daam where it is installed."
import pytest
import torch
from make_real_models import tiny_stable_diffusion
from PIL import Image

from tokencompose.core import keyed_randn, read_json
from tokencompose.data.dataset import GroundingDataset, write_dataset
from tokencompose.data.world import ANY, draw_scene, render
from tokencompose.inversion import distances, Inversion, invert_pictures, read_inversion
from tokencompose.metrics.daam import daam, daam_examples, daam_maps, daam_result, daam_rows, daam_scores, DaamResult
from tokencompose.metrics.daam import distance_table
from tokencompose.metrics.overlap import grounding_scores
from tokencompose.models import load_pipeline, loud_pipeline, new_sampler, tiny_pipeline
from tokencompose.sampling import denoise, latent_shape, TextStates

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
    maps = daam_examples(pipe, dataset, tmp_path/'inversions', [0], **QUICK)[0].maps
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


# ---- on a random model

@pytest.fixture(scope='module')
def four(tmp_path_factory):
    "Four pictures: one has a noun that is not in its caption, the caption of another names nothing."
    folder, rows = tmp_path_factory.mktemp('four')/'scenes', []
    folder.mkdir()
    for i in range(4):
        scene = draw_scene((0, 'daam', i), ANY)
        picture, masks = render(scene)
        Image.fromarray(picture).save(folder/f'{i}.png')
        nouns = dict(zip([thing.name for thing in scene.things], torch.from_numpy(masks).bool()))
        rows.append(dict(file_name=f'{i}.png', text='a photo of ' + ', '.join(f'a {noun}' for noun in nouns), nouns=list(nouns.items())))
    rows[0]['nouns'].append(('zebra crossing', None)); rows[1]['text'] = 'a picture'
    write_dataset(folder, rows)
    return folder, tiny_pipeline([row['text'] for row in rows])


def scenes(four, **kwargs): return GroundingDataset(four[0], None, four[1].tokenizer, 64, occurrence='all', **kwargs)


@pytest.fixture(scope='module')
def measured(four, tmp_path_factory):
    folder = tmp_path_factory.mktemp('inversions')
    return folder, daam(four[1], scenes(four), folder, batch=2, **QUICK)


def test_what_is_measured(four, measured):
    _, result = measured
    assert set(result.images) == set(result.distances) == {'0', '2', '3'} and result.inverted == 3
    assert result.left_out == [('0', 'zebra crossing', 'not in the caption')]
    found = daam_result(result)
    assert found['judge'] == 'DAAM (down and up) over null-text inversion (2 steps, guidance 7.5, at most 1 updates a step) of 3 pictures in scenes'
    assert [found['notes'][k] for k in ('inner_steps', 'threshold', 'left_out', 'inverted')] == [1, .4, 1, 3]
    assert found['values']['ap'] == pytest.approx(result.scores['ap'].mean().item(), abs=1e-6)


def test_rows_name_something_that_has_a_mask(four):
    dataset = scenes(four)
    dataset.rows[2].masks = [None]*len(dataset.rows[2].masks)
    assert daam_rows(dataset, 2) == [0, 3]


def test_the_first_so_many_pictures(four, measured):
    folder, result = measured
    few = daam(four[1], scenes(four), folder, daam_rows(scenes(four), 2), **QUICK)
    assert (set(few.images), few.nouns, few.inverted) == ({'0', '2'}, result.nouns[:len(few.nouns)], 0)


def test_examples_are_what_was_scored(four, measured):
    folder, result = measured
    examples = daam_examples(four[1], scenes(four), folder, [0, 2, 3], **QUICK)
    pairs = [(e.maps[noun], e.masks[noun]) for e in examples for noun in e.maps]
    for name, values in daam_scores(*map(torch.stack, zip(*pairs))).items():
        torch.testing.assert_close(result.scores[name], values, atol=1e-4, rtol=0, equal_nan=True)
    for e in examples: assert e.distance == pytest.approx(result.distances[e.id], abs=1e-4)
    with pytest.raises(IndexError, match='has no row 9: choose from 0 to 3'): daam_examples(four[1], scenes(four), folder, [0, 9], **QUICK)


def test_the_plain_distance_is_without_any_fitting(four, measured):
    folder, result = measured
    pipe, dataset = four[1], scenes(four)
    for i in (0, 2):
        found, states = read_inversion(folder, str(i)), TextStates(pipe)([dataset.rows[i].text, ''])
        unfitted = denoise(pipe.unet, new_sampler(pipe.scheduler.config), found['noise'][None], states[:1], states[1:], 2, 7.5)
        assert result.plain[str(i)] == pytest.approx(distances(unfitted, found['picture'][None]).item(), abs=1e-4)


def test_table_of_distances(measured):
    values = sorted(measured[1].distances.values())
    assert distance_table(measured[1]).loc['fitted'].tolist() == pytest.approx([values[1], values[2], sum(v < .02 for v in values)])


def test_pictures_that_were_not_redrawn_are_counted(measured):
    changed = DaamResult(**vars(measured[1]) | dict(distances={'a': .01, 'b': .2, 'c': .03}, plain={'a': .3, 'b': .1, 'c': .03}))
    assert daam_result(changed, 100)['notes']['not_below_plain'] == 2
    assert distance_table(changed).redrawn.tolist() == [1, 0]


def test_what_is_refused(four, measured, tmp_path):
    folder, (_, pipe) = measured[0], four
    with pytest.raises(FileNotFoundError, match=r'are up to the other processes \(3 in all\)'): daam(pipe, scenes(four), tmp_path/'shared', batch=1, share=(1, 3), **QUICK)
    with pytest.raises(ValueError, match='sideways'): daam(pipe, scenes(four), tmp_path/'none', layers=('sideways',), **QUICK)
    assert not (tmp_path/'none').exists()
    with pytest.raises(ValueError, match='other model weights'): daam(tiny_pipeline(seed=1), scenes(four), folder, **QUICK)
    with pytest.raises(ValueError, match='flip: .* set 0 instead of 0.5'): daam(pipe, scenes(four, flip=.5), tmp_path/'x', **QUICK)


def test_chosen_layers():
    pipe, items = loud_pipeline(double=True), [dict(caption='a cat and a dog', token_ids=[[2], [5]])]
    inversion = dict(noise=keyed_randn([('noise', 0)], (4, 16, 16)), embeddings=keyed_randn([('null', 0)], (3, pipe.tokenizer.model_max_length, 32)))
    maps, some = (daam_maps(pipe, items, inversion, Inversion(inference_steps=3), *layers)[0] for layers in ((), (('up_8',),)))
    assert maps.shape == some.shape == (1, 2, 16, 16) and (maps - some).abs().max() > 1e-3
    assert (maps[0, 0] - maps[0, 1]).abs().max() > 1e-3


def test_scores_have_the_names_of_all_maps():
    maps, masks = torch.rand(2, 8, 8), torch.ones(2, 40, 40)
    masks[:, :20] = 0
    assert list(daam_scores(maps, masks)) == list(grounding_scores(maps, masks))
    assert daam_scores(torch.full((1, 8, 8), .3), masks[:1])['iou_0.3'] == 0  # constant: says nothing
