"The recipes of the base models: what is refused, and a second model with other values for everything."
import itertools
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
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
    (dict(channels=(8,)*4), 'three levels'),
    (dict(world='moon'), 'web or attributes'),
    (dict(vae='a', start='b'), 'keeps its autoencoder')])
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


# ---- going on from another model

def further(second, **changes):
    return BaseConfig(**dict(start=f'{second.folder}/sd', world='attributes', web_scenes=8, unet_steps=3, unet_batch=2, resolution=80, prediction_type='v_prediction') | changes)


@pytest.fixture(scope='module')
def begun(second):
    save_zoo([second.pipe], second.folder/'sd', '# card')
    second.further, second.further_report = pretrain_base(second.folder/'further', further(second))
    return second


def test_a_model_goes_on_with_its_words_and_its_autoencoder(begun):
    pipe, report = begun.further, begun.further_report
    start = load_pipeline(f'{begun.folder}/sd', device='cpu')
    assert pipe.tokenizer.get_vocab() == start.tokenizer.get_vocab() and pipe.tokenizer.pad_token_id == 0
    assert pipe.scheduler.config.prediction_type == 'v_prediction'
    for part, moves in dict(vae=False, text_encoder=True, unet=True).items():
        a, b = (getattr(p, part).state_dict().values() for p in (start, pipe))
        assert any(not torch.equal(x, y) for x, y in zip(a, b)) == moves, part
    card = base_card(further(begun), report, SCORES, 30, 'nbs/here.ipynb')
    assert 'trained further' in card and report['begun'] in card and 'channels' not in card and 'unchanged' in card


def test_the_card_tells_of_attributes():
    index = pd.MultiIndex.from_product([['color', 'plate'], ['seen', 'held out']])
    table = pd.DataFrame(dict(mean=[90., 80., 70., 60.], low=50., high=95.), index=index)
    card = base_card(BaseConfig(), dict(vae_psnr_db=20., samples_seen=4), SCORES, 30, 'nbs/here.ipynb', dict(before=table, after=table))
    assert card.count('\n- ') == 6 and 'before, for the pairs' in card and 'color 90.0 [50.0, 95.0] and 80.0 [50.0, 95.0]; plate 70.0' in card


def test_a_stop_leaves_no_trace(begun, monkeypatch):
    "The learning rate depends on the step, so an interrupted run goes on exactly."
    import tokencompose.pretraining.fit as fit_module
    store, stop = fit_module._store, iter([False, True])
    def store_and_stop(*args):
        store(*args)
        if next(stop, False): raise KeyboardInterrupt
    monkeypatch.setattr(fit_module, '_store', store_and_stop)
    monkeypatch.setattr(fit_module, 'time', SimpleNamespace(monotonic=itertools.count(0, 1000).__next__))  # saves after every step
    with pytest.raises(KeyboardInterrupt): pretrain_base(begun.folder/'halves', further(begun))
    monkeypatch.undo()
    again, _ = pretrain_base(begun.folder/'halves', further(begun))
    for a, b in zip(begun.further.unet.state_dict().values(), again.unet.state_dict().values()): assert torch.equal(a, b)


@pytest.mark.parametrize('changes, message', [
    (dict(resolution=64), 'latents of 20 a side'),
    (dict(prediction_type='epsilon'), 'with v_prediction'),
    (dict(unet_steps=4), 'unet_steps: 3 there, 4 now'),
    (dict(world='web'), 'made with other settings')])
def test_another_recipe_is_refused(begun, changes, message):
    with pytest.raises(ValueError, match=message): pretrain_base(begun.folder/'further', further(begun, **changes))
