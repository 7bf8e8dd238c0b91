"Nouns among tokens that can be counted by hand; `test_captions.py` has captions that people wrote."
import pytest
from transformers import CLIPTokenizer

from tokencompose.data.nouns import align_nouns, fast_tokenizer, noun_spans, NounTokens, plot_alignment, REASONS, toy_tokenizer

WORDS = 'a cat next to hot dog oven microwave red'.split()
TOKENIZER = toy_tokenizer(WORDS)


def ids(*args, **kwargs):
    return [record.token_ids for record in align_nouns(*args, TOKENIZER, **kwargs)]


def reason(caption, noun, **options):
    return align_nouns(caption, [noun], TOKENIZER, **options)[0].reason


@pytest.fixture
def slow():
    return toy_tokenizer(WORDS, CLIPTokenizer, pad_token='!')


# ---- tokenizers

def test_one_character_of_several_tokens():
    assert len(TOKENIZER('İ', add_special_tokens=False).input_ids) > 1


@pytest.mark.parametrize('text', ['a cat next to a caterpillar', "the DOG's 12 ovens!", ''])
def test_fast_twin_has_the_ids_of_the_slow_tokenizer(slow, text):
    assert fast_tokenizer(slow)(text).input_ids == slow(text).input_ids


def test_fast_twin_keeps_padding_and_length(slow):
    twin = fast_tokenizer(slow)
    assert (twin.pad_token_id, twin.model_max_length) == (slow.pad_token_id, 77)


def test_added_tokens_renew_the_twin(slow):
    "Textual inversion adds tokens like this."
    fast_tokenizer(slow)
    slow.add_tokens(['<mycat>'])
    assert fast_tokenizer(slow)('a <mycat> oven').input_ids == slow('a <mycat> oven').input_ids


def test_a_tokenizer_without_fast_form_is_named():
    class OddTokenizer(CLIPTokenizer): pass
    with pytest.raises(ValueError, match='OddTokenizer has no fast form'): fast_tokenizer(toy_tokenizer(WORDS, OddTokenizer))


def test_a_slow_tokenizer_is_used_where_both_agree(slow):
    assert align_nouns('a red cat', ['cat'], slow)[0].token_ids == [3]


@pytest.mark.parametrize('caption', ['the ‘red’ cat', 'the girl’s cat', '“a” cat', 'a cafe\u0301 and a cat'])
def test_a_slow_tokenizer_that_straightens_quotes_is_followed(slow, caption):
    ids = align_nouns(caption, ['cat'], slow)[0].token_ids
    assert slow.decode([slow(caption).input_ids[i] for i in ids]).strip() == 'cat'


@pytest.mark.parametrize('caption, written', [('black &amp; red cat', 'black & red cat'), ('ﬁfty of a cat', 'fifty of a cat'), ('ﬁne ﬁre ﬁg ﬁsh &amp; a cat', 'fine fire fig fish & a cat')])
def test_a_slow_tokenizer_that_moves_characters_is_noticed(slow, caption, written):
    assert align_nouns(caption, ['cat'], slow)[0].reason == f'tokenizers differ: the slow tokenizer cuts this caption in another way; write it as {written!r}'


# ---- characters

@pytest.mark.parametrize('caption, noun, spans', [
    ('a cat next to a caterpillar', 'cat', [(2, 5)]), ('the cat’s', "cat's", [(4, 9)]),
    ('İİ cafe\u0301, CAF\u00c9', 'caf\u00e9', [(3, 8), (10, 14)]),
    ('cafe\u0301', 'cafe', []),    # the accent belongs to the e
    ('I ❤️ my 🐱', '❤', [(2, 4)]), ('I ❤️ my 🐱', '🐱', [(8, 9)]),
    ('', 'cat', []), ('cat', '', []), ('cat', ' ', [])])
def test_spans(caption, noun, spans):
    assert noun_spans(caption, noun) == spans


# ---- tokens

@pytest.mark.parametrize('span, expected', [
    ([1, 4], "wrong span: (1, 4) reads ' do'"), ([3, 99], 'wrong span: (3, 99) in a caption of 5 characters'),
    (['x', 2], "wrong span: ['x', 2] is not (start, end)")])
def test_wrong_spans(span, expected):
    assert reason('a dog', 'dog', spans=[span]) == expected


def test_a_noun_that_shares_a_token_or_holds_none():
    assert reason('a cat next to a caterpillar', 'a', spans=[[17, 18]]) == "shares a token: 'ca'"
    assert reason('a dog ', '', spans=[[1, 2]]) == 'empty noun'


def test_max_length_moves_the_limit():
    assert reason('red red red dog', 'dog', max_length=5) == 'beyond the last token: position 4, the text ends at 3'
    assert ids('red red red dog', ['dog'], max_length=6) == [[4]]


def test_where_the_sequence_ends():
    assert ids('red '*73 + 'hot dog', ['hot dog']) == [[74, 75]]
    assert ids('red '*500 + 'dog', ['red', 'dog'], occurrence='all') == [list(range(1, 76)), []]


def test_occurrences_that_do_not_exist():
    assert reason('a dog', 'dog', occurrence=2) == 'no such occurrence: number 2 of 1'
    found = align_nouns('a microwave oven', ['oven', 'microwave oven'], TOKENIZER, longest_first=True)
    assert found[0].reason == 'inside a longer noun: every occurrence'


def test_a_noun_twice_in_the_list():
    assert ids('a dog next to a dog', ['dog', 'dog']) == [[2], [2]]


@pytest.mark.parametrize('caption', ['', ' ', '\ud83d', 'a'*3000, '<|endoftext|>'])
def test_odd_captions_leave_a_reason(caption):
    for record in align_nouns(caption, ['cat', '', None], TOKENIZER): assert not record.token_ids and record.reason


def test_reasons_are_from_the_list():
    records = align_nouns('A cat next to a caterpillar', ['caterpillar', 'Cat', 'dog', 'pillar', ''], TOKENIZER)
    assert [bool(record.reason) for record in records] == [False, False, True, True, True]
    for record in records:
        if record.reason: assert record.reason.split(':')[0] in REASONS


@pytest.mark.parametrize('options, message', [
    (dict(occurrence='last'), "'first', 'all' or a number"), (dict(occurrence=0), 'from 1'),
    (dict(spans=[None, None]), '2 entries for 1 nouns')])
def test_options_that_make_no_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message): align_nouns('a cat', ['cat'], TOKENIZER, **options)


def test_a_caption_must_be_a_string():
    with pytest.raises(TypeError, match='must be a string'): align_nouns(None, [], TOKENIZER)


def test_empty_caption_has_start_and_end():
    ax = plot_alignment('', [NounTokens('cat', reason='not in the caption')], TOKENIZER)
    assert [text.get_text() for text in ax.texts] == ['start', '0', 'end', '1']


def test_plot_shows_every_token():
    aligned = align_nouns('A red hot dog', ['hot dog'], TOKENIZER)
    ax = plot_alignment('A red hot dog', aligned, TOKENIZER)
    assert sum(text.get_text() in ('hot', 'dog') for text in ax.texts) == 2
