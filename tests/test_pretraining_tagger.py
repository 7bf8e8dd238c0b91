"The grammar's text, what the made-up captions look like, and the tags of all captions of the world."
import hashlib

import pytest

from tokencompose.data.tagging import cut_words
from tokencompose.data.world import ANY, captions_of
from tokencompose.pretraining.fit import scene_pool
from tokencompose.pretraining.tagger import caption_words, Grammar, GRAMMAR, read_brackets, SPORTS, tag_world
from tokencompose.pretraining.tagger import tagged_caption, WRITTEN

LISTS = caption_words()
MADE_UP = Grammar(GRAMMAR, LISTS)
DRAWN = [tagged_caption(MADE_UP, 'count', i) for i in range(400)]


def digest(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def test_the_texts_are_those_that_the_zoo_learned_from():
    "Another grammar is another tagger: train the zoo's anew before these values change."
    assert digest(GRAMMAR) == '5adf0b929ff44666'
    assert digest(LISTS) == '84330930852bc24b'
    assert digest(DRAWN) == '0e2210f9aa82b994'


def test_lists_are_read_whole():
    assert len(WRITTEN) == 60 and WRITTEN[0].startswith('A [man]') and WRITTEN[-1].endswith('[light].')
    assert all(read_brackets(line)[1] for line in WRITTEN)
    assert 'video games/NNS' in SPORTS and all(s == s.strip() and s for s in SPORTS)


def test_captions_are_words_with_their_articles():
    for caption in DRAWN:
        assert 2 <= len(caption) <= 41 and all(word and ' ' not in word and tag for word, tag in caption)
        assert not [b for (a, _), (b, _) in zip(caption, caption[1:]) if a == 'an' and b[0] not in 'aeiouAEIOU']


def test_a_caption_is_a_function_of_its_key():
    assert tagged_caption(MADE_UP, 0, 7) == tagged_caption(Grammar(GRAMMAR, caption_words()), 0, 7)


@pytest.mark.parametrize('start', range(0, 60, 20))
def test_every_word_of_the_world_has_a_tag(start):
    for scene in scene_pool(60, ANY, 'all words')[start:start + 20]:
        for text in (c['caption'] for c in captions_of(scene)): assert len(tag_world(text)) == len(cut_words(text))


def test_an_unknown_word_of_the_world_is_refused():
    with pytest.raises(ValueError, match='zebra'): tag_world('a zebra')
