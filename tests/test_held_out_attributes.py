"""Pairs of an attribute and a class that are held out: what is drawn and written without them, and that nothing else changes."""
import re

import pytest

from tokencompose.core import read_json
from tokencompose.data.world import draw_scene, held_out_attributes, held_out_pairs, PLATES, shown_attributes, VSR
from tokencompose.data.world_files import write_world
from tokencompose.pretraining.sd import world_scenes
from tokencompose.profiles import get_profile

UNSEEN = held_out_attributes()


def named(caption):
    "Held-out pairs that a caption names, read from its words alone."
    for value, name in UNSEEN:
        thing = rf'{name} on a {value} plate' if value in PLATES else rf'{value} (?:\w+ )?{name}'
        if re.search(rf'\b{thing}\b', caption.lower()): yield value, name


@pytest.mark.parametrize('profile', ['mini', 'mini_v'])
def test_no_scene_to_fine_tune_on_shows_one(profile):
    "All scenes of the profile (those of quick are the first of mini's)."
    settings = get_profile(profile)
    def draw(unseen): return [draw_scene((0, 'train2017', i), VSR, settings.resolution, held_out_pairs(), unseen=unseen) for i in range(settings.train_images)]
    plain, drawn = draw(frozenset()), draw(UNSEEN)
    assert not UNSEEN & set(shown_attributes(drawn))
    touched = [bool(UNSEEN & set(shown_attributes([scene]))) for scene in plain]
    assert [a != b for a, b in zip(plain, drawn)] == touched and sum(touched) < .03*len(plain)
    assert [len(a.things) for a in plain] == [len(b.things) for b in drawn]


@pytest.mark.parametrize('size', [64, 80])
def test_no_scene_of_the_second_pretraining_shows_one(size):
    scenes = world_scenes('attributes', 3000, size=size)
    assert not UNSEEN & set(shown_attributes(scenes)) and len(set(shown_attributes(scenes))) > .95*(275 - len(UNSEEN))
    for scene in scenes: assert not any(frozenset((a.name, b.name)) in held_out_pairs() for a in scene.things for b in scene.things)


def test_what_is_written_tells_of_none_and_all_else_is_as_it_was(tmp_path):
    count = 150
    write_world(tmp_path/'plain', train=count, val=3)
    write_world(tmp_path/'without', train=count, val=3, unseen=UNSEEN)
    there, here = (read_json(tmp_path/kind/'annotations'/'captions_train2017.json')['annotations'] for kind in ('plain', 'without'))
    told = {row['image_id'] for row in there if list(named(row['caption']))}
    assert told and not [row for row in here if list(named(row['caption']))]
    assert {a['image_id'] for a, b in zip(there, here) if a != b} == told
    for i in range(count):
        a, b = ((tmp_path/kind/'train2017'/f'{i:012d}.png').read_bytes() for kind in ('plain', 'without'))
        assert (a != b) == (i in told)
    for name in ('annotations/captions_val2017.json', 'held_out_pairs.json', 'flickr30k/Sentences/0.txt'):
        assert (tmp_path/'plain'/name).read_bytes() == (tmp_path/'without'/name).read_bytes()
    assert {tuple(pair) for pair in read_json(tmp_path/'without'/'held_out_attributes.json')} == UNSEEN
    assert not (tmp_path/'plain'/'held_out_attributes.json').exists()
