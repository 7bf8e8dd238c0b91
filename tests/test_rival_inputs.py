"What the rivals are told: layouts, token positions, phrases, and files of inputs that are kept or refused."
import json
from collections import Counter

import pytest

from tokencompose.core import read_json
from tokencompose.data.classes import COCO_80
from tokencompose.metrics.multigen import draw_prompts, prompt_row
from tokencompose.models import build_tokenizer
from tokencompose.rivals.inputs import all_inputs, grid_boxes, make_inputs, object_boxes, object_spans, object_tokens
from tokencompose.rivals.inputs import parse_spans, phrase_inputs, row_inputs, save_inputs

NAMES = ['cat', 'dog', 'tie', 'bus', 'cup']
TEXT = 'a red cat and a wooden chair on grass'
MARKED = dict(unique_id=3, text='A dog and a dog in a red car', size=[40, 80], phrases=[
    dict(words='A dog', start=0, end=5, boxes=[[0, 0, 39, 39]]),
    dict(words='a dog', start=10, end=15, boxes=[[40, 10, 59, 29], [60, 0, 79, 9]]),
    dict(words='a red car', start=19, end=28, boxes=[])])


@pytest.fixture(scope='module')
def tokenizer():
    texts = ['a photo of a cat, a dog, a microwave oven, and a oven.', 'a photo of a hot dog and a teddy bear']
    return build_tokenizer(texts*3, merges=70)


def phrases(text, spans): return [text[a:b] for a, b in spans]


@pytest.mark.parametrize('n', range(1, 13))
def test_boxes_of_a_grid_keep_apart(n):
    boxes = grid_boxes(n)
    assert len(set(boxes)) == n and all(.0499 <= side <= .9501 for box in boxes for side in box)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] + .0499 <= b[0] or b[2] + .0499 <= a[0] or a[3] + .0499 <= b[1] or b[3] + .0499 <= a[1]


def test_fuller_rows_are_on_top():
    assert [len([b for b in grid_boxes(5) if b[1] == y]) for y in (.05, .525)] == [3, 2]
    with pytest.raises(ValueError, match='at least one object'): grid_boxes(0)


def test_every_object_is_everywhere_in_turn():
    orders = [tuple(map(tuple, sum(object_boxes(NAMES, i), []))) for i in range(40)]
    assert {frozenset(order) for order in orders} == {frozenset(grid_boxes(5))}
    assert len(set(orders)) > 20 and {order[0] for order in orders} == set(grid_boxes(5))


def test_a_relation_is_between_two():
    with pytest.raises(ValueError, match='between 3 objects'): object_boxes(NAMES[:3], 0, relation='left')


@pytest.mark.parametrize('relation, ordered', [
    ('to the left of', lambda a, b: a[2] < b[0]), ('to the right of', lambda a, b: a[0] > b[2]),
    ('above', lambda a, b: a[3] < b[1]), ('below', lambda a, b: a[1] > b[3])])
def test_boxes_of_a_row_of_visor_stand_as_it_says(relation, ordered, tokenizer):
    row = dict(unique_id=5, num_objects=2, obj_1_attributes=['cat'], obj_2_attributes=['dog'], rel_type=relation,
               text=f'a cat {relation} a dog')
    (first,), (second,) = row_inputs(row, tokenizer).boxes
    assert ordered(first, second)


def test_a_relation_under_our_own_key(tokenizer):
    row = dict(text='a cat left of a dog', objects=['cat', 'dog'], relation='left')
    assert row_inputs(row, tokenizer).boxes[0] == [(.05, .25, .45, .75)]


def test_tokens_of_names_that_share_words(tokenizer):
    text = 'a photo of a cat, a dog, a microwave oven, and a oven.'
    ids = object_tokens(text, ['dog', 'oven', 'microwave oven'], tokenizer)
    assert not set(ids[1]) & set(ids[2])


def test_tokens_beyond_the_window(tokenizer):
    assert object_tokens('a red '*30 + 'dog', ['dog'], tokenizer) == [[]]


@pytest.mark.parametrize('parse, message', [
    ('(NP (DT a) (NN cow))', "'cow' is not in the prompt"), ('(NP (DT a)', '1 brackets are not closed'),
    ('(NP a) )', 'bracket too many')])
def test_bad_parses(parse, message):
    with pytest.raises(ValueError, match=message): parse_spans(TEXT, parse)


def test_the_article_belongs_to_the_phrase(tokenizer):
    assert phrases('the oven', object_spans('the oven', ['oven'], tokenizer)) == ['the oven']


def test_marked_phrases_have_their_own_tokens_and_boxes(tokenizer):
    says = phrase_inputs(MARKED, tokenizer)
    assert says['boxes'] == [[(0, 0, .5, 1)], [(.5, .25, .75, .75), (.75, 0, 1, .25)]]
    ids = tokenizer(MARKED['text']).input_ids
    assert [tokenizer.decode([ids[i] for i in places]).strip() for places in says['token_ids']] == ['a dog']*2
    assert max(says['token_ids'][0]) < min(says['token_ids'][1])


def test_a_sentence_without_boxes_is_one_thing(tokenizer):
    blind = phrase_inputs(dict(MARKED, phrases=MARKED['phrases'][2:]), tokenizer)
    assert (blind['concepts'], blind['boxes']) == ([MARKED['text']], [[(0, 0, 1, 1)]])
    assert phrases(MARKED['text'], blind['spans']) == ['a red car']


def test_rows_with_marked_phrases(tokenizer):
    inputs = row_inputs(MARKED, tokenizer)
    keys = ('objects', 'concepts', 'boxes', 'token_ids', 'spans')
    assert [len(getattr(inputs, key)) for key in keys] == [2, 2, 2, 2, 3]
    assert row_inputs(MARKED, tokenizer, spans=[(0, 5)]).spans == ((0, 5),)
    assert row_inputs(MARKED, tokenizer, objects=['dog']).boxes == ([(.05, .05, .95, .95)],)


@pytest.mark.parametrize('change, message', [
    (dict(boxes=[[(0, 0, 1.5, 1)]]), 'x0 < x1 <= 1'), (dict(boxes=[[(.5, 0, .5, 1)]]), 'x0 < x1'),
    (dict(boxes=[(0, 0, 1, 1)]), r'should be a list of \[x0, y0, x1, y1\]'), (dict(boxes=[[]]), "boxes of 'cat'"),
    (dict(boxes=[[(0, 0, 1, 1)]]*2), '2 boxes for 1 objects'), (dict(token_ids=[[0]]), 'positions from 1'),
    (dict(token_ids=[2]), "token_ids of 'cat'"), (dict(weights=[7.5, 3.]), '2 weights for 1 concepts'),
    (dict(weights=['7']), 'should be numbers'), (dict(spans=[(2, 9)]), 'within the 5 characters'),
    (dict(concepts=['']), 'concepts should be texts'), (dict(boxs=[]), "did you mean 'boxes'")])
def test_bad_inputs(change, message, tokenizer):
    with pytest.raises(ValueError, match=message): make_inputs('a cat', ['cat'], tokenizer, **change)


ROWS = [prompt_row(0, ['cat', 'dog']), prompt_row(1, ['oven', 'teddy bear', 'dog'])]


def plain(inputs): return {text: json.dumps(i.to_dict()) for text, i in inputs.items()}


def test_what_was_saved_is_read_whatever_the_seed_is_now(tokenizer, tmp_path):
    path, ruled = tmp_path/'inputs.json', all_inputs(ROWS, tokenizer)
    save_inputs(path, ruled)
    assert plain(all_inputs(ROWS, tokenizer, str(path), seed=5)) == plain(ruled)
    save_inputs(path, {ROWS[0]['text']: ruled[ROWS[0]['text']]})
    assert len(read_json(path)) == 2  # nothing is lost


def test_inputs_never_change_under_a_picture(tokenizer, tmp_path):
    path, ruled = tmp_path/'inputs.json', all_inputs(ROWS, tokenizer)
    save_inputs(path, ruled)
    with pytest.raises(ValueError, match='other inputs for the prompt'): save_inputs(path, all_inputs(ROWS, tokenizer, seed=6))
    (tmp_path/'0_0.png').touch()
    with pytest.raises(ValueError, match='drawn without inputs'): save_inputs(tmp_path/'other.json', ruled)


def by_hand(tmp_path, tokenizer, *entries):
    (tmp_path/'inputs.json').write_text(json.dumps(entries))
    return all_inputs(ROWS, tokenizer, str(tmp_path/'inputs.json'))


def test_a_file_changes_some_keys_of_some_prompts(tokenizer, tmp_path):
    ruled, (first, second) = all_inputs(ROWS, tokenizer), [row['text'] for row in ROWS]
    changed = by_hand(tmp_path, tokenizer, dict(unique_id=1, weights=[7.5, 7.5, 2]), dict(text=first, boxes=[[[0, 0, .5, 1]], [[.5, 0, 1, 1]]]))
    assert changed[second].weights == (7.5, 7.5, 2) and changed[second].boxes == ruled[second].boxes
    assert changed[first].boxes[0] == [[0, 0, .5, 1]]
    assert by_hand(tmp_path, tokenizer, dict(unique_id=99)) == ruled  # a longer file serves a shorter list


@pytest.mark.parametrize('entries, message', [
    ([dict(unique_id=0, weight=[1])], "unknown key 'weight'"), ([dict(weights=[1])], 'which prompt is meant'),
    ([dict(unique_id=0, text='a cow')], "reads 'a photo of a cat and a dog.'"),
    ([dict(unique_id=0, weights=[1])], 'inputs.json: Inputs of the prompt'),
    ([dict(unique_id=0, weights=[1, 2])]*2, 'two entries'), (['x'], 'list of objects'),
    ([dict(unique_id=0, boxes=3)], 'boxes: expected tuple')])
def test_bad_files(entries, message, tokenizer, tmp_path):
    with pytest.raises((ValueError, TypeError), match=message): by_hand(tmp_path, tokenizer, *entries)


def test_a_whole_benchmark():
    "Every object finds its place, and none is always in the same box."
    many = all_inputs(draw_prompts(COCO_80, 200, seed=0), build_tokenizer(COCO_80*3, merges=800, max_length=77))
    assert len(many) == 200
    for inputs in many.values():
        assert [len(v) for v in (inputs.objects, inputs.concepts, inputs.boxes, inputs.token_ids, inputs.spans)] == [5, 5, 5, 5, 7]
    assert Counter(b[0] for i in many.values() for b in i.boxes[:1]).most_common()[-1][1] > 20
