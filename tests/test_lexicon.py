"""The lexicon: its files are clean and complete, its constants are what they were, and its spelling is right."""
import hashlib
import json
import re

import pytest
from conftest import ROOT

from tokencompose.data import lexicon
from tokencompose.data.classes import ADE20K_100, COCO_80
from tokencompose.data.lexicon import COMPOUNDS, is_stop_noun, plural_noun, read_words, STOP_NOUNS, tagged_words, verb_forms, words_of

FILES = sorted((ROOT/'tokencompose'/'data'/'words').glob('*.txt'))
DIGEST = '1038437319d41fd2d96236bf518cdbe2207c9beefeb47a831da3731f0cc07909'  # of all constants as they were when the words stood in the module


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_list_is_clean(path):
    text = path.read_bytes().decode('utf-8')
    first, *lines = text.splitlines()
    assert first.startswith('# ') and text.endswith('\n') and '\r' not in text
    assert lines and all(re.fullmatch(r"[A-Za-z0-9'./-]+( [A-Za-z0-9'./-]+)*", line) for line in lines), 'an entry a line, words separated by one space'
    assert len(set(lines)) == len(lines) and read_words(path.stem) == tuple(lines)


def test_every_list_is_read():
    used = {name.replace('nouns_{topic}', '') for name in re.findall(r"read_words\(f?'(.+?)'\)", (ROOT/'tokencompose'/'data'/'lexicon.py').read_text())} - {''}
    assert used | {f'nouns_{topic}' for topic in lexicon.TOPICS} == {path.stem for path in FILES}


def test_the_constants_are_what_they_were():
    "The tagger of the zoo learned from exactly these; whoever adds a word changes what it would be made from, and renews the digest."
    names = ('ADJECTIVES CLASS_NOUNS COLOURS COMMON_NOUNS COMPARED COMPOUNDS DEGREES INTRANSITIVES MANNERS MASS_NOUNS MATERIALS NOUNS OTHER_NAMES PARTICIPLES '
             'PLACE_NAMES PLURAL_NOUNS STOP_NOUNS TRANSITIVES WEARING').split()
    values = {name: getattr(lexicon, name) for name in names}
    assert isinstance(values['NOUNS'], dict) and isinstance(values['STOP_NOUNS'], frozenset)
    assert all(isinstance(value, tuple) for name, value in values.items() if name not in ('NOUNS', 'STOP_NOUNS'))
    values['STOP_NOUNS'] = sorted(STOP_NOUNS)
    assert hashlib.sha256(json.dumps(values).encode()).hexdigest() == DIGEST


def test_reading_lists():
    assert words_of('cat, stop sign,\ndog, cat,') == ('cat', 'stop sign', 'dog')
    assert tagged_words('polar/JJ bear', 'NN') == (('polar', 'JJ'), ('bear', 'NN'))
    with pytest.raises(FileNotFoundError): read_words('no_such_list')


def test_tags_are_penn_tags():
    tags = {tag for path in FILES for entry in read_words(path.stem) for word in entry.split(' ') if '/' in word for tag in word.split('/')[1:]}
    assert tags <= {'JJ', 'JJR', 'JJS', 'VBN', 'VBG', 'IN', 'NN', 'NNS', 'NNP', 'CD', 'RB', 'RP', 'TO', 'DT', 'POS', 'VB', 'CC'}, tags


def test_verbs_are_regular_or_have_three_forms():
    assert {len(entry.split(' ')) for entry in lexicon.INTRANSITIVES + lexicon.TRANSITIVES} == {1, 3}


@pytest.mark.parametrize('tag, verbs, forms', [
    ('VBG', 'sit lie open cut see ski row fix eat swim tie begin taxi quit ride', 'sitting lying opening cutting seeing skiing rowing fixing eating swimming tying beginning taxiing quitting riding'),
    ('VBZ', 'watch carry play go pass mix ride have', 'watches carries plays goes passes mixes rides has'),
    ('VBD', 'stop carry play bake park visit', 'stopped carried played baked parked visited'),
])
def test_forms_of_verbs(tag, verbs, forms):
    assert [verb_forms(verb)[tag] for verb in verbs.split()] == forms.split()


def test_forms_of_an_irregular_verb():
    assert verb_forms('ride rode ridden') == dict(VB='ride', VBP='ride', VBZ='rides', VBG='riding', VBD='rode', VBN='ridden')


def test_plurals():
    nouns, plurals = 'cat bus box puppy boy knife sheep watch piano man', 'cats buses boxes puppies boys knives sheep watches pianos men'
    assert [plural_noun(noun) for noun in nouns.split()] == plurals.split()


@pytest.mark.parametrize('phrase, stop', [('front', True), ('Front', True), ('sides', True), ('back side', True), ('Pictures', True), ('activities', True),
                                          ('top shelf', False), ('side table', False), ('cat', False), ('glass', False), ('bus', False), ('front door', False)])
def test_stop_nouns(phrase, stop): assert is_stop_noun(phrase) is stop


def test_compounds():
    assert all(' ' in compound for compound in COMPOUNDS)
    assert {name for name in COCO_80 + ADE20K_100 if ' ' in name} <= set(COMPOUNDS)
