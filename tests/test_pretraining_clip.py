"Captions that are a little false, the contrastive loss of twins, and the examination answered one scene at a time."
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from tokencompose.core import keyed_rng
from tokencompose.data.captions import image_features, text_features
from tokencompose.data.world import a_or_an, captions_of, Mixture, relation_of, render, VSR
from tokencompose.models import load_tokenizer
from tokencompose.pretraining.clip import CaptionedScenes, contrastive_loss, exam_answers, exam_table, FALSE_KINDS
from tokencompose.pretraining.clip import false_kinds, false_scene, new_clip, new_processor, VAGUE
from tokencompose.pretraining.fit import scene_pool

LOOKS = scene_pool(50, Mixture((0, 0, 1), .5, attributes=.4), 'clip look')
SCENE = next(s for s in LOOKS if len(false_kinds(s, 'where')) == 4)
ALONE = dataclasses.replace(SCENE, things=SCENE.things[:1])
CHANGED = {kind: false_scene(SCENE, kind, keyed_rng(1, kind)) for kind in FALSE_KINDS}


def names(scene):
    return [t.name for t in scene.things]


# ---- false captions

def test_another_noun():
    assert sum(a != b for a, b in zip(SCENE.things, CHANGED['noun'].things)) == 1
    assert len(set(names(CHANGED['noun']))) == 3 and set(names(CHANGED['noun'])) != set(names(SCENE))


def test_another_attribute():
    assert names(CHANGED['attribute']) == names(SCENE)
    assert sum(a.phrase() != b.phrase() for a, b in zip(SCENE.things, CHANGED['attribute'].things)) == 1


def test_one_left_out():
    assert len(CHANGED['omission'].things) == 2 and set(CHANGED['omission'].things) < set(SCENE.things)


@pytest.mark.parametrize('pair', [(0, 1), (1, 2), (2, 0)])
def test_mirrored_relations_are_the_opposite_ones(pair):
    opposite = {'to the left of': 'to the right of', 'above': 'below'}
    opposite |= {there: here for here, there in opposite.items()}
    before, after = (relation_of(*(s.things[k] for k in pair)) for s in (SCENE, CHANGED['relation']))
    assert after == opposite[before]


def test_what_can_be_false():
    assert false_kinds(ALONE, 'where')[0] == 'noun'
    assert 'relation' not in false_kinds(SCENE, 'list') and 'omission' not in false_kinds(ALONE, 'where')


# ---- the pool

def test_true_short_captions_are_known():
    scenes = scene_pool(40, Mixture((.2, .3, .3, .1, .1), .5, attributes=.4), 'clip look')
    pool = CaptionedScenes(scenes, load_tokenizer('tokencompose/zoo/sd'))
    true = (pool.facts[:, None] == pool.said[None, :, None]).any(-1)
    short = [captions_of(scene)[3]['caption'] for scene in scenes]
    for i, scene in enumerate(scenes):
        sayable = {f'there is {p}.' for t in scene.things for p in (t.phrase(), a_or_an(t.name))}
        assert true[i].tolist() == [said in sayable for said in short]
    assert {captions_of(scene)[4]['caption'] for scene in scenes} <= set(VAGUE)


# ---- the loss

def test_loss_of_twins():
    "Two scenes of the same single thing: neither's caption counts against the other."
    def e(*values): return np.log(np.exp(values).sum())
    logits, yes = torch.tensor([[2., 0, 1, 0, 9, 9, 0], [0., 3, 0, 1, 0, 2, 0]]), torch.ones(2, 2) > 0
    to_text = (e(2, 1, 0, 0) - 2 + e(3, 0, 1, 0) - 3)/2
    to_picture = (e(2, 0) - 1 + e(0, 3) - 1.5 + e(9, 0) - 4.5 + e(9, 2) - 5.5)/4
    assert abs(contrastive_loss(logits, yes, yes, yes[0]).item() - (to_text + to_picture)/2) < 1e-5


# ---- the examination

@pytest.fixture(scope='module')
def exam():
    "A model that knows nothing, its scenes and its answers."
    tokenizer = load_tokenizer('tokencompose/zoo/sd')
    torch.manual_seed(0)
    model, processor, scenes = new_clip(tokenizer).eval(), new_processor(tokenizer), scene_pool(128, VSR, 'clip look')
    return model, processor, scenes, exam_answers(model, processor, scenes)


def seen(exam, scene):
    return image_features(*exam[:2], [Image.fromarray(render(scene)[0])])


def read(exam, text):
    return text_features(*exam[:2], [text])


def cosine(exam, scene, text):
    return (seen(exam, scene)*read(exam, text)).sum().item()


@pytest.mark.parametrize('i', range(8))
def test_answers_again_one_scene_at_a_time(exam, i):
    scene, answers = exam[2][i], exam[3]
    scores = [cosine(exam, scene, c['caption']) for c in captions_of(scene)]
    place = int(np.argmax(scores))
    assert bool(answers['best'][i]) == (place < 3 or place == 3 and len(scene.things) == 1)
    false = captions_of(false_scene(scene, 'noun', keyed_rng('exam', 'noun', scene.id)))[0]['caption']
    assert bool(answers['noun'][i]) == (scores[0] > cosine(exam, scene, false))


def test_matches_again_one_scene_at_a_time(exam):
    scenes, answers = exam[2][:64], exam[3]
    lists, picture = [captions_of(s)[0]['caption'] for s in scenes], seen(exam, scenes[5])
    to_texts = [(picture*read(exam, text)).sum().item() for text in lists]
    assert bool(answers['to_text'][5]) == (int(np.argmax(to_texts)) == 5)
    text = read(exam, lists[5])
    to_pictures = [(seen(exam, scene)*text).sum().item() for scene in scenes]
    assert bool(answers['to_picture'][5]) == (int(np.argmax(to_pictures)) == 5)


def test_how_many_scenes_each_question_is_asked_of(exam):
    _, _, scenes, answers = exam
    several = sum(len(s.things) > 1 for s in scenes)
    attributes = sum('attribute' in false_kinds(s, 'list') for s in scenes)
    assert {name: len(values) for name, values in answers.items()} == dict(
        best=128, blind=128, noun=128, attribute=attributes, omission=several, relation=several,
        to_text=128, to_picture=128)


def test_few_scenes_are_not_asked_to_be_told_apart(exam):
    table = exam_table(exam_answers(*exam[:2], exam[2][:3]))
    assert 'to_text' not in table.index and table.loc['best', 'scenes'] == 3
