"""A training killed without warning, at a step or in the middle of a save, ends with the same bytes as one left alone."""
import dataclasses
import itertools
import json
import signal
import time

import pytest
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from PIL import Image
from processes import run_python
from safetensors.torch import load_file

import tokencompose.training as training
from tokencompose.core import file_sha256, keyed_generator, SampleOrder
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.dataset import GroundingDataset
from tokencompose.data.world_files import write_world
from tokencompose.metrics.grounding import probe
from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.profiles import get_profile
from tokencompose.sampling import sample_images
from tokencompose.checkpoints import load_checkpoint, newest_checkpoint
from tokencompose.run_config import config_for, config_of, TrainConfig
from tokencompose.training import command_line, train

KILL_AT_STEP = """
import tokencompose.training as training
add = training.MetricsLog.add
def dying_add(self, row, samples):
    add(self, row, samples)
    dying_add.calls += 1
    if dying_add.calls == {at}: os.kill(os.getpid(), signal.SIGKILL)
dying_add.calls = 0
training.MetricsLog.add = dying_add
"""
KILL_IN_SAVE = """
import tokencompose.training as training
rename = os.rename
def dying_rename(source, target):
    if str(target).endswith('step-{at:07d}'): os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
training.os.rename = dying_rename
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('training')
    write_world(folder/'scenes', train=6, val=1)
    coco = read_coco(folder/'scenes', 'train2017')
    build_dataset(folder/'data', coco)
    tiny_pipeline(['a photo of a cat, a dog and a car.']*3).save_pretrained(folder/'model')
    return folder


def start(place, out, before=''):
    "Train in a process of its own; the return code."
    config = dict(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(out), resolution=64,
                  steps=9, batch_size=2, lr=1e-3, token_loss_scale=1e-2, pixel_loss_scale=1e-3, checkpoint_every=3, log_every=1, ema=.9, averages=(.5,), lr_schedule='linear')
    code = f'import os, signal\n{before}\nfrom tokencompose.training import command_line, train, TrainConfig\ntrain(TrainConfig(**{config!r}))'
    return run_python(code)[0]


def test_killed_runs_end_like_one_left_alone(place, tmp_path):
    assert start(place, tmp_path/'whole') == 0
    assert start(place, tmp_path/'killed', KILL_AT_STEP.format(at=5)) == -signal.SIGKILL        # after the checkpoint of step 3
    assert sorted(p.name for p in (tmp_path/'killed'/'checkpoints').iterdir()) == ['step-0000003']
    assert start(place, tmp_path/'killed', KILL_IN_SAVE.format(at=6)) == -signal.SIGKILL        # everything written but the name
    assert [p.name for p in (tmp_path/'killed'/'checkpoints').glob('step-*')] == ['step-0000003']
    assert list((tmp_path/'killed'/'checkpoints').glob('.tmp-*')), 'the kill left a half-saved checkpoint behind'
    assert start(place, tmp_path/'killed') == 0
    weights = 'pipeline/unet/diffusion_pytorch_model.safetensors'
    for file in (weights, 'unet_ema-0.5/diffusion_pytorch_model.safetensors'):
        assert file_sha256(tmp_path/'whole'/file) == file_sha256(tmp_path/'killed'/file)
    assert not list((tmp_path/'killed'/'checkpoints').glob('.tmp-*'))
    rows = [[{k: v for k, v in json.loads(line).items() if k != 'samples_per_second'} for line in (tmp_path/run/'metrics.jsonl').open()] for run in ('whole', 'killed')]
    assert rows[0] == rows[1], 'the log has every step once'


@pytest.mark.parametrize('at, held_out', [(2, True), (4, True), (2, False), (4, False)])
def test_a_preview_that_a_kill_cut_off_is_made(place, tmp_path, monkeypatch, at, held_out):
    "The checkpoint is there before the preview, so that one which takes all memory loses nothing; the run that goes on makes it, also after the last update."
    looked_at = dict(val_data=str(place/'data'), val_images=str(place/'scenes'/'train2017')) if held_out else {}
    def config(run): return TrainConfig(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(tmp_path/run), resolution=64, steps=4, batch_size=2,
                                        token_loss_scale=0., pixel_loss_scale=0., checkpoint_every=2, log_every=2, sample_every=2, sample_prompts=('a cat',), inference_steps=2, **looked_at)
    def row_of(line): return {key: value for key, value in json.loads(line).items() if key != 'samples_per_second'}
    draw = training.sample_grid
    def dying(pipe, unet, config, path):
        if path.stem == f'step-{at:07d}': raise MemoryError
        draw(pipe, unet, config, path)
    train(config('whole'))
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(training, 'sample_grid', dying)
        train(config('cut'))
    train(config('cut'))
    for kept in (lambda run: sorted((path.name, path.read_bytes()) for path in (run/'samples').iterdir()), lambda run: [row_of(line) for line in (run/'metrics.jsonl').open()]):
        assert kept(tmp_path/'cut') == kept(tmp_path/'whole') and kept(tmp_path/'whole')


def test_averages_and_a_falling_learning_rate(place, tmp_path):
    "Averages are those of the checkpoints' weights, computed again; the learning rate is that of diffusers' linear schedule."
    config = TrainConfig(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(tmp_path/'run'), resolution=64, steps=5, batch_size=2,
                         lr=1e-2, token_loss_scale=0., pixel_loss_scale=0., checkpoint_every=1, keep_checkpoints=9, averages=(.3, .99), lr_schedule='linear')
    train(config)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-2)
    schedule, steps = get_scheduler('linear', optimizer, num_warmup_steps=0, num_training_steps=5), [tmp_path/'run'/'checkpoints'/f'step-{n:07d}' for n in range(1, 6)]
    for folder in steps:
        assert torch.load(folder/'optimizer.pt', weights_only=True)['param_groups'][0]['lr'] == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step(); schedule.step()
    weights, name = [load_file(folder/'unet.safetensors') for folder in steps], 'diffusion_pytorch_model.safetensors'
    last = load_file(tmp_path/'run'/'pipeline'/'unet'/name)
    assert all(torch.equal(last[key], value) for key, value in weights[-1].items()), 'the pipeline has the last weights'
    for decay in (.3, .99):
        kept = load_file(tmp_path/'run'/f'unet_ema-{decay}'/name)
        for key in ('conv_in.weight', 'conv_out.bias'):
            average = weights[0][key]
            for n, after in enumerate(weights[1:], 1):
                keep = min(decay, (1 + n)/(10 + n))
                average = keep*average + (1 - keep)*after[key]
            assert torch.allclose(kept[key], average, atol=1e-7) and not torch.equal(kept[key], last[key])


def test_averages_of_a_command_line():
    given = vars(command_line().parse_args(['--averages', '0.9', '0.99']))
    given.pop('encode_only')
    assert config_of(given).averages == (.9, .99)


@pytest.mark.parametrize('changes, message', [(dict(mixed_precision='half'), "mixed_precision: expected no or bf16 or fp16, got 'half'"),
    (dict(lr_schedule='steps'), "lr_schedule: expected constant or linear or cosine, got 'steps'"), (dict(averages=(.9, 1.)), r'averages: decays must lie between 0 and 1, got \[0.9, 1.0\]'), (dict(averages=('much',)), 'decays must lie between 0 and 1'),
    (dict(speed='quick'), "speed: expected exact or fast or whole or graphs, got 'quick'"), (dict(speed='graphs', accumulation=2), 'graphs replays one forward an update'),
    (dict(speed='whole', gradient_checkpointing=True), 'leave that off, or take fast')])
def test_recipes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message): TrainConfig(data='', images='', out_dir='', model='', **changes)


def test_second_kind_of_base_model(tmp_path):
    "v-prediction with maps of 20, 10 and 5, other head counts and another padding: trained with the profile's own layers, probed and drawn from."
    write_world(tmp_path/'scenes', train=4, val=1, size=80)
    build_dataset(tmp_path/'data', read_coco(tmp_path/'scenes', 'train2017'))
    tiny_pipeline(['a photo of a cat, a dog and a car.']*3, 0, 'v_prediction', 20, (1, 2, 4), True, '!').save_pretrained(tmp_path/'model')
    config = config_for(get_profile('mini_v'), model=str(tmp_path/'model'), data=str(tmp_path/'data'), images=str(tmp_path/'scenes'/'train2017'), out_dir=str(tmp_path/'run'),
                        steps=2, batch_size=2, log_every=1, token_loss_scale=1e-2, pixel_loss_scale=1e-3)
    assert train(config)['step'] == 2
    first, second = (json.loads(line) for line in (tmp_path/'run'/'metrics.jsonl').open())
    assert {name.split('/')[1] for name in first if name.startswith('token_loss/')} == {'mid_5', 'up_10', 'up_20'}
    before, pipe = load_pipeline(str(tmp_path/'model'), device='cpu'), load_pipeline(str(tmp_path/'run'/'pipeline'), device='cpu')
    assert pipe.scheduler.config.prediction_type == 'v_prediction'

    # The logged denoising loss of the first step, from the definition of v and the same draws
    data = GroundingDataset(tmp_path/'data', tmp_path/'scenes'/'train2017', before.tokenizer, 80)
    alphas = (1 - torch.linspace(.00085**.5, .012**.5, 1000, dtype=torch.float64)**2).cumprod(0).float()
    losses = []
    for place in range(2):
        item, generator = data[SampleOrder(len(data), 0)[place]], keyed_generator(0, 'sample', place)
        (posterior, noise), t = torch.randn(2, 4, 20, 20, generator=generator), torch.randint(1000, (), generator=generator)
        with torch.no_grad():
            latents = before.vae.encode(item['pixel_values'][None]).latent_dist
            latents = (latents.mean + latents.std*posterior)*before.vae.config.scaling_factor
            a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
            said = before.unet(a*latents + s*noise, t, before.text_encoder(item['input_ids'][None])[0]).sample
        losses.append((said - (a*noise - s*latents)).square().mean().item())
    assert first['denoise_loss'] == pytest.approx(sum(losses)/2, rel=1e-3)

    result = probe(pipe, data)
    assert set(result.images) == {f'{i:012d}' for i in range(4)} and all(torch.isfinite(torch.as_tensor(v)).all() for v in result.scores.values())
    sample_images(pipe, ['a cat'], 1, tmp_path/'pictures', inference_steps=2)
    assert Image.open(tmp_path/'pictures'/'0_0.png').size == (80, 80)


def small(place, out, **changes):
    own = dict(data=str(place/'data'), images=str(place/'scenes'/'train2017'), model=str(place/'model'), out_dir=str(out), resolution=64,
               steps=2, batch_size=4, lr=1e-3, token_loss_scale=1e-2, pixel_loss_scale=1e-3)
    return TrainConfig(**own | changes)


def weights(out): return load_file(out/'pipeline'/'unet'/'diffusion_pytorch_model.safetensors')


def test_a_batch_and_its_accumulated_parts_train_alike(place, tmp_path):
    "Loosely: AdamW's first steps follow the sign of a gradient, however small."
    train(small(place, tmp_path/'batch')), train(small(place, tmp_path/'parts', batch_size=1, accumulation=4))
    parts = weights(tmp_path/'parts')
    for name, tensor in weights(tmp_path/'batch').items(): assert torch.allclose(tensor, parts[name], atol=1e-3, rtol=0), name


def test_fast_computes_what_exact_does(place, tmp_path):
    "To float32's rounding, over updates with accumulation, an interruption and a moving average; compiling is left to test_compile."
    rows = {}
    for speed in ('exact', 'fast'):
        config = small(place, tmp_path/speed, speed=speed, steps=4, batch_size=2, accumulation=2, log_every=1, checkpoint_every=2, ema=.9)
        train(config, stop_at=2)
        train(config)
        rows[speed] = [json.loads(line) for line in (tmp_path/speed/'metrics.jsonl').open()]
    for exact, fast in zip(rows['exact'], rows['fast'], strict=True):
        assert exact.keys() == fast.keys()
        for name in exact.keys() - {'samples_per_second'}: assert fast[name] == pytest.approx(exact[name], rel=2e-4, abs=1e-6), name
    assert load_pipeline(str(tmp_path/'fast'/'pipeline'), device='cpu')


def test_a_resumed_run_counts_all_of_its_time(place, tmp_path, monkeypatch):
    update = training.update
    def slow(run): time.sleep(.3); return update(run)
    monkeypatch.setattr(training, 'update', slow)
    config = small(place, tmp_path/'run', steps=4, checkpoint_every=2)
    train(config, stop_at=2)
    result = train(config)
    assert result['seconds'] >= 1.2 and result['samples_per_second'] <= 16/1.2
    assert json.loads((tmp_path/'run'/'result.json').read_text())['result'] == result


def test_gradients_are_not_clipped_at_zero(place, tmp_path):
    for limit in (0., 1e9, 1e-9): train(small(place, tmp_path/str(limit), max_grad_norm=limit, weight_decay=0.))
    free, wide, tight = (weights(tmp_path/str(limit))['conv_in.weight'] for limit in (0., 1e9, 1e-9))
    assert torch.equal(free, wide) and not torch.equal(free, tight)
    with pytest.raises(ValueError, match='max_grad_norm: must not be negative'): small(place, tmp_path, max_grad_norm=-1.)


def test_a_look_at_a_run_is_at_the_average_that_it_exports(place, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, 'sample_grid', lambda pipe, unet, *_: seen.append(unet.conv_in.weight.detach().clone()))
    train(small(place, tmp_path/'run', ema=.5, steps=3, sample_every=3, checkpoint_every=3, sample_prompts=('a cat',), inference_steps=1))
    last = load_file(tmp_path/'run'/'checkpoints'/'step-0000003'/'unet.safetensors')['conv_in.weight']
    assert torch.equal(seen[-1], weights(tmp_path/'run')['conv_in.weight']) and not torch.equal(seen[-1], last)


def test_every_objective_leads_to_weights_of_its_own(place, tmp_path):
    scales = dict(token_loss_scale=1e-2, pixel_loss_scale=1e-3)
    trained = []
    for off in ((), ('token_loss_scale',), ('pixel_loss_scale',), tuple(scales)):
        train(small(place, tmp_path/'-'.join(('run', *off)), **dict.fromkeys(off, 0.)))
        trained.append(torch.cat([t.flatten() for t in weights(tmp_path/'-'.join(('run', *off))).values()]))
    for one, other in itertools.combinations(trained, 2): assert (one - other).abs().max() > 1e-4


def test_the_log_names_every_loss_and_the_looks_are_there(place, tmp_path):
    held_out = dict(val_data=str(place/'data'), val_images=str(place/'scenes'/'train2017'))
    config = small(place, tmp_path/'run', log_every=1, sample_every=2, sample_prompts=('a photo of a cat.',), inference_steps=1, **held_out)
    train(config)
    lines = [json.loads(line) for line in (tmp_path/'run'/'metrics.jsonl').open()]
    assert {'loss', 'denoise_loss', 'token_loss/mid_4', 'pixel_loss/up_16', 'grad_norm', 'samples_per_second'} <= set(lines[0])
    assert 'val/token_loss' in lines[-1] and (tmp_path/'run'/'samples'/'step-0000002.png').is_file()


def test_images_of_half_the_size_that_the_unet_is_made_for(place, tmp_path):
    held_out = dict(val_data=str(place/'data'), val_images=str(place/'scenes'/'train2017'))
    train(small(place, tmp_path/'run', steps=1, sample_every=1, resolution=32, layers=('mid_1x', 'up_2x'), **held_out))
    assert {'val/token_loss/mid_2', 'val/token_loss/up_4'} <= set(json.loads((tmp_path/'run'/'metrics.jsonl').read_text().splitlines()[-1]))


def test_what_contradicts_a_folder_is_refused(place, tmp_path):
    config = small(place, tmp_path/'run')
    train(config)
    with pytest.raises(ValueError, match='lr: 0.001 there, 0.1 now'): train(dataclasses.replace(config, lr=.1))
    with pytest.raises(ValueError, match='has 2 updates already and steps=1 asks for fewer'): train(dataclasses.replace(config, steps=1))
    with pytest.raises(ValueError, match=r'trained by 1 process\(es\), now 2'):
        load_checkpoint(newest_checkpoint(tmp_path/'run'/'checkpoints'), None, None, {}, config, world=2)


def test_missing_folders_stop_before_anything_is_written(place, tmp_path):
    with pytest.raises(FileNotFoundError, match='data_prep'): train(small(place, tmp_path/'no', data='data/none'))
    with pytest.raises(FileNotFoundError, match='-p split val -p masks exact'):
        train(small(place, tmp_path/'no', sample_every=1, val_data='data/none', val_images=str(place/'scenes'/'train2017')))
    assert not (tmp_path/'no').exists()


class Scaled(Accelerator):
    "float32 with a loss scaler: on a CPU accelerate has none, and scaling by powers of two changes no bit. Above a scale of 2**14 a gradient overflows."
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**16, growth_interval=3)

    def unscale_gradients(self, optimizer=None):
        each, = self._optimizers
        if self.scaler.get_scale() > 2.**14: each.param_groups[0]['params'][0].grad.fill_(float('inf'))
        self.scaler.unscale_(each.optimizer)


def test_an_update_that_overflows_is_none(place, tmp_path, monkeypatch):
    "Skipped updates leave no trace: weights, average and log are those without a scaler; the scale is taken up again."
    options = dict(steps=6, ema=.9, checkpoint_every=2, keep_checkpoints=9, log_every=1)
    train(small(place, tmp_path/'plain', **options))
    monkeypatch.setattr(training, 'Accelerator', Scaled)
    train(small(place, tmp_path/'scaled', **options))
    train(small(place, tmp_path/'parts', **options), stop_at=2), train(small(place, tmp_path/'parts', **options))
    scales = {run: [json.loads((tmp_path/run/'checkpoints'/f'step-{n:07d}'/'state.json').read_text())['scaler'] for n in (2, 4, 6)] for run in ('scaled', 'parts')}
    assert scales['scaled'] == scales['parts'] and [s['scale'] for s in scales['parts']] == [2.**14, 2.**14, 2.**15], 'updates 1 and 4 overflowed'
    rows = [[{k: v for k, v in json.loads(line).items() if k != 'samples_per_second'} for line in (tmp_path/run/'metrics.jsonl').open()] for run in ('plain', 'scaled', 'parts')]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 6
    for run in ('scaled', 'parts'):
        for name, tensor in weights(tmp_path/'plain').items(): assert torch.equal(tensor, weights(tmp_path/run)[name])


def test_gradients_that_always_overflow_end_a_run(place, tmp_path, monkeypatch):
    class Always(Scaled):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            self.scaler = torch.amp.GradScaler('cpu', init_scale=2.**-11)

        def unscale_gradients(self, optimizer=None):
            self._optimizers[0].param_groups[0]['params'][0].grad.fill_(float('inf'))
            super().unscale_gradients()
    monkeypatch.setattr(training, 'Accelerator', Always)
    with pytest.raises(ValueError, match='after update 0 the gradients overflow in float16 at any scale'): train(small(place, tmp_path/'run'))


def test_gradients_that_are_not_finite_end_a_run_before_they_are_saved(place, tmp_path, monkeypatch):
    config, loss = small(place, tmp_path/'run', steps=3, checkpoint_every=1, log_every=5), training.total_loss
    train(config, stop_at=1)
    monkeypatch.setattr(training, 'total_loss', lambda *args: loss(*args)*float('nan'))
    with pytest.raises(ValueError, match='the gradients of update 2 are not finite'): train(config)
    assert [c.name for c in (tmp_path/'run'/'checkpoints').iterdir()] == ['step-0000001']
