"From a model folder to result files, through nbs/sample.ipynb and nbs/evaluate.ipynb, on random models."
import numpy as np
import pytest
import torch
from PIL import Image
from test_bad_input import run
from test_detection import save_judge
from tokencompose.core import read_json
from tokencompose.data.coco import build_dataset, read_coco
from tokencompose.data.dataset import GroundingDataset, load_image, read_rows
from tokencompose.data.masks import load_mask
from tokencompose.data.world_files import write_world
from tokencompose.inversion import read_inversion
from tokencompose.metrics.daam import daam, daam_result, daam_rows
from tokencompose.metrics.detection import read_detections
from tokencompose.metrics.multigen import prompt_classes, read_prompts
from tokencompose.metrics.grounding import probe
from tokencompose.models import load_pipeline, tiny_pipeline
from tokencompose.reporting.results import load_results

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
    result, = evaluated(place, tmp_path, method='token', train_seed=2, judge_threshold=.9)
    assert (result['metric'], result['method'], result['seed'], result['n']) == ('multigen_coco', 'token', 2, dict(prompts=3, rounds=2, images=6))
    records = read_detections(tmp_path/'runs/mini/results/multigen_coco/token-seed2-detections')
    classes = {row['unique_id']: prompt_classes(row) for row in read_prompts(images/'prompts.json')}
    seen = [len({int(np.argmax(box)) for box in r['scores'] if max(box) > .9}) for r in records]
    assert len(records) == 6 and {len(names) for names in classes.values()} == {3}
    for k in (1, 2, 3): assert result['values'][f'MG{k}'] == pytest.approx(100*np.mean([n >= k for n in seen]))
    assert 'above 0.9' in result['judge']
    again, = evaluated(place, tmp_path, method='token', train_seed=2, judge_threshold=.9)
    assert again['values'] == result['values']


def test_pictures_that_are_not_finished_are_not_scored(place, tmp_path):
    images = sampled(place, tmp_path, rank=1, world=2)
    assert not (images/'prompts.json').exists() and 0 < len(list(images.glob('*.png'))) < 6
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
    assert result['metric'] == 'grounding' and result['seed'] is None and result['n']['nouns'] == len(direct.nouns) > 3
    for name, values in direct.scores.items(): assert result['values'][name] == pytest.approx(float(values.double().nanmean()), abs=1e-5)


def measured_daam(place, tmp_path, data, **params):
    quick = dict(inference_steps=2, inner_steps=1, guidance_scale=3., pictures=3, batch=2)
    return evaluated(place, tmp_path, metric='daam', model=str(place/'pipeline'), data=str(data), data_images=str(place/'scenes'/'val2017'), inversions=str(tmp_path/'inversions'), **quick | params)


def test_daam_of_a_model(place, tmp_path):
    result, = measured_daam(place, tmp_path, place/'val', method='token', train_seed=1)
    pipe = load_pipeline(str(place/'pipeline'), device='cpu')
    scenes = GroundingDataset(place/'val', place/'scenes'/'val2017', pipe.tokenizer, 64, occurrence='all')
    rows, how = daam_rows(scenes, 3), dict(inference_steps=2, inner_steps=1, guidance_scale=3.)
    direct = daam_result(daam(pipe, scenes, tmp_path/'direct', rows, 1, **how))
    assert (result['metric'], result['method'], result['seed'], result['n']) == ('daam', 'token', 1, direct['n'])
    assert result['units']['ids'] == [scenes.rows[i].id for i in rows] and len(rows) == 3
    for name, value in direct['values'].items(): assert result['values'][name] == pytest.approx(value, abs=1e-4)
    assert {'mIoU', 'iou_0.3', 'iou_0.4', 'iou_0.5', 'mass', 'iou_best', 'ap'} <= set(result['intervals'])
    assert result['notes']['inverted'] == 3 and result['notes']['distances']['fitted']['median'] <= result['notes']['distances']['fitted']['largest']
    assert read_inversion(tmp_path/'inversions', result['units']['ids'][0])['embeddings'].shape[0] == 2
    again, = measured_daam(place, tmp_path, place/'val', method='token', train_seed=1)
    assert again['notes']['inverted'] == 0 and again['values'] == result['values']
    with pytest.raises(ValueError, match='inner_steps 1 there, 2 now'): measured_daam(place, tmp_path, place/'val', method='token', train_seed=1, inner_steps=2)


def test_a_method_without_its_model_is_not_measured_on_another(place, tmp_path):
    for notebook, params in ((EVALUATE, dict(metric='daam')), (EVALUATE, dict(metric='grounding')), (SAMPLE, dict(prompts=1))):
        with pytest.raises(FileNotFoundError, match='There is no model of method token in runs/mini/train/token-seed77/pipeline: train it'):
            run(notebook, tmp_path, method='token', train_seed=77, out_dir=str(tmp_path/'none'), **params)


def write_coco_gen(folder, data, images):
    "The pictures of a data set in the layout of DAAM's own, with dark masks and a word that is in no prompt."
    for row in read_rows(data):
        (folder/row.id).mkdir(parents=True)
        load_image(images/row.file_name).save(folder/row.id/'output.png')
        (folder/row.id/'prompt.txt').write_text(row.text + '\n')
        masks = {noun: load_mask(data/path).numpy() for noun, path in zip(row.nouns, row.masks)}
        for word, mask in (masks | dict(unicorn=next(iter(masks.values())))).items():
            Image.fromarray((mask[..., None]*np.array([0, 0, 0, 90])).astype(np.uint8)).save(folder/row.id/f'{word}.gt.png')


def test_daam_of_a_folder_like_coco_gen(place, tmp_path):
    "The same pictures in the two layouts have the same scores."
    write_coco_gen(tmp_path/'gen', place/'val', place/'scenes'/'val2017')
    theirs, = measured_daam(place, tmp_path, tmp_path/'gen')
    authors, = measured_daam(place, tmp_path, place/'val')
    assert theirs['units']['ids'] == authors['units']['ids'] and theirs['values'] == pytest.approx(authors['values'], abs=1e-6)
    assert theirs['notes']['left_out'] == authors['notes']['left_out'] + 3 and (theirs['notes']['inverted'], authors['notes']['inverted']) == (3, 0)
    (tmp_path/'gen'/theirs['units']['ids'][1]/'prompt.txt').unlink()
    with pytest.raises(FileNotFoundError, match='There is no .*prompt.txt: every subfolder of COCO-Gen must hold'): measured_daam(place, tmp_path, tmp_path/'gen')


@pytest.mark.parametrize('notebook, params, sentence', [
    (SAMPLE, dict(model='nowhere'), 'There is no model folder'),
    (SAMPLE, dict(precision='fp8'), 'precision: expected no, bf16, fp16'),
    (EVALUATE, dict(metric='grounding', data='nowhere'), 'There is no metadata.jsonl in'),
    (EVALUATE, dict(metric='daam', data='nowhere'), 'There is no metadata.jsonl in'),
    (EVALUATE, dict(metric='daam', benchmark='visor'), 'daam scores a model, no pictures, not visor'),
    (EVALUATE, dict(metric='beauty'), "Parameter metric: 'beauty' is not one of multigen, visor, fid, compbench, geneval, grounding, daam, examples")])
def test_bad_parameters(notebook, params, sentence, place, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): run(notebook, tmp_path, **dict(model=str(place/'pipeline')) | params)


def test_several_benchmarks_in_one_process_leave_what_each_alone_leaves(place, tmp_path):
    "Pictures to the byte, and result files but for what was measured in time."
    both, names = tmp_path/'both', ('multigen_coco', 'multigen_ade20k')
    def draw(benchmark, out): run(SAMPLE, tmp_path, model=str(place/'pipeline'), out_dir=str(out), benchmark=benchmark, **SMALL | dict(prompts=2, rounds=1))
    draw('+'.join(names), both)
    def kept(result): return {key: value for key, value in result.items() if key not in ('cost', 'provenance')} | dict(params=result['provenance']['params'])
    own = dict(judge=str(place/'judge'), rounds=1, model=str(place/'pipeline'), data=str(place/'val'), data_images=str(place/'scenes'/'val2017'), timesteps=[401], method='frozen')
    for name in names:
        draw(name, alone := tmp_path/name)
        for path in [*alone.glob('*.png'), alone/'settings.json', alone/'prompts.json']: assert path.read_bytes() == (both/name/path.name).read_bytes()
        one, other = (read_json(folder/'provenance.json') for folder in (alone, both/name))
        assert one['prompts'] == other['prompts'] and other['params'] | dict(out_dir='') == one['params'] | dict(out_dir='')
    run(EVALUATE, tmp_path, metric='multigen+grounding', benchmark=names[1], images=str(both/names[1]), out_dir=str(tmp_path/'together'/'mini'/'results'), **own)
    run(EVALUATE, tmp_path, metric='multigen', benchmark=names[1], images=str(both/names[1]), out_dir=str(tmp_path/'apart'/'mini'/'results'), **own)
    run(EVALUATE, tmp_path, metric='grounding', out_dir=str(tmp_path/'apart'/'mini'/'results'), **own)
    together, apart = ({r['metric']: kept(r) for r in load_results('mini', str(tmp_path/folder))} for folder in ('together', 'apart'))
    for results in (together, apart):
        for result in results.values(): result['params'] |= dict(out_dir='', images='')
    assert together == apart and set(together) == {'multigen_ade20k', 'grounding'}
    with pytest.raises(ValueError, match='images and references are of one benchmark'):
        run(EVALUATE, tmp_path, benchmark='+'.join(names), images=str(both))
