"""Whatever people's files hold: a result or one sentence, never a crash, never something silently left out. Ten thousand of each in the long form."""
import io
import json
import os

import numpy as np
import pytest
import torch
from faults import record, recorded
from hypothesis import given, HealthCheck, settings, strategies as st
from PIL import Image

from tokencompose.core import read_json, read_jsonl, write_json
from tokencompose.data.dataset import read_rows, write_row
from tokencompose.data.masks import load_mask
from tokencompose.data.nouns import align_nouns, REASONS, toy_tokenizer
from tokencompose.metrics.multigen import prompt_classes, read_prompts
from tokencompose.reporting.results import check_result, toy_result
from tokencompose.sampling import prompt_texts

MANY, FEW = 10_000, 25
QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None)
TOKENIZER = toy_tokenizer(['cat', 'dog', 'a'])
RESULT = toy_result('frozen', ((2, 3), (1, 0)))
MODES = ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I', 'I;16', 'F', 'CMYK', 'YCbCr']
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(st.sampled_from(['a', 'text', '']), scalars, max_size=2))
texts = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too
named = values | st.lists(st.sampled_from(['cat', 'dog']), min_size=1, max_size=1)
prompt = st.fixed_dictionaries({}, optional=dict(unique_id=values | st.integers(0, 3), text=values | texts | st.just('a photo of a cat and a dog.'), num_objects=values | st.integers(1, 2),
                                                 obj_1_attributes=named, obj_2_attributes=named))


def said(error, *names):
    "One sentence that names the place."
    text = str(error)
    assert text and '\n' not in text.strip() and all(name in text for name in names), text


def captions(folder, caption, nouns):
    found = align_nouns(caption, nouns, TOKENIZER)
    assert [each.noun for each in found] == nouns, 'none is left out'
    for each in found: assert bool(each.token_ids) != bool(each.reason) and all(0 < i < 76 for i in each.token_ids) and (not each.reason or each.reason.split(':')[0] in REASONS)
    try: text = json.dumps(dict(file_name='a.png', text=caption, attn_list=[[noun, None] for noun in nouns]), ensure_ascii=False).encode()
    except UnicodeEncodeError: text = json.dumps(dict(file_name='a.png', text=caption, attn_list=[[noun, None] for noun in nouns])).encode()  # a lone surrogate
    (folder/'metadata.jsonl').write_bytes(text)
    try: row, = read_rows(folder)
    except ValueError as error: return said(error, 'metadata.jsonl')
    assert row.text == caption and row.nouns == nouns


def masks(folder, width, height, mode, seed, kind):
    rng, path = np.random.default_rng(seed), folder/f'm.{kind}'
    try: picture = Image.fromarray(rng.integers(0, 2 + seed % 254, (height, width, 3), dtype=np.uint8)*(255//(1 + seed % 254))).convert(mode if mode != 'I;16' else 'I').convert(mode)
    except (ValueError, KeyError, OSError): return  # no such conversion in Pillow
    try: picture.save(path)
    except (ValueError, KeyError, OSError): return  # no such mode in this format
    try: mask = load_mask(path)
    except ValueError as error: return said(error, path.name)
    assert mask.dtype == torch.bool and tuple(mask.shape) == (height, width)


def prompts(folder, rows, form):
    path = folder/'prompts.json'
    path.write_text(json.dumps(rows) if form == 'array' else '\n'.join(map(json.dumps, rows)) if form == 'lines' else json.dumps({str(i): row for i, row in enumerate(rows)}))
    try: found = read_prompts(path)
    except ValueError as error: return said(error, 'prompts.json')
    assert len(found) == len(rows) and all(prompt_classes(row) for row in found)
    try: assert len(prompt_texts(found)) == len(rows)
    except ValueError as error: said(error)


def results(folder, changes, drop, noise):
    result = {key: value for key, value in (RESULT | changes).items() if key not in drop}
    write_json(folder/'r.json', result)
    data = bytearray((folder/'r.json').read_bytes())
    for place, value in noise: data[place % len(data)] = value
    (folder/'r.json').write_bytes(data)
    try: check_result(read_json(folder/'r.json'), str(folder/'r.json'))
    except ValueError as error: said(error, 'r.json')


WHAT = {
    'captions': (captions, dict(caption=texts, nouns=st.lists(texts.filter(str.strip), max_size=3))),
    'masks': (masks, dict(width=st.integers(1, 40), height=st.integers(1, 40), mode=st.sampled_from(MODES), seed=st.integers(0, 10**6), kind=st.sampled_from(['png', 'tiff', 'bmp', 'gif', 'webp', 'jpg']))),
    'prompt lists': (prompts, dict(rows=st.lists(prompt | values, max_size=3), form=st.sampled_from(['array', 'lines', 'object']))),
    'result files': (results, dict(changes=st.dictionaries(st.sampled_from([*RESULT, 'odd']), values, max_size=2), drop=st.lists(st.sampled_from(list(RESULT)), max_size=1),
                                   noise=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=2)))}


def tried(name, folder, examples):
    check, arguments = WHAT[name]
    count = [0]
    @settings(max_examples=examples, derandomize=examples == FEW, **QUIET)
    @given(**arguments)
    def every(**given):
        count[0] += 1
        check(folder, **given)
    every()
    return count[0]


@pytest.mark.parametrize('name', WHAT)
def test_a_few(name, tmp_path): tried(name, tmp_path, FEW)


@pytest.mark.long
@pytest.mark.parametrize('name', WHAT)
def test_ten_thousand(name, tmp_path):
    if recorded(f'properties of {name}').get('examples', 0) >= MANY: pytest.skip('is in the record already')
    count = tried(name, tmp_path, MANY)
    record(f'properties of {name}', dict(examples=count))
    assert count >= MANY
