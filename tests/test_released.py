"""The authors' own weights as rows of the tables: tiny random models in a folder that plays the cache of the hub."""
import huggingface_hub.constants
import pytest
from test_bad_input import HereEngine, run  # noqa: F401  (registers the engine "here")

from tokencompose.core import read_json, resolve
from tokencompose.data.classes import COCO_80
from tokencompose.methods import METHODS, rows
from tokencompose.metrics.detection import tiny_judge
from tokencompose.models import load_pipeline, model_commit, tiny_pipeline
from tokencompose.profiles import get_profile, PROFILES
from tokencompose.reporting.records import identity
from tokencompose.reporting.results import load_results, toy_result
from tokencompose.reporting.tables import table1_frame
from tokencompose.run_config import model_of

COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "What `hf download` leaves of both models, each other weights."
    for seed, model in enumerate(get_profile('sd14').released):
        place = tmp_path/'hub'/f'models--{model.replace("/", "--")}'
        tiny_pipeline(['a photo of a cat, a dog and a pizza.']*3, seed=seed).save_pretrained(place/'snapshots'/COMMIT)
        (place/'refs').mkdir()
        (place/'refs'/'main').write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    return tmp_path


def test_they_are_rows_where_a_profile_names_them():
    released = [m.name for m in METHODS.values() if m.kind == 'released']
    for name in PROFILES:
        p, paper = get_profile(name), name in ('sd14', 'sd21')
        for table in ('table1', 'table3', 'table4', 'table5'): assert [m for m in p.methods(table) if m in released] == released*paper
        assert not set(released) & {*p.methods('table2'), *p.methods('figure5'), *rows('table1')}
    assert [model_of('sd21', m) for m in released] == ['mlpc-lab/TokenCompose_SD21_A', 'mlpc-lab/TokenCompose_SD21_B']
    with pytest.raises(ValueError, match='released_a: the authors published no weights for profile mini, choose sd14 or sd21'): model_of('mini', 'released_a')


def test_without_them_the_download_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='hf download mlpc-lab/TokenCompose_SD14_A`'): load_pipeline(model_of('sd14', 'released_a'))


def test_they_are_drawn_and_judged_without_training(hub, tmp_path):
    "Two commands; what was used is written down, its commit too; the two sets of weights draw different pictures."
    out, judge = tmp_path/'runs'/'sd14'/'results', tiny_judge(tmp_path/'judge', list(COCO_80))
    assert model_commit(model_of('sd14', 'released_a')) == COMMIT
    for method in ('released_a', 'released_b'):
        images = tmp_path/'images'/method
        run('nbs/sample.ipynb', tmp_path, profile='sd14', method=method, prompt_source='drawn', prompts=1, rounds=1, inference_steps=1, out_dir=str(images))
        noted = read_json(images/'provenance.json')
        assert noted['weights'] == dict(model=model_of('sd14', method), commit=COMMIT) and noted['prompts']['published'] is False
        run('nbs/evaluate.ipynb', tmp_path, profile='sd14', method=method, images=str(images), judge=str(judge), rounds=1, out_dir=str(out))
    assert len({(tmp_path/'images'/m/'0_0.png').read_bytes() for m in ('released_a', 'released_b')}) == 2
    results = load_results('sd14', str(tmp_path/'runs'))
    assert [r['method'] for r in results] == ['released_a', 'released_b']
    with pytest.raises(ValueError, match='multigen_coco of released_a at sd14 is of other prompts than its authors published'): table1_frame(results, [('multigen_coco', 'MG3')])


def test_they_stand_beside_the_papers_numbers_of_the_method():
    found = ((1, 2), (3, 1))
    results = [toy_result(m, found, profile='sd14', prompts=dict(count=2, digest='x', published=True), identity=dict(base=m)) for m in ('frozen', 'released_a', 'released_b')]
    frame = table1_frame(results, [('multigen_coco', 'MG3')])
    own, ours = (frame.xs(METHODS[m].label, level='method') for m in ('released_a', 'tokencompose'))
    assert own.loc['paper'].tolist() == ours.loc['paper'].tolist() and 'not run' not in own.loc['sd14'].tolist()
    assert not [label for label, _ in table1_frame(results[:1], [('multigen_coco', 'MG3')]).index if 'authors' in label], 'no empty rows of them'


def test_their_identity_is_their_own(tmp_path):
    (tmp_path/'annotations').mkdir()
    (tmp_path/'annotations'/'captions_val2017.json').write_text('{}')
    sd14, data = get_profile('sd14').replace(prompt_source='drawn', clip='tokencompose/zoo/clip'), tmp_path
    bases = {m: identity(sd14, 'multigen_coco', m, data)['base'] for m in ('frozen', 'layout', 'released_a', 'released_b')}
    assert bases['frozen'] == bases['layout'] and len(set(bases.values())) == 3
