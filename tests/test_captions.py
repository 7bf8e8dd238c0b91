"""Nouns of captions that people wrote, cut by the real CLIP tokenizer, against the authors' rule written anew."""
import json
import re
import unicodedata
from collections import Counter

import pytest
from conftest import ROOT
from hypothesis import given, settings, strategies as st
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from tokencompose.data.nouns import align_nouns, explain_alignment, fast_tokenizer, noun_spans, REASONS

CAPTIONS = ROOT.parent/'shared'/'data'/'captions_nouns.jsonl'
BYTES = {c: b for b, c in bytes_to_unicode().items()}
QUICK = settings(max_examples=150, deadline=None, derandomize=True)


@pytest.fixture(scope='module')
def rows():
    if not CAPTIONS.is_file(): pytest.skip(f"needs {CAPTIONS}: every second row of the authors' training list")
    return [json.loads(line) for line in CAPTIONS.read_text(encoding='utf-8').splitlines()]


def first_ids(caption_ids, noun_ids):
    "The authors' rule: the first place where the noun's ids stand among the caption's, counted with the start token."
    for i in range(len(caption_ids) - len(noun_ids) + 1):
        if noun_ids and caption_ids[i:i + len(noun_ids)] == noun_ids: return list(range(i + 1, i + 1 + len(noun_ids)))
    return []


def authors_rule(caption, noun, tokenizer):
    def ids(text): return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return first_ids(ids(caption), ids(noun))


def read_tokens(tokenizer, caption, positions):
    "The text that the tokens at these positions stand for, without white space."
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(caption, verbose=False).input_ids)
    raw = bytes(BYTES[c] for i in positions for c in tokens[i].removesuffix('</w>'))
    return raw.decode('utf-8')


def squeezed(text):
    return ''.join(c.lower() for c in unicodedata.normalize('NFC', text) if not c.isspace())


def align(caption, noun, tokenizer, **options):
    return align_nouns(caption, [noun], tokenizer, **options)[0]


# ---- the captions of the authors' training list

def test_every_noun_of_the_training_list(rows, clip_tokenizer):
    "All 7,599 nouns of the 2,263 captions are placed, where the authors' rule places them, and read back as the noun."
    placed, reasons = 0, Counter()
    for row in rows:
        for record in align_nouns(row['text'], row['nouns'], clip_tokenizer):
            assert record.token_ids == authors_rule(row['text'], record.noun, clip_tokenizer), (row['text'], record)
            assert bool(record.token_ids) != bool(record.reason)
            placed += bool(record.token_ids)
            if record.reason: reasons[record.reason.split(':')[0]] += 1
            else: assert read_tokens(clip_tokenizer, row['text'], record.token_ids) == squeezed(record.noun)
    assert len(rows) == 2263 and placed == sum(len(row['nouns']) for row in rows) == 7599 and not reasons


def test_an_independent_tokenizer_gives_the_same_positions(rows, clip_tokenizer):
    other = pytest.importorskip('instant_clip_tokenizer', reason='needs the package instant-clip-tokenizer: pip install -e .[test]').Tokenizer()
    for row in rows:
        ids = other.encode(row['text'])
        for record in align_nouns(row['text'], row['nouns'], clip_tokenizer):
            assert record.token_ids == first_ids(ids, other.encode(record.noun)), (row['text'], record)


def test_longest_first_moves_only_the_nouns_inside_other_nouns(rows, clip_tokenizer):
    "Found with regular expressions instead: the three nouns whose first occurrence belongs to a longer noun of the row."
    changed = expected = 0
    for row in rows:
        text = row['text'].lower()
        old, new = (align_nouns(row['text'], row['nouns'], clip_tokenizer, longest_first=b) for b in (False, True))
        for a, b in zip(old, new):
            longer = [n.lower() for n in row['nouns'] if len(n) > len(a.noun)]
            taken = [m.span() for n in longer for m in re.finditer(rf'(?<![a-z]){re.escape(n)}(?![a-z])', text)]
            expected += any(c <= a.span[0] and a.span[1] <= d for c, d in taken)
            changed += a.token_ids != b.token_ids
            assert b.token_ids and squeezed(row['text'][slice(*b.span)]) == squeezed(a.noun)
    assert changed == expected == 3


def test_the_slow_tokenizer_gives_the_same(rows, clip_tokenizer, clip_tokenizer_slow):
    for row in rows[:300]:
        assert align_nouns(row['text'], row['nouns'], clip_tokenizer_slow) == align_nouns(row['text'], row['nouns'], clip_tokenizer)


# ---- cases by hand

@pytest.mark.parametrize('caption, noun, text', [
    ('a cat next to a caterpillar', 'cat', ['cat']),
    ('a cat next to a caterpillar', 'caterpillar', ['caterpillar']),
    ('a caterpillar next to a cat', 'cat', ['cat']),
    ('A man eating a HOT DOG', 'hot dog', ['hot', 'dog']),
    ('a hot-dog stand', 'dog', ['dog']),
    ('a black t-shirt.', 't-shirt', ['t', '-', 'shirt']),
    ("the dog's bowl", 'dog', ['dog']),
    ("the dog's bowl", "dog's", ['dog', "'s"]),
    ('two cats and a cat', 'cat', ['cat']),
    ('a Cat and a CAT', 'cat', ['cat']),
    ('(cat)', 'cat', ['cat']),
    ('cat_food', 'cat', ['cat']),
    ('a \u201ccat\u201d and a dog\u2019s bone', 'dog', ['dog']),
    ('un café noir', 'cafe\u0301', ['café']),
    ('un cafe\u0301 noir', 'café', ['café']),
])
def test_cases_by_hand(caption, noun, text, clip_tokenizer):
    "Read word by word: the tokens are those of the expected words, and no other token is."
    record = align(caption, noun, clip_tokenizer)
    assert read_tokens(clip_tokenizer, caption, record.token_ids) == ''.join(text), record
    assert record.token_ids == list(range(record.token_ids[0], record.token_ids[-1] + 1))


def test_positions_counted_by_hand(clip_tokenizer):
    "One token a word here: start a(1) cat(2) next(3) to(4) a(5) ..."
    assert align('a cat next to a caterpillar', 'cat', clip_tokenizer).token_ids == [2]
    caption = 'a microwave oven next to an oven'
    assert [r.token_ids for r in align_nouns(caption, ['oven', 'microwave oven'], clip_tokenizer, longest_first=True)] == [[7], [2, 3]]
    assert [r.token_ids for r in align_nouns(caption, ['oven', 'microwave oven'], clip_tokenizer)] == [[3], [2, 3]]
    assert align(caption, 'oven', clip_tokenizer, occurrence='all').token_ids == [3, 7]
    assert align(caption, 'oven', clip_tokenizer, occurrence=2).span == (28, 32)
    assert align(caption, 'oven', clip_tokenizer, spans=[(28, 32)]).token_ids == [7]
    assert align(caption, 'oven', clip_tokenizer, spans=[(27, 31)]).reason == "wrong span: (27, 31) reads ' ove'"
    assert align(caption, 'oven', clip_tokenizer, spans=[(28, 99)]).reason.startswith('wrong span')
    assert align(caption, 'oven', clip_tokenizer, spans=['here']).reason.startswith('wrong span')
    assert align('dog ' * 74 + 'cat', 'cat', clip_tokenizer).token_ids == [75]


# what the id search gives (counted with the start token), what we give, and why the two differ
DIFFERENCES = [
    ('a snowcat', 'cat', [3], [], 'inside a longer word'),           # BPE cuts snow + cat: the tail of a word is not the word
    ('12 dogs', '2', [2], [], 'inside a longer word'),               # CLIP takes digits one by one
    ('dog ' * 75 + 'cat', 'cat', [76], [], 'beyond the last token'),  # position 76 is the end token
    ('the dog\u2019s bone', "dog's", [], [2, 3, 4, 5], ''),          # curly in the caption, straight in the noun
    ('a U.S., flag', 'U.S.', [], [2, 3, 4, 5], ''),                  # the last full stop is glued to the comma
]


@pytest.mark.parametrize('caption, noun, theirs, ours, reason', DIFFERENCES)
def test_where_the_authors_rule_differs(caption, noun, theirs, ours, reason, clip_tokenizer):
    record = align(caption, noun, clip_tokenizer)
    assert authors_rule(caption, noun, clip_tokenizer) == theirs
    assert (record.token_ids, record.reason.split(':')[0]) == (ours, reason)


@pytest.mark.parametrize('caption, noun, reason', [
    ('', 'cat', 'not in the caption'), ('a dog', 'cat', 'not in the caption'), ('two cats', 'cat', 'inside a longer word'),
    ('a cat', '', 'empty noun'), ('a cat', ' \n', 'empty noun'), ('a cat', None, 'empty noun'), ('a hot-dog', 'hot dog', 'not in the caption'),
    ('😂😂', '😂', 'shares a token'), ('\ud83d', 'cat', 'not in the caption'), ('word ' * 500 + 'cat', 'cat', 'beyond the last token'),
    ('word ' * 74 + 'hot dog', 'hot dog', 'beyond the last token'), ('x\u0304 rays', 'x', 'inside a longer word'), ('İ rays', 'i', 'inside a longer word'), ('#\u20e3 key', '#', 'inside a longer word'),
])
def test_a_noun_left_out_has_its_reason(caption, noun, reason, clip_tokenizer):
    record = align(caption, noun, clip_tokenizer)
    assert record.token_ids == [] and record.span is None and record.reason.split(':')[0] == reason


def test_what_ftfy_repairs_is_read_as_the_slow_tokenizer_reads_it(clip_tokenizer_slow):
    "It straightens curly quotes, three bytes become one; where characters move no position is trusted."
    caption = 'the \u2018red\u2019 cat'
    ids, twin = align(caption, 'cat', clip_tokenizer_slow).token_ids, align(caption, 'cat', fast_tokenizer(clip_tokenizer_slow)).token_ids
    assert [clip_tokenizer_slow.convert_ids_to_tokens(clip_tokenizer_slow(caption).input_ids)[i] for i in ids] == ['cat</w>'] and ids != twin
    assert align('a &amp; cat', 'cat', clip_tokenizer_slow).reason.startswith('tokenizers differ')


# ---- properties

anything = st.text(st.characters(exclude_categories=()), max_size=60)
words = st.sampled_from("a cat cats dog snowcat caterpillar hot-dog it's T-SHIRT 2 12 mp3 café cafe\u0301 İ straße Ｆull 🐱 👩‍🚀 ❤️ 猫 한국 \u1112\u1161\u11ab naïve \u201cred\u201d ... <|endoftext|>".split(' '))
sentences = st.builds(lambda parts: ''.join(a + b for a, b in parts), st.lists(st.tuples(words, st.sampled_from([' ', '  ', '\n', ', ', '-', '\u00a0', '. '])), max_size=25))


@QUICK
@given(caption=anything | sentences, nouns=st.lists(anything | words, max_size=4), longest=st.booleans(), occurrence=st.sampled_from(['first', 'all', 1, 2]))
def test_never_raises(clip_tokenizer, caption, nouns, longest, occurrence):
    records = align_nouns(caption, nouns, clip_tokenizer, longest_first=longest, occurrence=occurrence)
    assert [r.noun for r in records] == nouns
    for r in records:
        assert bool(r.token_ids) != bool(r.reason) and bool(r.spans) == bool(r.token_ids)
        assert not r.reason or r.reason.split(':')[0] in REASONS
        assert all(0 < i < 76 for i in r.token_ids) and r.token_ids == sorted(set(r.token_ids))
    assert explain_alignment(caption, records, clip_tokenizer).strip()


@QUICK
@given(before=sentences, noun=words, after=sentences)
def test_positions_read_as_the_noun(clip_tokenizer, before, noun, after):
    "Whatever stands around it, the tokens of a noun spell the noun, with at most punctuation glued to its ends."
    caption = f'{before} {noun} {after}'
    record = align(caption, noun, clip_tokenizer)
    if not record.token_ids:
        assert record.reason.split(':')[0] in ('beyond the last token', 'shares a token')
        return
    text, target = read_tokens(clip_tokenizer, caption, record.token_ids), squeezed(noun)
    extra = squeezed(text).replace('\ufe0f', '').split(target.replace('\ufe0f', ''), 1)
    assert len(extra) == 2 and all(unicodedata.category(c)[0] in 'PCM' for c in ''.join(extra)), (record, text)
    assert squeezed(caption[slice(*record.span)]).replace('\ufe0f', '') == target.replace('\ufe0f', '')


@QUICK
@given(caption=st.lists(st.sampled_from('a cat cats bobcat dog hot microwave oven snow T-Shirt, 12 2 2nd mp3 it\'s Oven. (dog)'.split()), max_size=20).map(' '.join),
       noun=st.sampled_from(['cat', 'dog', 'hot dog', 'microwave oven', 'oven', 't-shirt', '2', 'snow']))
def test_spans_are_those_of_a_regular_expression(caption, noun):
    inner = r'\d' if noun == '2' else '[a-z]'
    expected = [m.span() for m in re.finditer(rf'(?<!{inner}){re.escape(noun)}(?!{inner})', caption, re.I)]
    assert noun_spans(caption, noun) == expected


@QUICK
@given(words=st.lists(st.sampled_from('a the cat cats dog hot caterpillar microwave oven giraffe surfboard refrigerator'.split()), max_size=30),
       noun=st.sampled_from(['cat', 'dog', 'hot dog', 'oven', 'microwave oven', 'caterpillar', 'giraffe']))
def test_equals_the_authors_rule_on_plain_words(clip_tokenizer, words, noun):
    caption = ' '.join(words)
    assert align(caption, noun, clip_tokenizer).token_ids == authors_rule(caption, noun, clip_tokenizer)
