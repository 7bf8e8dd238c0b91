"A model probed on held-out pictures."
import pytest
import torch
from PIL import Image

from tokencompose.data.dataset import GroundingDataset, write_dataset
from tokencompose.data.world import ANY, draw_scene, render
from tokencompose.metrics.grounding import noised_maps, probe
from tokencompose.metrics.overlap import grounding_result
from tokencompose.models import tiny_pipeline


@pytest.fixture(scope='module')
def pipe():
    pipe = tiny_pipeline(['a cat and a teddy bear next to a dog.']*3)
    pipe.vae.register_to_config(scaling_factor=.5)
    return pipe


def pictures(folder, pipe, text=None):
    rows = []
    for i in range(3):
        scene = draw_scene((0, 'probe set', i), ANY)
        picture, masks = render(scene)
        Image.fromarray(picture).save(folder/f'{i}.png')
        nouns = dict(zip([thing.name for thing in scene.things], torch.from_numpy(masks).bool()))
        rows.append(dict(file_name=f'{i}.png', text=text or 'a photo of ' + ' and '.join(nouns), nouns=list(nouns.items())))
    write_dataset(folder, rows)
    return GroundingDataset(folder, None, pipe.tokenizer, 64)


def test_the_noise_belongs_to_the_seed(pipe, tmp_path):
    items = [pictures(tmp_path, pipe)[0]]
    maps = noised_maps(pipe, items)
    torch.testing.assert_close(noised_maps(pipe, items), maps)
    assert (noised_maps(pipe, items, seed=1) - maps).abs().max() > 1e-5


def test_the_batch_does_not_change_the_result(pipe, tmp_path):
    dataset = pictures(tmp_path, pipe)
    one, all_of_them = probe(pipe, dataset, batch=1), probe(pipe, dataset, batch=3)
    assert (one.images, one.nouns, one.left_out) == (all_of_them.images, all_of_them.nouns, 0)
    for name, values in one.scores.items(): torch.testing.assert_close(values, all_of_them.scores[name], atol=1e-5, rtol=0, equal_nan=True)
    assert grounding_result(one.scores, one.images)['n']['images'] == 3


def test_captions_that_name_nothing(pipe, tmp_path):
    with pytest.raises(ValueError, match='None of the 3 captions .* nothing to score'): probe(pipe, pictures(tmp_path, pipe, 'a picture'))
