"""Folders that are missing, the two kinds of small pipeline, samplers and fingerprints."""
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import ROOT
from diffusers import PNDMScheduler

from tokencompose.model_files import model_path
from tokencompose.models import (_UNREAD, build_tokenizer, load_pipeline, load_tokenizer, loud_pipeline, model_fingerprint,
                                 new_sampler, new_scheduler, tiny_pipeline, tiny_unet, tokenize)

ZOO = 'tokencompose/zoo/sd'
SECOND = dict(prediction_type='v_prediction', sample_size=20, heads=(1, 2, 4), linear_projection=True, pad_token='!')


@pytest.fixture(scope='module')
def second(tmp_path_factory):
    "Folder of a pipeline of Stable Diffusion 2.1's kind."
    folder = tmp_path_factory.mktemp('second')
    tiny_pipeline(**SECOND).save_pretrained(folder)
    return folder


# ---- where models lie

@pytest.mark.parametrize('load, model, message', [
    (load_pipeline, 'CompVis/stable-diffusion-v1-4', 'hf download CompVis/stable-diffusion-v1-4`'),
    (lambda model: load_pipeline(model, 'abc'), 'CompVis/stable-diffusion-v1-4', '--revision abc'),
    (load_pipeline, 'runs/nowhere/at/all', r'There is no model folder .*nbs/6_pretraining/pretrain_\*\.ipynb'),
    (load_pipeline, 'nbs', 'model_index.json is missing'),
    (load_tokenizer, 'nbs', 'There is no .*tokenizer'),
    (model_path, 'nowhere/sam_vit_h_4b8939.pth', 'fetch it with `curl -L --create-dirs -o weights/sam_vit_h'),
    (model_path, 'nowhere/groundingdino_swint_ogc.pth', 'releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth`'),
    (model_path, 'weights/nowhere/pos-english/pytorch_model.bin', 'hf download flair/pos-english'),
    (model_path, 'my_own.pt', 'name a file or a folder that exists'),
    (model_path, 'facebook/sam-vit-base', 'hf download facebook/sam-vit-base'),
])
def test_a_model_that_is_not_here(load, model, message):
    with pytest.raises(FileNotFoundError, match=message): load(model)


def test_a_file_or_a_folder():
    assert model_path(f'{ZOO}/model_index.json').name == 'model_index.json' and model_path(ZOO).name == 'sd'


def test_the_fast_tokenizer_of_a_pipeline():
    tokenizer = load_tokenizer(ZOO)
    assert tokenizer.is_fast and tokenizer('a cat').input_ids[0] == tokenizer.bos_token_id


# ---- tokenizer

def test_any_text_can_be_written():
    tokenizer = build_tokenizer(['a photo of a cat and a teddy bear.']*3, merges=60)
    text = tokenizer.decode(tokenizer('Ça va, 猫 zebra?').input_ids, skip_special_tokens=True)
    assert text.replace(' ', '') == 'çava,猫zebra?'
    assert len(set(tokenizer.get_vocab().values())) == len(tokenizer)


def test_texts_are_padded():
    tokenizer = build_tokenizer(['a photo of a cat and a teddy bear.']*3, merges=60)
    ids = tokenize(tokenizer, ['a photo of a cat and a teddy bear.', '', 'cat '*99])
    assert ids.shape == (3, 40) and (ids[:, 0] == tokenizer.bos_token_id).all()
    assert ids[1, 1] == ids[2, -1] == tokenizer.eos_token_id


# ---- pipelines

def test_weights_belong_to_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second, other = tiny_pipeline(), tiny_pipeline(), tiny_pipeline(seed=1)
    assert torch.rand(1) == expected
    for part in ('unet', 'vae', 'text_encoder'):
        assert model_fingerprint(getattr(first, part)) == model_fingerprint(getattr(second, part))
        assert model_fingerprint(getattr(first, part)) != model_fingerprint(getattr(other, part))


def test_a_saved_pipeline_is_the_same(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path, device='cpu')
    for part in ('unet', 'vae', 'text_encoder'):
        assert model_fingerprint(getattr(pipe, part)) == model_fingerprint(getattr(again, part))
    assert pipe.tokenizer('a cat').input_ids == again.tokenizer('a cat').input_ids
    assert not again.unet.training and not any(p.requires_grad for p in again.unet.parameters())
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    picture = again('a cat', latents=latents, num_inference_steps=2, output_type='np').images
    assert picture.shape == (1, 64, 64, 3)


def test_the_second_kind_through_its_folder(second):
    again = load_pipeline(second, device='cpu')
    unet = again.unet
    assert (again.scheduler.config.prediction_type, unet.config.sample_size) == ('v_prediction', 20)
    blocks = unet.down_blocks[0], unet.down_blocks[1], unet.mid_block
    assert [b.attentions[0].transformer_blocks[0].attn2.heads for b in blocks] == [1, 2, 4]
    assert isinstance(unet.mid_block.attentions[0].proj_in, torch.nn.Linear)
    assert isinstance(tiny_pipeline().unet.mid_block.attentions[0].proj_in, torch.nn.Conv2d)
    assert again('a cat', num_inference_steps=2, output_type='np').images.shape == (1, 80, 80, 3)


def test_the_second_kind_pads_with_its_first_letter(second):
    slow, fast = load_pipeline(second, device='cpu').tokenizer, load_tokenizer(second)
    ids = tokenize(fast, ['a cat'])[0].tolist()
    assert slow.pad_token_id == fast.pad_token_id == 0 and tokenize(slow, ['a cat'])[0].tolist() == ids
    end = ids.index(fast.eos_token_id)
    assert end < 10 and set(ids[end + 1:]) == {0}


def test_loud_is_tiny_with_four_times_the_text():
    tiny, loud = tiny_pipeline(**SECOND).unet.state_dict(), loud_pipeline(double=True, **SECOND).unet.state_dict()
    for name, value in tiny.items():
        factor = 4 if 'attn2.to_' in name else 1
        assert loud[name].dtype == torch.float64 and (loud[name] == factor*value.double()).all(), name


def test_tiny_unet_takes_settings():
    assert model_fingerprint(tiny_unet()) == model_fingerprint(tiny_unet())
    assert tiny_unet(cross_attention_dim=20, layers_per_block=2).config.layers_per_block == 2


# ---- samplers

def test_a_sampler_keeps_the_models_settings_and_fills_in_stable_diffusions():
    config = PNDMScheduler(beta_start=.00085, beta_end=.012, beta_schedule='scaled_linear',
                           prediction_type='v_prediction').config
    sampler = new_sampler(config)
    assert (sampler.config.clip_sample, sampler.config.set_alpha_to_one) == (False, False)
    assert sampler.config.prediction_type == 'v_prediction'
    assert new_sampler(new_scheduler().config, 'pndm').config.skip_prk_steps is True


def test_an_unknown_sampler():
    with pytest.raises(ValueError, match='ddim or pndm or dpm'): new_sampler(new_scheduler().config, 'euler')


# ---- fingerprints

def test_a_fingerprint_sees_class_settings_and_weights():
    unet, digest = tiny_unet(), model_fingerprint(tiny_unet())
    assert model_fingerprint(unet.half()) != digest
    assert model_fingerprint(tiny_unet(attention_head_dim=2)) != digest
    changed = tiny_unet()
    changed.conv_out.bias.data[0] += 1e-6
    assert model_fingerprint(changed) != digest


def test_a_fingerprint_does_not_see_where_and_how_a_model_was_loaded(tmp_path):
    from diffusers import UNet2DConditionModel
    tiny_unet().save_pretrained(tmp_path)
    assert model_fingerprint(UNet2DConditionModel.from_pretrained(tmp_path)) == model_fingerprint(tiny_unet())


COMMITTED = {'tokencompose/zoo/owlv2': ('Owlv2ForObjectDetection', 'd242093d18de'), 'tokencompose/zoo/clip': ('CLIPModel', '2be76844db15'), 'tokencompose/zoo/blip': ('BlipForQuestionAnswering', '017e3e948ac9')}


@pytest.mark.parametrize('folder', COMMITTED)
def test_the_fingerprints_in_committed_records_hold(folder):
    "Records are known by them: whoever changes the definition makes every committed number a stranger."
    name, digest = COMMITTED[folder]
    model = getattr(transformers, name).from_pretrained(ROOT/folder)
    assert model_fingerprint(model)[:12] == digest
    records = ''.join(path.read_text() for path in (ROOT/'paper_figures/records').glob('*/results/*/frozen.json'))
    assert f'{folder} ({digest})' in records or f'CLIP ({digest})' in records


def test_a_fingerprint_does_not_see_the_version_of_transformers():
    "Version 5.17 writes the same configurations without the settings that nobody reads (compared on the models of the zoo)."
    model = transformers.CLIPModel.from_pretrained(ROOT/'tokencompose/zoo/clip')
    digest, written = model_fingerprint(model), model.config.to_dict()
    def later(config): return {key: later(value) if key.endswith('_config') else value for key, value in config.items() if key not in _UNREAD or value != _UNREAD[key]} | (dict(transformers_version='5.17.0') if 'text_config' in config else {})
    assert len(later(written)) < len(written) - 40
    model.config = SimpleNamespace(to_dict=lambda: later(written))
    assert model_fingerprint(model) == digest
    model.config = SimpleNamespace(to_dict=lambda: {**later(written), 'logit_scale_init_value': 1.})
    assert model_fingerprint(model) != digest
