"""Flickr30K Entities: marks that are broken, files that are broken or lost, lists that are wrong, and the way there and back."""
import pytest
from hypothesis import given, settings, strategies as st

from tokencompose.core import write_text
from tokencompose.data.flickr30k import Entities, format_sentence, parse_sentence, Phrase, read_entities, read_flickr30k, Sentence, write_entities

LINE = '[/EN#7/people A man] in [/EN#8/clothing/other a blue shirt] sells [/EN#0/notvisual it] .'
XML = '''<annotation><filename>12.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>7</name><name>9</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>30</ymax></bndbox></object>
<object><name>7</name><bndbox><xmin>20</xmin><ymin>2</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
<object><name>8</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>5</name><scene>0</scene><nobndbox>1</nobndbox></object></annotation>'''


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path/'Annotations'/'12.xml', XML)
    write_text(tmp_path/'Sentences'/'12.txt', LINE + '\nA second one .\n')
    write_text(tmp_path/'val.txt', '12\n')
    return tmp_path


# ---- sentences

def test_phrases_of_a_line():
    sentence = parse_sentence(LINE + '\n')
    found = [(p.chain, p.kinds, sentence.words(p)) for p in sentence.phrases]
    assert found == [(7, ('people',), 'A man'), (8, ('clothing', 'other'), 'a blue shirt'), (0, ('notvisual',), 'it')]
    assert format_sentence(sentence) == LINE


def test_a_line_without_marks():
    assert parse_sentence('Nothing is marked .') == Sentence('Nothing is marked .', ())


@pytest.mark.parametrize('broken', ['[/EN#7/people A man is here .', '[/EN#x/people A man] .', '[/EN#7 A man] .', 'in [/EN#7/people ] .'])
def test_a_broken_mark_is_refused(broken):
    with pytest.raises(ValueError, match='marked in a broken way'): parse_sentence(broken)


WORDS = st.lists(st.sampled_from('a man in the blue shirt , sells café 猫'.split()), min_size=1, max_size=4).map(' '.join)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(WORDS, st.none() | st.integers(0, 999)), min_size=1, max_size=6))
def test_there_and_back(parts):
    text, phrases = '', []
    for words, chain in parts:
        if chain is not None: phrases.append(Phrase(chain, ('other', 'scene')[:1 + chain % 2], len(text), len(text) + len(words)))
        text += words + ' '
    sentence = Sentence(text.rstrip(), tuple(phrases))
    assert parse_sentence(format_sentence(sentence)) == sentence


# ---- the two files of a picture

def test_both_files(folder):
    e = read_entities(folder, '12')
    assert (e.file_name, e.size, e.scenes, e.unboxed) == ('12.jpg', (30, 40), frozenset({8}), frozenset({5}))
    assert e.boxes == {7: ((0, 1, 9, 29), (19, 1, 39, 19)), 9: ((0, 1, 9, 29),)}
    assert [s.text for s in e.sentences] == ['A man in a blue shirt sells it .', 'A second one .']


def test_what_is_written_is_read_again(folder):
    entities = read_entities(folder, '12')
    write_entities(folder/'again', entities)
    assert read_entities(folder/'again', '12') == entities
    text = (folder/'again'/'Annotations'/'12.xml').read_text()
    assert text.startswith('<annotation>\n  <filename>12.jpg</filename>\n  <size>\n    <width>40</width>') and text.endswith('</annotation>\n')
    assert (folder/'again'/'Sentences'/'12.txt').read_text() == LINE + '\nA second one .\n'


def test_the_xml_of_a_chain_without_a_box(tmp_path):
    write_entities(tmp_path, Entities('1', '1.png', (2, 3), (Sentence('a .', ()),), {}, frozenset({4}), frozenset({2})))
    lines = [line.strip() for line in (tmp_path/'Annotations'/'1.xml').read_text().splitlines()]
    expected = ['<object>', '<name>2</name>', '<scene>0</scene>', '<nobndbox>1</nobndbox>', '</object>', '<object>', '<name>4</name>', '<scene>1</scene>', '<nobndbox>0</nobndbox>', '</object>']
    assert lines[lines.index('<object>'):-1] == expected


@pytest.mark.parametrize('old, new, message', [
    ('<xmax>40', '<xmax>41', 'the box 20, 2, 41, 20 does not lie in the picture of 40x30'), ('<xmin>1<', '<xmin>one<', "xmin should be a whole number, got 'one'"),
    ('<xmin>1<', '<xmin>0<', 'does not lie in the picture'), ('<xmax>10', '<xmax>0', 'does not lie in the picture'),
    ('<ymin>2</ymin>', '', 'ymin should be a whole number, got None'), ('</annotation>', '', 'not valid XML'), ('<name>8</name>', '', 'no name'),
    ('<name>8</name>', '<name>eight</name>', "name should be a whole number, got 'eight'"), ('<height>30</height>', '', 'size/height should be a whole number'),
])
def test_a_broken_annotation_is_named(folder, old, new, message):
    write_text(folder/'Annotations'/'12.xml', XML.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught: read_entities(folder, '12')
    assert '12.xml' in str(caught.value)


def test_the_name_of_the_picture_may_be_missing(folder):
    write_text(folder/'Annotations'/'12.xml', XML.replace('<filename>12.jpg</filename>', ''))
    assert read_entities(folder, '12').file_name == '12.jpg'


def test_broken_sentences_are_named(folder):
    write_text(folder/'Sentences'/'12.txt', '[/EN#7 A man] .')
    with pytest.raises(ValueError, match='12.txt: A phrase is marked in a broken way'): read_entities(folder, '12')
    write_text(folder/'Sentences'/'12.txt', '\n\n')
    with pytest.raises(ValueError, match='12.txt holds no sentence'): read_entities(folder, '12')
    (folder/'Sentences'/'12.txt').unlink()
    with pytest.raises(FileNotFoundError, match='12.txt: the folder should hold'): read_entities(folder, '12')
    with pytest.raises(FileNotFoundError, match='13.xml: the folder should hold'): read_entities(folder, '13')


# ---- a split

def test_a_list_is_read_in_its_order(folder):
    for kind, end in (('Annotations', 'xml'), ('Sentences', 'txt')): (folder/kind/f'3.{end}').write_bytes((folder/kind/f'12.{end}').read_bytes())
    write_text(folder/'val.txt', '12\n3\n')
    assert [e.id for e in read_flickr30k(folder)] == ['12', '3']


def test_a_list_that_is_wrong_is_refused(folder):
    write_text(folder/'val.txt', '12\n12\n')
    with pytest.raises(ValueError, match='12 twice'): read_flickr30k(folder)
    write_text(folder/'val.txt', '\n')
    with pytest.raises(ValueError, match='names no picture'): read_flickr30k(folder)
    with pytest.raises(FileNotFoundError, match='test.txt'): read_flickr30k(folder, 'test')
