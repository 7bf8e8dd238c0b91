"""The training folder from the masks of the pipeline: what is kept, what is refused."""
import numpy as np
import pytest
from PIL import Image

from tokencompose.core import write_jsonl
from tokencompose.data.build import build_automatic, grounded_of, token_histogram
from tokencompose.data.dataset import read_rows
from tokencompose.data.masks import encode_rle, load_mask

LEFT, RIGHT = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
LEFT[1:3, :2], RIGHT[1:3, 4:] = True, True


def box(mask, score=.5): return dict(box=[0., 0., 1., 1.], score=score, mask_score=.9, rle=encode_rle(mask))


def record(image_id=7, **changes):
    "Two dogs, and a wall that nothing was found of."
    nouns = [dict(noun='Dogs', start=0, end=4, boxes=[box(LEFT, .8), box(RIGHT, .6)]), dict(noun='wall', start=10, end=14, boxes=[])]
    return dict(image_id=image_id, file_name=f'{image_id}.png', text='Dogs by a wall, dogs', size=[4, 6], nouns=nouns, unassigned=[]) | changes


@pytest.fixture
def stage(tmp_path):
    "A folder of masks.jsonl (a row, a picture without a mask, one that cannot be read) and one of the pictures."
    nothing, broken = record(8, nouns=record()['nouns'][1:]), record(9, size=[0, 0], error='The image 9.png cannot be read.')
    (tmp_path/'masks').mkdir(); (tmp_path/'pictures').mkdir()
    for name in '78': Image.new('RGB', (6, 4)).save(tmp_path/'pictures'/f'{name}.png')
    write_jsonl(tmp_path/'masks'/'masks.jsonl', [record(), nothing, broken])
    return tmp_path/'masks', tmp_path/'pictures'


def test_rows_and_counts(stage, tmp_path):
    counts = build_automatic(tmp_path/'out', *stage, classes=['dog', 'cat'])
    rows = read_rows(tmp_path/'out')
    assert [(r.nouns, r.masks, r.spans) for r in rows] == [(['Dogs', 'wall'], ['seg/7/mask_7_Dogs.png', None], [(0, 4), (10, 14)])]
    np.testing.assert_array_equal(load_mask(tmp_path/'out'/'seg'/'7'/'mask_7_Dogs.png').numpy(), LEFT | RIGHT)
    assert (counts['rows'], counts['images_without_mask'], counts['images_unreadable']) == (1, 1, 1)
    assert (counts['classes_never_named'], counts['boxes_per_noun']) == (['cat'], {0: 1, 2: 1})


def test_empty_rows_are_kept_on_request(stage, tmp_path):
    assert build_automatic(tmp_path/'kept', *stage, keep_empty=True)['rows'] == 2


def test_a_folder_of_other_settings_is_not_touched(stage, tmp_path):
    build_automatic(tmp_path/'out', *stage)
    with pytest.raises(ValueError, match='made with other settings'): build_automatic(tmp_path/'out', *stage, keep_empty=True)


def test_a_stage_that_was_not_run(stage, tmp_path):
    with pytest.raises(FileNotFoundError, match='run data_prep/03_segment.ipynb'): build_automatic(tmp_path/'out', tmp_path/'no', stage[1])


def test_a_noun_that_comes_twice_is_one(clip_tokenizer):
    twice = record()
    twice['nouns'].append(dict(twice['nouns'][0], noun='dogs', start=16, end=20))
    row = grounded_of(twice)
    assert [(m.noun, m.start) for m in row.mentions] == [('Dogs', 0), ('wall', 10)]
    assert row.extra['scores'] == [[.8, .6], []]


def test_only_masked_nouns_are_counted(stage, tmp_path, clip_tokenizer):
    build_automatic(tmp_path/'out', *stage)
    assert token_histogram(read_rows(tmp_path/'out'), clip_tokenizer) == {1: 1}
