"From a model folder to result files, through nbs/sample.ipynb and nbs/evaluate.ipynb, on random models."
import numpy as np
import pytest
import torch
from test_bad_input import run
from test_detection import save_judge
from tokencompose.core import read_json
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.dataset import GroundingDataset
from tokencompose.data.world import write_world
from tokencompose.metrics.detection import read_detections
from tokencompose.metrics.multigen import prompt_classes, read_prompts
from tokencompose.metrics.probe import probe
from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.reporting import load_results

SAMPLE, EVALUATE = 'nbs/sample.ipynb', 'nbs/evaluate.ipynb'
SMALL = dict(prompts=3, rounds=2, inference_steps=2, objects=3, sample_batch=4)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a random pipeline, a random judge and a few held-out scenes."
    folder = tmp_path_factory.mktemp('place')
    captions = ['a photo of a cat, a dog, a car and a teddy bear']*3
    tiny_pipeline(captions).save_pretrained(folder/'pipeline')
    save_judge(folder/'judge')
    write_world(folder/'scenes', train=1, val=6)
    build_dataset(folder/'val', read_coco(folder/'scenes', 'val2017'))
    return folder


def sampled(place, tmp_path, **params):
    run(SAMPLE, tmp_path, model=str(place/'pipeline'), out_dir=str(tmp_path/'images'), **SMALL | params)
    return tmp_path/'images'


def evaluated(place, tmp_path, **params):
    run(EVALUATE, tmp_path, judge=str(place/'judge'), images=str(tmp_path/'images'), rounds=2, out_dir=str(tmp_path/'runs'/'mini'/'results'), **params)
    return load_results('mini', str(tmp_path/'runs'))


def test_multigen_from_a_model_to_a_result(place, tmp_path):
    images = sampled(place, tmp_path)
    assert read_json(images/'provenance.json')['counts'] == dict(drawn=6, skipped=0, missing=0, surplus=0)
    assert sorted(p.name for p in images.glob('*.png')) == sorted(f'{p}_{r}.png' for p in range(3) for r in range(2))
    result, = evaluated(place, tmp_path, method='token-seed2', judge_threshold=.9)
    assert (result['metric'], result['method'], result['seed'], result['n']) == ('multigen_coco', 'token', 2, dict(prompts=3, rounds=2, images=6))
    records = read_detections(tmp_path/'runs/mini/results/multigen_coco/token-seed2-detections')
    classes = {row['unique_id']: prompt_classes(row) for row in read_prompts(images/'prompts.json')}
    seen = [len({int(np.argmax(box)) for box in r['scores'] if max(box) > .9}) for r in records]
    assert len(records) == 6 and {len(names) for names in classes.values()} == {3}
    for k in (1, 2, 3): assert result['values'][f'MG{k}'] == pytest.approx(100*np.mean([n >= k for n in seen]))
    assert 'above 0.9' in result['judge']
    again, = evaluated(place, tmp_path, method='token-seed2', judge_threshold=.9)
    assert again['values'] == result['values']


def test_pictures_that_are_not_finished_are_not_scored(place, tmp_path):
    images = sampled(place, tmp_path, rank=1, world=2)
    assert not (images/'prompts.json').exists() and len(list(images.glob('*.png'))) == 3
    with pytest.raises(FileNotFoundError, match='holds no finished pictures'): evaluated(place, tmp_path)
    sampled(place, tmp_path, rank=0, world=2)
    assert (images/'prompts.json').is_file() and (images/'provenance.json').is_file()


def test_prompts_from_a_file(place, tmp_path):
    images = sampled(place, tmp_path)
    run(SAMPLE, tmp_path, model=str(place/'pipeline'), out_dir=str(tmp_path/'other'), prompts_file=str(images/'prompts.json'), **SMALL | dict(prompts=2))
    assert read_prompts(tmp_path/'other'/'prompts.json') == read_prompts(images/'prompts.json')[:2]
    for name in ('0_0.png', '1_1.png'): assert (tmp_path/'other'/name).is_file()


def test_grounding_of_a_model(place, tmp_path):
    result, = evaluated(place, tmp_path, metric='grounding', model=str(place/'pipeline'), data=str(place/'val'), data_images=str(place/'scenes'/'val2017'), timesteps=[401], layers=['up'], batch=4)
    pipe = load_pipeline(str(place/'pipeline'), device='cpu')
    direct = probe(pipe, GroundingDataset(place/'val', place/'scenes'/'val2017', pipe.tokenizer, 64), ('up',), (401,), batch=1)
    assert result['metric'] == 'grounding' and result['seed'] is None and result['n']['nouns'] == len(direct['nouns']) > 3
    for name, values in direct['scores'].items(): assert result['values'][name] == pytest.approx(float(values.double().nanmean()), abs=1e-5)


@pytest.mark.parametrize('notebook, params, sentence', [
    (SAMPLE, dict(model='nowhere'), 'There is no model folder'),
    (SAMPLE, dict(precision='fp8'), 'precision: expected no, bf16, fp16'),
    (EVALUATE, dict(metric='grounding', data='nowhere'), 'There is no metadata.jsonl in'),
    (EVALUATE, dict(metric='beauty'), "Parameter metric: 'beauty' is not one of multigen, visor, fid, grounding")])
def test_bad_parameters(notebook, params, sentence, place, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): run(notebook, tmp_path, **dict(model=str(place/'pipeline')) | params)
