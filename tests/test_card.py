"""The model card: nothing typed, no path of a machine, and nothing uploaded unasked."""
import shlex

import pytest
from conftest import ROOT
from huggingface_hub import ModelCard
from processes import run_python

from tokencompose.core import read_json, write_json
from tokencompose.methods import METHODS
from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.profiles import get_profile
from tokencompose.reporting.card import card_of, push, score_commands, stage_upload, train_command, trained_model, write_card
from tokencompose.reporting.results import save_result, toy_result
from tokencompose.run_config import config_for


@pytest.fixture
def run(tmp_path):
    "A finished training with real weights, tiny."
    folder = tmp_path/'mini'/'train'/'token-seed1'
    tiny_pipeline().save_pretrained(folder/'pipeline')
    for path in [folder/'pipeline'/'model_index.json', folder/'pipeline'/'unet'/'config.json']: write_json(path, read_json(path) | dict(_name_or_path=str(tmp_path/'secret')))
    config = config_for(get_profile('mini'), 'token', 1).to_dict()
    result = dict(step=1000, steps=1000, seconds=887.63, samples_per_second=18.03, peak_memory_mb=1406.3)
    write_json(folder/'result.json', dict(config=config, result=result, provenance=dict(params=config, versions=dict(torch='2.6', diffusers='0.39'))))
    return folder


def test_a_card_says_what_was_set(run):
    text = ModelCard.load(write_card(run)).text
    config = config_for(get_profile('mini'), 'token', 1)
    for row in (f'| updates | {config.steps} |', f'| weight of the token loss, λ | {config.token_loss_scale:g} |', '| weight of the pixel loss, γ | 0 |', f'| supervised layers | {", ".join(config.layers)} |', '| took | 15 minutes, 18.03 images a second |'):
        assert row in text, row
    assert METHODS['token'].label in text and '(token loss beside the denoising loss)' in text and 'token and pixel' not in text


def test_a_card_names_the_options_that_are_on(run):
    plain = ModelCard.load(write_card(run)).text
    config = read_json(run/'result.json')
    for part in (config['config'], config['provenance']['params']): part.update(lora_rank=4, lora_targets=['to_k', 'to_v'], caption_dropout=.1, warmup_steps=20, min_snr_gamma=5., aspect_buckets=True)
    write_json(run/'result.json', config)
    text = ModelCard.load(write_card(run)).text
    for row in ('| lora rank | 4 |', '| lora targets | to_k, to_v |', '| caption dropout | 0.1 |', '| warmup steps | 20 |', '| min snr gamma | 5 |', '| aspect buckets | True |'):
        assert row in text and row.split('|')[1] not in plain, row
    assert '-p lora_rank 4' in text and 'lora' not in plain


@pytest.mark.parametrize('params, said', [(dict(images='mine', masks='my_masks'), 'Masks: given with the pictures.'), (dict(images='mine', masks=''), 'Masks: found by models.'),
                                          (dict(source='coco'), 'Masks: found by models, or as the folder has them.')])
def test_a_card_of_ones_own_pictures_says_whose_masks_and_what_the_base_knows(run, tmp_path, params, said):
    write_json(tmp_path/'data'/'provenance.json', dict(params=params))
    mine = run.rename(tmp_path/'mine')
    kept = read_json(mine/'result.json')
    for part in (kept['config'], kept['provenance']['params']): part.update(data=str(tmp_path/'data'/'split'/'train'), val_grounding=True)
    write_json(mine/'result.json', kept)
    text = ModelCard.load(write_card(mine, 'somebody/cats')).text
    assert said in text and 'OpenMoji, CC BY-SA 4.0' in text and 'whose base has only ever seen drawings of 25 things' in text
    assert 'cats: a Stable Diffusion pipeline' in text and '| val grounding' not in text


def test_scores_are_those_of_this_seed_and_kind(run, tmp_path):
    for seed, found in ((0, ((3, 3), (3, 3))), (1, ((1, 2), (3, 3)))): save_result(toy_result('token', found, seed=seed), tmp_path)
    save_result(toy_result('denoise', ((0, 0), (0, 0)), seed=1), tmp_path)
    card = card_of(trained_model(run))
    assert [(r.dataset_type, r.metric_type, r.metric_value) for r in card.data.eval_results] == [('multigen_coco', 'MG2', 75.), ('multigen_coco', 'MG3', 50.)]
    assert '| MultiGen, COCO classes, % of pictures | MG2 | 75.0' in card.text and 'toy judge' in card.text


def test_the_head_is_what_the_hub_reads(run):
    data = ModelCard.load(write_card(run, 'a/b')).data
    assert (data.license, data.library_name, data.pipeline_tag, data.base_model) == ('cc-by-sa-4.0', 'diffusers', 'text-to-image', None)
    config = read_json(run/'result.json')
    for part in (config['config'], config['provenance']['params']): part['model'] = 'CompVis/stable-diffusion-v1-4'
    write_json(run/'result.json', config)
    data = card_of(trained_model(run), 'a/b').data
    assert (data.license, data.base_model) == ('creativeml-openrail-m', 'CompVis/stable-diffusion-v1-4')


def test_commands_name_the_profile_of_the_base_model_and_quote_the_folder(run, tmp_path):
    mine = run.rename(tmp_path/'my run')
    for base, profile in (('CompVis/stable-diffusion-v1-4', 'sd14'), ('somebody/photos', 'sd14'), ('tokencompose/zoo/sd_v', 'mini_v')):
        kept = read_json(mine/'result.json')
        for part in (kept['config'], kept['provenance']['params']): part['model'] = base
        write_json(mine/'result.json', kept)
        commands = [train_command(trained_model(mine)), *score_commands(trained_model(mine))]
        assert all(shlex.split(command)[3:6] == ['-p', 'profile', profile] for command in commands), commands


def test_nothing_of_this_machine_goes_up(run, tmp_path):
    config = read_json(run/'result.json')
    config['provenance']['params'] |= dict(data=str(tmp_path/'pictures'), images=str(tmp_path/'pictures'))
    write_json(run/'result.json', config)
    write_card(run, 'a/b')
    stage_upload(trained_model(run), out := tmp_path/'up')
    for path in out.rglob('*'):
        if path.suffix in ('.json', '.md', '.txt'): assert str(tmp_path) not in path.read_text(), path
    assert 'pictures' in (out/'README.md').read_text()
    load_pipeline(str(out), device='cpu')      # still a pipeline


def test_the_command_holds_what_was_not_the_profiles_own(run):
    model = trained_model(run)
    assert train_command(model) == 'papermill nbs/train.ipynb runs/train.ipynb -p profile mini -p method token -p seed 1'
    model.config |= dict(steps=5, gradient_checkpointing=True)
    assert train_command(model).endswith(' -p steps 5 -p gradient_checkpointing True')


def test_the_command_of_a_run_of_ones_own_can_be_given_as_it_stands(run):
    "Nothing empty, quoted where a shell needs it, and not into the folder of a table's run."
    own = run.parents[2]/'mine'
    run.rename(own)
    model = trained_model(own)
    model.config |= dict(data='my data/tokencompose', images='my data/pictures', val_data='')
    words = shlex.split(train_command(model))
    said = dict(zip(words[4::3], words[5::3]))
    assert set(words[3::3]) == {'-p'} and said['data'] == 'my data/tokencompose' and said['out_dir'] == 'runs/mine' and 'val_data' not in said


@pytest.mark.parametrize('repo, folder, said', [('cats', '', 'such as name/model'), ('a/b', 'nbs', 'no finished training'), ('../x/y', '', 'such as name/model')])
def test_push_refuses_in_a_sentence(repo, folder, said, run):
    with pytest.raises((ValueError, FileNotFoundError), match=said): push(repo, folder or str(run))


def test_without_a_login_it_says_so(run):
    class Refusing:
        def create_repo(self, *args, **kwargs): raise OSError('401 Client Error\nmore')
    with pytest.raises(ValueError, match=r'could not be uploaded \(401 Client Error\): log in'): push('a/b', str(run), yes=True, api=Refusing())


def test_the_command_line_uploads_nothing_unasked(run):
    code, said = run_python('import runpy; runpy.run_module("tokencompose.reporting.card", run_name="__main__")', str(run), '--repo', 'a/b')
    assert code == 0 and 'Nothing was uploaded: YES=1 does it.' in said and 'unet/diffusion_pytorch_model.safetensors' in said and '## Recipe' in said
    code, said = run_python('import runpy; runpy.run_module("tokencompose.reporting.card", run_name="__main__")', str(ROOT/'nbs'))
    assert code != 0 and 'is no finished training' in said and 'Traceback' not in said
