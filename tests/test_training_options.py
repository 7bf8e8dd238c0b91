"""What users of trainers expect: off it changes nothing, on it is what others compute, and a run with all of it goes on exactly."""
import json
import sys
import types

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import tokencompose.training as training
from tokencompose.attention import CrossAttentionCapture
from tokencompose.core import SampleOrder
from tokencompose.data.dataset import GroundingDataset, write_dataset
from tokencompose.losses import column_losses, grounding_losses
from tokencompose.metrics.grounding import probe
from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.run_config import config_of, fixed_part, TrainConfig
from tokencompose.training import cached_dataset, make_batch, train

SIZES = [(96, 64), (64, 64), (64, 96), (110, 64), (70, 64), (60, 100)]  # width, height
WEIGHTS = 'pipeline/unet/diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A red disc (cat) and a blue box (dog) in pictures of three shapes, and a small random model."
    folder, rows = tmp_path_factory.mktemp('options'), []
    (folder/'images').mkdir()
    for i, (width, height) in enumerate(SIZES):
        picture = Image.new('RGB', (width, height), 'white')
        ImageDraw.Draw(picture).ellipse((2, 20, 30, 48), fill=(255, 0, 0))
        ImageDraw.Draw(picture).rectangle((width - 24, height - 24, width - 4, height - 4), fill=(0, 0, 255))
        picture.save(folder/'images'/f'{i}.png')
        pixels = torch.tensor(list(picture.getdata())).view(height, width, 3)
        nouns = [('cat', pixels[..., 1:].sum(2) == 0), ('dog', pixels[..., :2].sum(2) == 0)]
        rows.append(dict(file_name=f'{i}.png', text='a cat and a dog.', nouns=nouns))
    write_dataset(folder/'data', rows)
    tiny_pipeline(['a cat and a dog.']*3).save_pretrained(folder/'model')
    return folder


def config(place, out, **changes):
    own = dict(data=str(place/'data'), images=str(place/'images'), model=str(place/'model'), out_dir=str(out), cache=str(place/'cache'), resolution=64,
               steps=4, batch_size=2, lr=1e-2, token_loss_scale=1e-2, pixel_loss_scale=1e-3, log_every=1)  # a checkpoint where a run stops, and at its end
    return TrainConfig(**own | changes)


def lines(out): return [{k: v for k, v in json.loads(line).items() if k != 'samples_per_second'} for line in (out/'metrics.jsonl').open()]


def test_a_run_without_options_is_named_as_before(place, tmp_path):
    "Older checkpoints and records know nothing of them."
    new = {'caption_dropout', 'min_snr_gamma', 'warmup_steps', 'aspect_buckets', 'lora_rank', 'lora_alpha', 'lora_targets', 'layer_scales', 'val_grounding', 'wandb'}
    assert not new & fixed_part(config(place, tmp_path)).keys()
    assert new & fixed_part(config(place, tmp_path, lora_rank=2, min_snr_gamma=5., wandb=True)).keys() == {'lora_rank', 'min_snr_gamma'}


@pytest.mark.parametrize('changes', [dict(aspect_buckets=True, speed='fast'), dict(aspect_buckets=True, lora_rank=2, lora_alpha=4., lora_targets=('to_k', 'conv1'))], ids=['whole', 'adapters'])
def test_a_run_with_all_of_it_goes_on_exactly(place, tmp_path, changes):
    looks = dict(val_data=str(place/'data'), val_images=str(place/'images'), sample_every=2, val_grounding=True, val_rows=2)
    own = dict(caption_dropout=.4, min_snr_gamma=5., warmup_steps=2, lr_schedule='cosine', ema=.5, averages=(.9,), **looks, **changes)
    train(config(place, tmp_path/'one', **own))
    train(config(place, tmp_path/'two', **own), stop_at=3), train(config(place, tmp_path/'two', **own))
    for file in (WEIGHTS, 'unet_ema-0.9/diffusion_pytorch_model.safetensors', *(['lora/pytorch_lora_weights.safetensors'] if 'lora_rank' in changes else [])):
        one, two = load_file(tmp_path/'one'/file), load_file(tmp_path/'two'/file)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one), file
    assert lines(tmp_path/'one') == lines(tmp_path/'two')
    base = load_file(place/'model'/'unet'/'diffusion_pytorch_model.safetensors')
    moved = {name for name, value in load_file(tmp_path/'one'/WEIGHTS).items() if not torch.equal(value, base[name])}
    if 'lora_rank' in changes: assert moved == {name for name in base if name.endswith(('to_k.weight', 'conv1.weight'))}
    else: assert len(moved) > .9*len(base)
    with pytest.raises(ValueError, match='caption_dropout: 0.4 there, 0.5 now'): train(config(place, tmp_path/'one', **own | dict(caption_dropout=.5)))


def test_the_stock_pipeline_loads_the_adapters(place, tmp_path):
    "Pictures with them are those of the trained model, and others than the base model's; the checkpoint holds nothing else."
    train(config(place, tmp_path/'run', lora_rank=2, lora_alpha=6., steps=6))
    kept = load_file(tmp_path/'run'/'checkpoints'/'step-0000006'/'unet.safetensors')
    assert kept and all('.lora_' in name for name in kept)
    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        return torch.from_numpy(pipe('a cat', num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type='np').images)
    def stock(folder): return StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None, requires_safety_checker=False)
    loaded = stock(place/'model')
    loaded.load_lora_weights(str(tmp_path/'run'/'lora'), weight_name='pytorch_lora_weights.safetensors')
    base, trained, adapted = drawn(stock(place/'model')), drawn(stock(tmp_path/'run'/'pipeline')), drawn(loaded)
    assert torch.allclose(adapted, trained, atol=1e-4) and (base - trained).abs().max() > 1e-2


def test_no_captions_no_grounding(place, tmp_path):
    train(config(place, tmp_path/'run', caption_dropout=1., steps=1))
    line = lines(tmp_path/'run')[0]
    assert line['token_loss'] == line['pixel_loss'] == line['supervised_nouns'] == 0 < line['denoise_loss']


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
def test_min_snr_weighs_each_sample(place, tmp_path, kind):
    "Against diffusers' compute_snr and one sample at a time."
    pipe = load_pipeline(str(place/'model'), device='cpu')
    scheduler = training.DDPMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    snr = compute_snr(scheduler, training.sample_draws(0, range(4), (4, 16, 16))[2])
    gamma = float(snr.median())  # some are above
    own, plain = (config(place, tmp_path, **more) for more in (dict(min_snr_gamma=gamma), {}))
    data = cached_dataset(pipe, plain.data, plain.images, plain)
    def loss(places, settings):
        with torch.no_grad(): return training.step_losses(pipe.unet, scheduler, make_batch(data, SampleOrder(6, 0), places, pipe, 0, 'cpu'), settings)[0]
    weights = snr.clamp(max=gamma)/(snr + (kind == 'v_prediction'))
    assert loss(range(4), own) == pytest.approx(float(sum(w*loss([n], plain) for n, w in enumerate(weights))/4), rel=1e-4)
    assert weights.min() < .9


def test_factors_of_groups_stand_for_their_scales(place, tmp_path):
    "Twice everything is twice λ and γ; nothing for a group is a training without it; two factors for three groups are refused."
    def final(name, **changes): return train(config(place, tmp_path/name, **changes)) and load_file(tmp_path/name/WEIGHTS)
    def same(a, b): return all(torch.equal(a[name], b[name]) for name in a)
    plain, groups = final('plain'), [name.split('/')[1] for name in lines(tmp_path/'plain')[0] if name.startswith('token_loss/')]
    twice = final('twice', layer_scales=[2]*len(groups))
    assert same(twice, final('scales', token_loss_scale=2e-2, pixel_loss_scale=2e-3)) and not same(twice, plain)
    final('without', layer_scales=[1]*(len(groups) - 1) + [0]), final('fewer', layers=tuple(groups[:-1]))
    without, fewer, whole = ([row['loss'] for row in lines(tmp_path/name) if 'loss' in row] for name in ('without', 'fewer', 'plain'))
    assert without == pytest.approx(fewer, rel=1e-4) and whole[0] > 1.0001*fewer[0]
    with pytest.raises(ValueError, match=f'2 factors for the {len(groups)} groups {", ".join(groups)}: give one for each'):
        train(config(place, tmp_path/'two', layer_scales=(1, 2)))
    assert config_of(dict(profile='mini', layer_scales=[2, .5, 1])).layer_scales == (2., .5, 1.)


def test_buckets_cut_masks_with_their_pictures_and_the_losses_follow(place, tmp_path):
    "Attention maps are no squares then: the captured columns' losses are those of the whole maps and the cut masks."
    pipe, own = load_pipeline(str(place/'model'), device='cpu'), config(place, tmp_path, aspect_buckets=True)
    data = cached_dataset(pipe, own.data, own.images, own)
    assert {tuple(part.moments.shape[-2:]) for part in data.parts} == {(12, 20), (16, 16), (20, 12)} and sorted(sum(data.rows, [])) == list(range(6))
    whole = training.files_of(own, pipe.tokenizer)
    for latent, rows in zip([(12, 20), (16, 16), (20, 12)], data.rows, strict=True):
        part = training.bucket_part(whole, rows, tuple(4*side for side in latent))
        items = [part[i] for i in range(len(part))]
        for item in items:  # the red disc is where its mask is
            red = (item['pixel_values'][0] > .5) & (item['pixel_values'][1:].amax(0) < 0)
            assert (red & item['masks'][0]).sum() > .9*red.sum() > 100 and (red | item['masks'][0]).sum() < 1.2*red.sum()
        batch = make_batch(data, rows, list(range(len(rows))), pipe, 0, 'cpu')
        assert batch['latents'].shape[-2:] == latent
        with torch.no_grad(), CrossAttentionCapture(pipe.unet, own.layers, 16) as capture:
            pipe.unet(batch['latents'], 500, batch['encoder_hidden_states'])
            whole_maps, sizes = capture.maps, capture.sizes
            capture.select(batch['targets'].token_ids)
            pipe.unet(batch['latents'], 500, batch['encoder_hidden_states'])
            ours = column_losses(capture.maps, batch['targets'], capture.sizes)
        theirs = grounding_losses(whole_maps, [item['masks'] for item in items], [item['token_ids'] for item in items], sizes=sizes)
        assert sizes['up_16'] == latent and float(ours.token) == pytest.approx(float(theirs.token), rel=1e-4) and float(ours.pixel) == pytest.approx(float(theirs.pixel), rel=1e-4)


def test_grounding_while_training_is_the_grounding_metric(place, tmp_path):
    train(config(place, tmp_path/'run', steps=2, resolution=48, sample_every=1, val_data=str(place/'data'), val_images=str(place/'images'), val_grounding=True))
    pipe = load_pipeline(str(tmp_path/'run'/'pipeline'), device='cpu')
    mass, dilated = (float(probe(pipe, GroundingDataset(place/'data', place/'images', pipe.tokenizer, 48, mask_rule=rule)).scores['mass'].nanmean()) for rule in ('majority', 'authors'))
    looks = [line['val/grounding'] for line in lines(tmp_path/'run') if 'val/grounding' in line]
    assert len(looks) == 2 and looks[-1] == pytest.approx(mass, rel=1e-4) and looks[0] != looks[1] and dilated > 1.01*mass


def test_weights_and_biases_is_asked_for_and_stays_offline(place, tmp_path, monkeypatch):
    asked = config(place, tmp_path/'run', wandb=True, steps=2)
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ImportError, match='wandb needs the library wandb, which is not installed: run `pip install wandb`'): train(asked)
    assert not (tmp_path/'run').exists()
    told = dict(log=[])
    run = types.SimpleNamespace(log=lambda values, step: told['log'].append((step, values)), finish=lambda: told.update(finished=True))
    def init(**how): told.update(how); return run
    fake = types.ModuleType('wandb')
    fake.__spec__, fake.init, fake.Settings = types.SimpleNamespace(name='wandb'), init, dict
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setenv('WANDB_API_KEY', 'a-token-that-is-secret')
    train(asked)
    assert told['mode'] == 'offline' and told['finished'] and [step for step, _ in told['log']] == [1, 2] and 'token_loss' in told['log'][0][1]
    said = ''.join(path.read_text(errors='replace') for path in (tmp_path/'run').glob('*.json*')) + str({k: v for k, v in told.items() if k != 'log'})
    assert 'a-token-that-is-secret' not in said


@pytest.mark.parametrize('changes, message', [(dict(caption_dropout=-.1), 'between 0 and 1'), (dict(warmup_steps=4), '4 of 4 updates leave none'), (dict(lora_alpha=4.), 'give lora_rank too'),
    (dict(lora_rank=2, lora_targets=()), 'expected names of layers'), (dict(val_grounding=True), 'give val_data, val_images and sample_every too'), (dict(min_snr_gamma=-1.), 'must not be negative'),
    (dict(layer_scales=(1, -1)), 'factors must be 0 or more'), (dict(layer_scales=['x']), 'give one for each group'),
    (dict(layer_scales=(1, 1, 1), token_loss_scale=0., pixel_loss_scale=0.), 'scale nothing')])
def test_options_that_cannot_be(place, changes, message):
    with pytest.raises(ValueError, match=message): config(place, 'run', **changes)
