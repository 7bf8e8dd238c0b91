"The cache of encoded samples: exact values, entries by content, interruptions, damaged files."
import shutil

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image, ImageDraw

from tokencompose.core import keyed_generator, keyed_randn
from tokencompose.data.cache import cache_keys, CachedDataset, encode_cache, image_moments, latents_from_moments, text_states
from tokencompose.data.dataset import collate, GroundingDataset, write_dataset
from tokencompose.data.masks import load_mask, save_mask
from tokencompose.models import model_fingerprint, tiny_pipeline

SIZES = [(4, 4), (8, 8)]
CAPTIONS = ['a red disc and a blue square', 'a blue square beside a disc', 'a red disc', 'a square', 'a red disc']


class Folder:
    "Five pictures on the disk, one caption twice, and a pipeline to encode them."
    def __init__(self, root):
        self.root, self.data, self.images, self.cache = root, root/'data', root/'pictures', root/'cache'
        self.images.mkdir()
        rows = []
        for i, text in enumerate(CAPTIONS):
            layer = Image.new('1', (40 + 8*i, 48))
            ImageDraw.Draw(layer).rectangle((8 + i, 8, 30, 20 + 2*i), fill=1)
            image = Image.new('RGB', layer.size, (200 - 20*i, 220, 240))
            image.paste('red', mask=layer)
            image.save(self.images/f'{i}.png')
            noun = 'square' if i == 3 else 'disc'
            rows.append(dict(file_name=f'{i}.png', text=text, nouns=[(noun, torch.from_numpy(np.array(layer))), ('zebra', None)]))
        write_dataset(self.data, rows)
        pipe = tiny_pipeline(CAPTIONS)
        self.vae, self.text_encoder, self.tokenizer = pipe.vae, pipe.text_encoder, pipe.tokenizer

    def set(self, resolution=32, **options): return GroundingDataset(self.data, self.images, self.tokenizer, resolution, **options)

    def encode(self, dataset=None, vae=None, **options):
        folder = options.pop('folder', self.cache)
        return encode_cache(dataset or self.set(), vae or self.vae, self.text_encoder, folder, progress=False, **options)

    def cached(self, folder=None, dataset=None, **options):
        return CachedDataset(dataset or self.set(), folder or self.encode(batch_size=2, shard=3), SIZES, progress=False, **options)


@pytest.fixture
def drawn(tmp_path): return Folder(tmp_path)


def close(a, b, atol=1e-5): torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_latents_are_those_of_the_library(drawn):
    pixels = torch.stack([drawn.set().pixel_values(i) for i in range(3)])
    keys = [(0, 'vae', 17, i) for i in range(3)]
    moments = image_moments(pixels, drawn.vae)
    with torch.no_grad(): posterior = drawn.vae.encode(pixels).latent_dist
    expected = posterior.sample([keyed_generator(*key) for key in keys])
    noise = keyed_randn(keys, moments[0].chunk(2)[0].shape)
    assert torch.equal(latents_from_moments(moments, noise), expected)
    close(latents_from_moments(moments, noise, .18215, .1), .18215*(expected - .1), 1e-6)


def test_the_log_variance_is_clamped_as_in_the_library():
    extreme = torch.tensor([[0., 50.], [1., -90.]]).reshape(2, 2, 1, 1)
    posterior = DiagonalGaussianDistribution(extreme)
    close(latents_from_moments(extreme, torch.ones(2, 1, 1, 1)), posterior.mean + posterior.std, 1e-6)


@pytest.mark.parametrize('indices', [[0, 1, 2, 3, 4], [3, 3, 0], [4]])
def test_a_cached_batch_is_the_online_batch_without_any_file(drawn, indices):
    dataset = drawn.set(mask_rule='majority')
    cached, direct = drawn.cached(dataset=dataset), collate([dataset[i] for i in indices], SIZES)
    for folder in (drawn.data, drawn.images, drawn.cache): shutil.rmtree(folder)
    got = cached.batch(indices)
    assert (got['ids'], got['captions']) == (direct['ids'], direct['captions'])
    close(got['moments'], image_moments(direct['pixel_values'], drawn.vae))
    close(got['encoder_hidden_states'], text_states(direct['input_ids'], drawn.text_encoder))
    for size in SIZES:
        assert torch.equal(got['targets'].masks[size], direct['targets'].masks[size])
        assert torch.equal(got['targets'].valid[size], direct['targets'].valid[size])
    assert torch.equal(got['targets'].token_ids, direct['targets'].token_ids)
    assert torch.equal(got['targets'].column_noun, direct['targets'].column_noun)


def test_exact_in_the_same_batches_and_close_in_others(drawn):
    cached, pixels = drawn.cached(), torch.stack([drawn.set().pixel_values(i) for i in range(2)])
    assert torch.equal(cached.batch([0, 1])['moments'], image_moments(pixels, drawn.vae))
    one_by_one = drawn.cached(drawn.encode(folder=drawn.root/'other', batch_size=1))
    close(one_by_one.moments, cached.moments)
    close(one_by_one.states, cached.states)


def test_half_precision_on_disk_full_precision_in_a_batch(drawn):
    half = drawn.cached(drawn.encode(dtype='float16'))
    assert half.moments.dtype == torch.float16 and half.batch([2])['moments'].dtype == torch.float32
    close(half.moments.float(), drawn.cached().moments, 5e-3)


def test_a_repeated_caption_is_stored_once(drawn):
    cached = drawn.cached()
    assert len(cached.states) == 4 and cached.state_row.tolist() == [0, 1, 2, 3, 2] and len(cached.moments) == 5
    tables = [cached.moments, cached.states, *cached.targets.masks.values(), *cached.targets.valid.values()]
    assert cached.nbytes() == sum(t.numel()*t.element_size() for t in tables)


class Counting(torch.nn.Module):
    "An autoencoder that counts images and stops after `limit`."
    def __init__(self, vae, limit):
        super().__init__()
        self.limit, self.seen, self.vae = limit, 0, vae
        self.config, self.device, self.dtype = vae.config, vae.device, vae.dtype

    def encode(self, x):
        self.seen += len(x)
        if self.seen > self.limit: raise KeyboardInterrupt
        return self.vae.encode(x)


def test_a_killed_run_goes_on_where_it_stopped(drawn):
    counting = Counting(drawn.vae, limit=4)
    with pytest.raises(KeyboardInterrupt): drawn.encode(vae=counting, batch_size=2, shard=2)
    counting.limit, counting.seen = 10**9, 0
    folder = drawn.encode(vae=counting, batch_size=4, shard=2)
    assert counting.seen == 1                                 # only the fifth image was missing
    assert drawn.encode(vae=counting) == folder and counting.seen == 1      # nothing to do
    close(drawn.cached(folder).moments, drawn.cached(drawn.encode(folder=drawn.root/'whole')).moments)


def test_processes_share_the_work(drawn):
    for rank in (0, 1): shared = drawn.encode(folder=drawn.root/'shared', share=(rank, 2))
    close(drawn.cached(shared).moments, drawn.cached().moments)


def test_models_come_back_in_their_mode(drawn):
    drawn.vae.train()
    drawn.text_encoder.eval()
    drawn.encode()
    assert drawn.vae.training and not drawn.text_encoder.training


def test_what_is_not_there_is_said(drawn):
    with pytest.raises(ValueError, match='5 of 5 samples have no moments'): drawn.cached(drawn.encode(), drawn.set(resolution=16))
    for refused in (lambda: drawn.encode(drawn.set(flip=.5)), lambda: drawn.cached(drawn.encode(), drawn.set(flip=.5))):
        with pytest.raises(ValueError, match='flip=0'): refused()


@pytest.mark.parametrize('kind', ['text', 'targets'])
def test_a_damaged_file_is_named(drawn, kind):
    folder = drawn.encode()
    drawn.cached(folder)
    next(folder.glob(f'{kind}-*')).write_bytes(b'half a file')
    with pytest.raises(ValueError, match=f'{kind}-.* cannot be read'): drawn.cached(folder)


def test_values_that_are_not_finite_are_refused(drawn):
    with torch.no_grad(): next(drawn.vae.parameters()).fill_(float('nan'))
    with pytest.raises(ValueError, match='moments of row 1 .*not finite'): drawn.encode()


def test_a_changed_caption_has_another_key(drawn):
    dataset = drawn.set()
    before = cache_keys(dataset)
    dataset.rows[0].text = 'a blue disc'
    after = cache_keys(dataset)
    assert [a == b for a, b in zip(before[1], after[1])] == [False, True, True, True, True] and before[0] == after[0]


def test_a_changed_mask_has_other_targets(drawn):
    before = drawn.cached(dataset=drawn.set(mask_rule='majority')).batch([0])['targets'].masks[8, 8]
    path = drawn.data/drawn.set().rows[0].masks[0]
    save_mask(path, ~load_mask(path))
    assert not torch.equal(drawn.cached(dataset=drawn.set(mask_rule='majority')).batch([0])['targets'].masks[8, 8], before)


def test_a_changed_weight_has_another_folder(drawn):
    name, folder = model_fingerprint(drawn.vae), drawn.encode()
    with torch.no_grad(): next(drawn.vae.parameters()).flatten()[0] += 1e-3
    assert model_fingerprint(drawn.vae) != name and drawn.encode() != folder
