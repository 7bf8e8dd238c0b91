"The authors' COCO prompt file, where someone has it."
from collections import Counter
import pytest
from tokencompose.core import file_sha256, repo_root
from tokencompose.data.classes import COCO_80
from tokencompose.metrics.multigen import prompt_classes, prompt_row, read_prompts, save_prompts

SHA256 = 'fdac55817fbab0dc3710e60b82a8b238e41a1ed771660b6050e27ba96dea35cd'
PLACES = ['../shared/data/multigen_coco.json', 'data/multigen/coco_obj_comp_5_1k.json']


@pytest.fixture(scope='module')
def path():
    found = [repo_root()/place for place in PLACES if (repo_root()/place).is_file()]
    if not found: pytest.skip(f"the authors' prompt file is not here: put coco_obj_comp_5_1k.json at {PLACES[1]} to run this")
    return found[0]


def test_it_is_the_published_file(path): assert file_sha256(path) == SHA256


def test_the_template_gives_every_row_again(path):
    rows = read_prompts(path)
    assert len(rows) == 1000
    assert [prompt_row(i, prompt_classes(row)) for i, row in enumerate(rows)] == rows


def test_it_is_written_again_byte_for_byte(path, tmp_path):
    save_prompts(tmp_path/'again.json', [prompt_row(row['unique_id'], prompt_classes(row)) for row in read_prompts(path)])
    assert file_sha256(tmp_path/'again.json') == SHA256


def test_it_has_the_statistics_that_our_draw_assumes(path):
    sets = [prompt_classes(row) for row in read_prompts(path)]
    assert {len(set(names)) for names in sets} == {5} and len({frozenset(names) for names in sets}) == 1000
    counts = Counter(name for names in sets for name in names)
    assert set(counts) == set(COCO_80)
    assert (min(counts.values()), max(counts.values())) == (48, 89)
