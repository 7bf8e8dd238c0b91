"""Prompts that ask for attributes and relations: the text says what the row says, held-out pairs are marked, every row is a function of its number."""
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from tokencompose.core import keyed_rng
from tokencompose.data.attribute_prompts import attribute_prompts, attributed_things, GENEVAL_TASKS, geneval_prompts, pairs_of, PUBLISHED_RELATIONS
from tokencompose.data.world import a_or_an, ATTRIBUTES, CLASSES, held_out_attributes, own_colors
from tokencompose.metrics.compbench import CATEGORIES
from tokencompose.sampling import prompt_texts

KINDS = dict(color='color', shape='plate', texture='texture')
ALL = [*((attribute_prompts, name) for name in CATEGORIES), *((geneval_prompts, name) for name in GENEVAL_TASKS)]


def words_of(thing):
    "A thing of a row in words, without the library's own phrase."
    words = ' '.join(thing[kind] for kind in ('texture', 'color', 'name') if kind in thing)
    return a_or_an(words) + (f' on a {thing["plate"]} plate' if 'plate' in thing else '')


@pytest.mark.parametrize('draw, name', ALL)
def test_the_text_says_what_the_row_says(draw, name):
    rows = draw(name, 24)
    for row in rows:
        places = [row['text'].index(words_of(thing)) for thing in row['things']]
        assert places == sorted(places) and row['phrases'] == [words_of(t) for t in row['things']]
        assert len(set(row['objects'])) == len(row['objects']) == len(row['things'])
        pairs = {(t[kind], t['name']) for t in row['things'] for kind in ATTRIBUTES if kind in t}
        assert {tuple(pair) for pair in row['held_out']} == pairs & held_out_attributes()
        assert not any(value in own_colors(name) for value, name in pairs)
        values = [value for value, _ in pairs]
        assert len(set(values)) == len(values)
    assert len({row['text'] for row in rows}) == len(rows)


@pytest.mark.parametrize('draw, name', ALL)
def test_a_row_depends_on_its_number_and_the_seed_alone(draw, name):
    rows = draw(name, 20)
    assert draw(name, 7) == rows[:7]
    assert name == 'single_object' or draw(name, 20, seed=1) != rows


def test_all_rows_together_can_be_drawn():
    rows = [row for draw, name in ALL for row in draw(name, 20)]
    assert len(prompt_texts(rows)) == len(rows) == 20*len(ALL)


@pytest.mark.parametrize('category', CATEGORIES)
def test_the_rows_of_a_category(category):
    rows = attribute_prompts(category, 24)
    assert all(row['category'] == category for row in rows)
    bound = category in KINDS or category == 'complex'
    assert [bool(row['held_out']) for row in rows] == [bound and i % 3 == 2 for i in range(24)]
    for row in rows:
        kinds = [[kind for kind in ATTRIBUTES if kind in thing] for thing in row['things']]
        if category in KINDS: assert kinds == [[KINDS[category]]]*2
        elif category == 'complex': assert sorted(itertools.chain(*kinds)) == sorted({kind for own in kinds for kind in own}) and all(len(own) == 1 for own in kinds)
        else: assert kinds == [[], []]
        between = row['text'].split(words_of(row['things'][0]))[1].split(words_of(row['things'][1]))[0].strip()
        if 'relation' in row: assert PUBLISHED_RELATIONS[between] == row['relation']
        else: assert between == ('and' if category in KINDS else 'near')
    assert (category == 'complex') == ('kind' in rows[0])


def test_geneval_clauses():
    for task in GENEVAL_TASKS:
        for row in geneval_prompts(task, 12):
            assert row['tag'] == task and row['exclude'] == [] and row['text'].startswith('a photo of ')
            assert [c['count'] for c in row['include']] == [1]*len(row['things'])
            told = {(c['class'], c.get('color')) for c in row['include']}
            assert told == {(t['name'], t.get('color')) for t in row['things']}
            if task == 'position':
                target, subject = row['include']
                words, place = subject['position']
                assert place == 0 and target['class'] == row['objects'][1] and f'{subject["class"]} {"to the " if " of" in words else ""}{words}' in row['text']
    assert [row['objects'][0] for row in geneval_prompts('single_object', 99)] == list(CLASSES)


@settings(max_examples=60, deadline=None)
@given(key=st.integers(0, 10**6), kinds=st.lists(st.sampled_from(['', *ATTRIBUTES]), min_size=1, max_size=3))
def test_things_are_of_the_kinds_that_are_asked_for(key, kinds):
    if any(kind and kinds.count(kind) > len(ATTRIBUTES[kind]) for kind in kinds):
        with pytest.raises(ValueError, match='no 3 different things'): attributed_things(keyed_rng(key), kinds)
        return
    things = attributed_things(keyed_rng(key), kinds)
    assert [[kind for kind in ATTRIBUTES if getattr(t, kind)] for t in things] == [[k] if k else [] for k in kinds]
    assert not held_out_attributes() & set(pairs_of(things))


@pytest.mark.parametrize('call, message', [
    (lambda: attribute_prompts('colour', 1), "category: 'colour' is not one of color"),
    (lambda: geneval_prompts('counting', 1), 'a scene shows a class once'),
    (lambda: geneval_prompts('two', 1), "task: 'two' is not one of single_object"),
    (lambda: attributed_things(keyed_rng(0), ['', ''], held_out=True), 'none, none and a held-out pair'),
    (lambda: attribute_prompts('texture', 2000), 'ask for fewer')])
def test_what_cannot_be_asked(call, message):
    with pytest.raises(ValueError, match=message): call()
