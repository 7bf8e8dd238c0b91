"The recipes of the base models: what is refused, and a second model with other values for everything."
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.pretraining.fit import save_zoo
from tokencompose.pretraining.sd import base_card, BaseConfig, pretrain_base

SCORES = {1: SimpleNamespace(mean=50., low=40., high=60.)}
SIZES = dict(resolution=80, prediction_type='v_prediction', channels=(16, 32, 48), heads=(1, 2, 3),
             linear_projection=True, text_width=64, text_layers=2, text_heads=8, text_act='gelu', pad_token='!')


@pytest.mark.parametrize('wrong, message', [
    (dict(resolution=72), 'multiple of 16'),
    (dict(resolution=0), 'multiple of 16'),
    (dict(prediction_type='v'), 'epsilon or v_prediction'),
    (dict(heads=(2, 2)), 'three levels'),
    (dict(channels=(8,)*4), 'three levels')])
def test_a_wrong_recipe_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message): BaseConfig(**wrong)


def test_card_of_a_new_autoencoder():
    card = base_card(BaseConfig(vae_steps=2), dict(vae_psnr_db=20., samples_seen=4), SCORES, 30, 'nbs/here.ipynb')
    assert '64 pixels' in card and 'epsilon prediction' in card and 'vae_steps=2' in card and 'unchanged' not in card
    assert card.count('\n- ') == 4 and '50.0 [40.0, 60.0] for 1' in card and card.endswith('licence\n')


@pytest.fixture(scope='module')
def second(tmp_path_factory):
    "A base model in the second one's part, and the model whose autoencoder it took over."
    folder = tmp_path_factory.mktemp('second')
    first = tiny_pipeline()
    first.save_pretrained(folder/'first')
    config = BaseConfig(vae=f'{folder}/first', word_scenes=50, web_scenes=8, unet_steps=2, unet_batch=2, **SIZES)
    pipe, report = pretrain_base(folder/'sd_v', config)
    return SimpleNamespace(first=first, pipe=pipe, report=report, config=config, folder=folder)


def test_the_autoencoder_is_taken_over_as_it_is(second):
    parts = (pipe.vae.state_dict().values() for pipe in (second.pipe, second.first))
    for a, b in zip(*parts): assert torch.equal(a, b)
    assert second.pipe.vae.config.scaling_factor == second.first.vae.config.scaling_factor
    assert not (second.folder/'sd_v'/'vae.pt').exists()


def test_every_size_of_the_recipe_arrives(second):
    pipe = second.pipe
    assert pipe.unet.config.sample_size == 20 and pipe.unet.config.attention_head_dim == (1, 2, 3)
    assert pipe.scheduler.config.prediction_type == 'v_prediction' and pipe.tokenizer.pad_token_id == 0
    assert (pipe.text_encoder.config.num_hidden_layers, pipe.text_encoder.config.hidden_act) == (2, 'gelu')
    assert pipe('a cat', num_inference_steps=1, output_type='np').images.shape == (1, 80, 80, 3)


def test_the_zoo_forgets_where_a_part_was_loaded_from(second):
    save_zoo([second.pipe], second.folder/'zoo', '# card')
    assert str(second.folder) not in ''.join(p.read_text() for p in Path(second.folder, 'zoo').rglob('*.json'))
    assert load_pipeline(f'{second.folder}/zoo', device='cpu').unet.config.sample_size == 20


def test_card_of_an_autoencoder_taken_over(second):
    card = base_card(second.config, second.report, SCORES, 30, 'nbs/here.ipynb')
    assert '80 pixels' in card and 'v prediction' in card and 'vae_steps' not in card and 'unchanged' in card
