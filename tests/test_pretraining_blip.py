"""Questions about drawn scenes are answered by the scene, decoys are what they are called, answers do not depend on their neighbours."""
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings, strategies as st

from tokencompose.core import keyed_rng
from tokencompose.data.world import ATTRIBUTES, CLASSES, COLORS, draw_scene, held_out_attributes, own_colors, Scene, Thing
from tokencompose.metrics.vqa import load_vqa, question_ids, yes_share
from tokencompose.pretraining.blip import (answer_logits, ask, ASKED, attribute_rows, blip_answers, blip_table, blip_tokenizer, EXAM, exam_questions, new_blip,
                                           QUESTION_KINDS, QuestionPool, questions_of, yes_shares)
from tokencompose.pretraining.fit import scene_pool

NAME = '|'.join(sorted(CLASSES, key=len, reverse=True))
FORM = re.compile(rf'(?:(?:an?|the) )?(?:(?P<texture>{"|".join(ATTRIBUTES["texture"])}) )?(?:(?P<color>{"|".join(COLORS)}) )?(?P<name>{NAME})(?: on a (?P<plate>\w+) plate)?\?')
PLATE = re.compile(r'a (\w+) plate\?')


def read(text):
    "What a question asks for, from its words alone."
    if found := PLATE.fullmatch(text): return dict(plate=found[1])
    return {k: v for k, v in FORM.fullmatch(text).groupdict().items() if v}


def shows(scene, asked):
    return any(all(getattr(thing, k) == v for k, v in asked.items()) for thing in scene.things)


def scenes(key, mixture=ASKED):
    return draw_scene((key, 'questions', 0), mixture, distractors=.15)


@settings(max_examples=150, deadline=None)
@given(key=st.integers(0, 10**6))
def test_the_answer_is_what_the_scene_shows(key):
    scene = scenes(key)
    for question in questions_of(scene, 12, keyed_rng(key)):
        asked = read(question.text)
        assert shows(scene, asked) == question.answer
        kinds = set(asked) - {'name'} or {'thing'}
        assert kinds == {question.kind} and question.kind in QUESTION_KINDS
        if question.kind == 'color' and not question.answer:  # nobody could tell a plain apple from a red one
            assert not any(t.name == asked['name'] and not t.color and asked['color'] in own_colors(t.name) for t in scene.things)


@settings(max_examples=150, deadline=None)
@given(key=st.integers(0, 10**6))
def test_decoys_are_what_they_are_called(key):
    scene = scenes(key)
    for question in questions_of(scene, 12, keyed_rng(key)):
        asked, kind = read(question.text), question.kind
        assert bool(question.decoy) != question.answer
        if question.answer or 'name' not in asked: continue
        there = [t for t in scene.things if t.name == asked['name']]
        elsewhere = kind != 'thing' and any(getattr(t, kind) == asked[kind] for t in scene.things)
        if not there: sort = 'absent'
        elif elsewhere: sort = 'swap'
        else: sort = 'other' if getattr(there[0], kind) else 'plain'
        assert question.decoy == sort


def test_a_scene_of_decoys_alone_affirms_nothing_about_things():
    scene = Scene(0, 64, (), (Thing('1F511', (), color='red'),))
    assert not any(q.answer for q in questions_of(scene, 30, keyed_rng('alone')))
    assert ask(scene, 'thing', True, keyed_rng('alone')) is None


def test_half_of_the_questions_are_affirmed():
    asked = [q for i in range(200) for q in questions_of(scenes(i), 10, keyed_rng(i))]
    assert .42 < np.mean([q.answer for q in asked]) < .5  # some scenes show nothing but decoys
    assert {q.decoy for q in asked} == {'', 'swap', 'other', 'plain', 'absent'}
    for scene in scene_pool(100, EXAM, 'halves'):
        exam = exam_questions(scene)
        assert [q.answer for q in exam] == [True, False]*(len(exam)//2)


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    tokenizer = blip_tokenizer()
    model = new_blip(tokenizer).eval()
    for parameter in model.parameters(): parameter.data *= 3  # so that the answers differ
    return model, tokenizer


def test_every_word_of_a_question_is_in_the_vocabulary(small):
    _, tokenizer = small
    for i in range(50):
        for question in questions_of(scenes(i), 5, keyed_rng(i)):
            pieces = tokenizer.tokenize(question.text)
            assert '[UNK]' not in pieces and not any('##' in piece for piece in pieces)
            assert len(pieces) + 2 <= tokenizer.model_max_length
    assert '[UNK]' not in tokenizer.tokenize('a rubber duck?')


def test_answers_do_not_depend_on_their_neighbours(small):
    model, tokenizer = small
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    texts = [['a cat?'], ['a striped teddy bear on a round plate?', 'a car?'], ['the red hot dog?']]
    together = yes_shares(model, tokenizer, pixels, texts)
    assert [len(own) for own in together] == [1, 2, 1]
    for i, own in enumerate(texts):
        for k, text in enumerate(own):
            alone = yes_shares(model, tokenizer, pixels[i:i + 1], [[text]])[0][0]
            assert abs(alone - together[i][k]) < 1e-4
    assert np.ptp([share for own in together for share in own]) > 1e-3
    for a, b in zip(together, yes_shares(model, tokenizer, pixels, texts, batch=1)): assert np.allclose(a, b, atol=1e-4)


def test_the_questions_first_token_is_enc_and_the_share_is_of_yes_and_no(small):
    model, tokenizer = small
    ids, mask = question_ids(model, tokenizer, ['a cat?'])
    assert ids[0, 0] == len(tokenizer) + 1 == model.config.text_config.vocab_size - 1 and mask.sum() == 5
    logits = torch.zeros(len(tokenizer) + 2)
    logits[tokenizer.convert_tokens_to_ids('yes')], logits[5] = 1., 9.
    assert yes_share(logits, tokenizer).item() == pytest.approx(np.e/(1 + np.e))


def test_the_decoders_padding_matters_in_the_library(small):
    "The day it no longer does, the calls by length can go."
    model, tokenizer = small
    ids, mask = question_ids(model, tokenizer, ['a cat?'])
    begun, pixels = torch.full((1, 1), len(tokenizer)), torch.zeros(1, 3, 64, 64)
    with torch.no_grad(): ours, padded = (answer_logits(model, pixels, ids[None], mask[None], begun, way) for way in (False, True))
    assert (ours - padded).abs().max() > 1e-3


def test_a_part_of_the_pool_comes_through_the_autoencoder(small):
    from tokencompose.models import tiny_pipeline
    drawn = scene_pool(8, ASKED, 'through')
    plain, mixed = (QuestionPool(drawn, *small, vae=vae) for vae in (None, tiny_pipeline().vae))
    same = (plain.pictures == mixed.pictures).flatten(1).all(1)
    assert same.tolist() == [False]*4 + [True]*4 and torch.equal(plain.ids, mixed.ids)
    yes, no = small[1].convert_tokens_to_ids(['yes', 'no'])
    assert set(plain.answers.flatten().tolist()) == {yes, no}


def test_a_table_counts_scenes_and_sorts(small):
    table = blip_table(blip_answers(*small, scene_pool(30, EXAM, 'table')))
    assert table.loc[('all', 'all'), 'questions'] == sum(table.loc[(kind, 'all'), 'questions'] for kind in QUESTION_KINDS)
    for kind in QUESTION_KINDS: assert table.loc[(kind, 'yes'), 'questions'] == table.loc[(kind, 'no'), 'questions']


def test_the_attribute_exam_asks_what_can_be_seen():
    for kind, values in ATTRIBUTES.items():
        held, seen = (attribute_rows(kind, out, 999) for out in (True, False))
        assert len(held) == 3*len(values) and len(seen) + len(held) <= 25*len(values)
        texts = {row['text'] for row in held + seen}
        assert len(texts) == len(held) + len(seen) and 'a photo of a red apple.' not in texts
        assert sum((value, name) in held_out_attributes() for value in values for name in CLASSES) == len(held)


@pytest.mark.skipif(not (ROOT/'tokencompose/zoo/blip').is_dir(), reason='the zoo has no BLIP yet')
def test_the_one_of_the_zoo_is_small_and_good():
    folder = ROOT/'tokencompose'/'zoo'/'blip'
    assert (folder/'model.safetensors').stat().st_size <= 3e6
    blip = load_vqa(folder, device='cpu')
    answers = blip_answers(blip.model, blip.tokenizer, scene_pool(200, EXAM, 'zoo', distractors=.12))
    table = blip_table(answers)
    assert table.loc[('all', 'all'), 'mean'] > .93 and all(table.loc[(kind, 'all'), 'mean'] > .87 for kind in QUESTION_KINDS)
