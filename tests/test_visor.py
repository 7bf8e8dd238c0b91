"VISOR from prompts to a result file: against the library's post-processing, through other batches, processes and interruptions."
import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_bad_input import run
from test_detection import NAMES, save_judge
from tokencompose.core import read_json, write_json
from tokencompose.metrics.detection import detect, load_judge, QUERY, read_detections, tiny_judge
from tokencompose.metrics.multigen import prompt_classes
from tokencompose.data.classes import COCO_80, WORLD_COCO
from tokencompose.metrics.visor import centroids, read_visor, relation_holds, relation_rates, RELATIONS, save_visor
from tokencompose.metrics.visor import visor_prompts, visor_result, visor_row, visor_subset, visor_table
from tokencompose.models import tiny_pipeline
from tokencompose.reporting.results import load_results
from tokencompose.core import image_name
from tokencompose.sampling import sample_images, work_list

SAMPLE, EVALUATE = 'nbs/sample.ipynb', 'nbs/evaluate.ipynb'
PROMPTS = visor_subset(visor_prompts(NAMES), 6)
HOLDS = {'to the left of': lambda a, b: a[0] < b[0], 'to the right of': lambda a, b: a[0] > b[0], 'above': lambda a, b: a[1] < b[1], 'below': lambda a, b: a[1] > b[1]}


def save_owlvit(folder, **changes): return tiny_judge(folder, NAMES, 'owlvit', **changes)


@pytest.fixture(scope='module', params=[save_judge, save_owlvit], ids=['owlv2', 'owlvit'])
def judge(request, tmp_path_factory): return load_judge(str(request.param(tmp_path_factory.mktemp('judge'))), device='cpu')


@pytest.fixture
def images(tmp_path):
    "Pictures of several shapes for every prompt and two rounds."
    folder, rng = tmp_path/'images', np.random.default_rng(0)
    folder.mkdir()
    for i, item in enumerate(work_list(PROMPTS, 2)):
        coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize([(64, 64), (80, 50), (40, 64)][i % 3], Image.Resampling.BICUBIC).save(folder/image_name(*item))
    return folder


# ---- scores

def by_loops(records, prompts, threshold, rounds):
    "Every score by counting, one box at a time."
    both, right = {}, {}
    for record in records:
        row, centres = next(r for r in prompts if r['unique_id'] == record['prompt_id']), ([], [])
        for (a, b), (x0, y0, x1, y1) in zip(record['scores'], record['boxes']):
            if max(a, b) > threshold: centres[0 if a >= b else 1].append(((x0 + x1)/2, (y0 + y1)/2))
        both.setdefault(row['unique_id'], []).append(bool(centres[0] and centres[1]))
        right.setdefault(row['unique_id'], []).append(any(HOLDS[row['rel_type']](p, q) for p in centres[0] for q in centres[1]))
    shown, correct, n = sum(map(sum, both.values())), sum(map(sum, right.values())), len(prompts)*rounds
    scores = dict(OA=100*shown/n, uncond=100*correct/n) | (dict(cond=100*correct/shown) if shown else {})
    return scores | {f'VISOR_{k}': 100*sum(sum(r) >= k for r in right.values())/len(prompts) for k in range(1, rounds + 1)}


SCORES, PLACE = st.integers(0, 10).map(lambda v: v/10), st.integers(0, 6).map(float)
BOX = st.tuples(st.tuples(SCORES, SCORES), st.tuples(PLACE, PLACE, PLACE, PLACE))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from([0., .1, .5]), st.data())
def test_scores_are_what_counting_gives(rounds, threshold, data):
    prompts = [visor_row(3*i, 'cat', RELATIONS[i % 4], 'dog') for i in range(data.draw(st.integers(1, 5)))]
    boxes = [data.draw(st.lists(BOX, max_size=4)) for _ in range(len(prompts)*rounds)]
    records = [dict(prompt_id=row['unique_id'], round=r, scores=[list(s) for s, _ in found], boxes=[list(b) for _, b in found]) for (row, r), found in zip(itertools.product(prompts, range(rounds)), boxes)]
    result = visor_result(records[::-1], prompts[::-1], threshold, rounds, draws=20)
    assert result['values'] == pytest.approx(by_loops(records, prompts, threshold, rounds))
    values = result['values']
    if 'cond' in values: assert values['uncond'] == pytest.approx(values['cond']*values['OA']/100)
    else: assert values['OA'] == values['uncond'] == 0
    falling = [values[f'VISOR_{k}'] for k in range(1, rounds + 1)]
    assert falling == sorted(falling, reverse=True)
    assert values['uncond'] == pytest.approx(np.mean(falling))     # counting correct pictures by prompt or by picture is the same
    for name, (low, high) in result['intervals'].items(): assert 0 <= low <= high <= 100 and name in values


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(0, 5), st.data())
def test_subsets_are_even(classes, seed, data):
    everything = visor_prompts([f'thing {i}' for i in range(classes)])
    count = data.draw(st.integers(1, len(everything)))
    rows = visor_subset(everything, count, seed)
    assert len({row['unique_id'] for row in rows}) == count and rows == visor_subset(everything, len(everything), seed)[:count]
    assert all(row == everything[row['unique_id']] for row in rows)
    times = [sum(frozenset(prompt_classes(row)) == pair for row in rows) for pair in {frozenset(prompt_classes(row)) for row in everything}]
    assert max(times) - min(times) <= 1
    asked = [sum(row['rel_type'] == relation for row in rows) for relation in RELATIONS]
    assert max(asked) - min(asked) <= 1 + count//(classes*(classes - 1)//2)


# ---- prompts

def test_prompts_are_numbered_by_their_place():
    everything = visor_prompts(COCO_80)
    assert [row['unique_id'] for row in everything] == list(range(25280))
    assert visor_row(0, 'orange', 'above', 'oven')['text'] == 'an orange above an oven'
    assert prompt_classes(everything[5]) == ['bicycle', 'person']
    with pytest.raises(ValueError, match="'cat' twice"): visor_prompts(['cat', 'dog', 'cat'])
    with pytest.raises(ValueError, match="'beside' is not one of"): visor_row(0, 'cat', 'beside', 'dog')


def test_the_subset_of_the_full_list():
    everything = visor_prompts(COCO_80)
    subset = visor_subset(everything, 3160)
    assert visor_subset(everything, 100, seed=1) != subset[:100]
    assert sorted(row['unique_id'] for row in visor_subset(everything, 25280)) == list(range(25280))
    counts = Counter(row['rel_type'] for row in subset[:100])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert np.mean([prompt_classes(row) == sorted(prompt_classes(row)) for row in subset]) == pytest.approx(.5, abs=.01)
    with pytest.raises(ValueError, match='expected 1 to 960'): visor_subset(visor_prompts(WORLD_COCO), 961)


SMALL = visor_prompts(WORLD_COCO)
JOINED = SMALL[0] | dict(unique_id=1000, rel_type='and', text='an apple and a banana')


@pytest.mark.parametrize('rows, message', [
    ([SMALL[0], SMALL[0] | dict(rel_type='beside')], 'row 2: rel_type should be one of to the left of'),
    ([SMALL[0], SMALL[0] | dict(rel_type='above')], "the text does not say 'above'"),
    ([SMALL[0], SMALL[0] | dict(text='an apple to the left of it')], 'does not name banana'),
    ([SMALL[0], SMALL[0]], 'unique_id 0 used'),
    ([JOINED], 'no prompt with a spatial')])
def test_a_prompt_file_edited_by_hand(rows, message, tmp_path):
    save_visor(tmp_path/'prompts.json', SMALL)
    assert read_visor(tmp_path/'prompts.json') == SMALL
    save_visor(tmp_path/'prompts.json', rows)
    with pytest.raises(ValueError, match=message): read_visor(tmp_path/'prompts.json')


# ---- records

def box_at(x, y): return [x - 5, y - 3, x + 5, y + 3]
RECORD = dict(prompt_id=0, round=0, scores=[[.9, .2], [.3, .8], [.05, .4], [.1, .05]], boxes=[box_at(20, 10), box_at(50, 40), box_at(10, 30), box_at(60, 60)])


def test_relations_at_the_edges():
    cats, dogs = centroids(RECORD)
    assert [relation_holds(dogs, r, cats) for r in RELATIONS] == [True, True, False, True]
    level = np.array([[10., 10.]])
    assert not any(relation_holds(level, r, level) for r in RELATIONS)                           # equal is neither left nor right
    assert not any(relation_holds(cats, r, np.zeros((0, 2))) for r in RELATIONS)
    assert [c.shape for c in centroids(dict(scores=[], boxes=[]))] == [(0, 2), (0, 2)]
    assert [len(c) for c in centroids(dict(scores=[[.5, .5]], boxes=[box_at(0, 0)]))] == [1, 0]  # a tie: the first named


@pytest.mark.parametrize('record, threshold, message', [
    (RECORD | dict(boxes=[]), .1, 'two scores and four corners'), (RECORD | dict(scores=[[.9]]*4), .1, 'two scores'),
    (RECORD | dict(scores=[[1.2, 0]]*4), .1, 'between 0 and 1'), (RECORD | dict(boxes=[[0, 0, 1, float('nan')]]*4), .1, 'finite'),
    (dict(prompt_id=0, round=0, scores=[]), .1, 'keep_boxes'), (RECORD, 10, 'threshold')])
def test_records_that_cannot_be(record, threshold, message):
    with pytest.raises(ValueError, match=message): centroids(record, threshold)


TOY = [visor_row(0, 'cat', 'to the left of', 'dog'), visor_row(1, 'cat', 'below', 'dog')]
def toy_record(prompt_id, round, cat=None, dog=None):
    seen = [(score, box_at(*at)) for score, at in (([.9, .1], cat), ([.1, .9], dog)) if at]
    return dict(prompt_id=prompt_id, round=round, scores=[s for s, _ in seen], boxes=[b for _, b in seen])
RECORDS = [toy_record(0, 0, (5, 5), (9, 5)), toy_record(0, 1, (5, 5)), toy_record(1, 0, (5, 9), (5, 1)), toy_record(1, 1, (5, 1), (5, 9))]


def test_the_table_of_four_pictures():
    table = visor_table(RECORDS, TOY)
    pd.testing.assert_frame_equal(visor_table(RECORDS[::-1], TOY[::-1]), table)
    assert table.loc['uncond', 'value'] == pytest.approx(table.loc['cond', 'value']*table.loc['OA', 'value']/100)
    nothing = visor_table([toy_record(p, r) for p in (0, 1) for r in (0, 1)], TOY)
    assert nothing['value'].to_dict() == dict(OA=0., uncond=0., VISOR_1=0., VISOR_2=0.)           # no conditional score
    with pytest.raises(ValueError, match=r'1 missing: \(1, 1\)\.'): visor_table(RECORDS[:3], TOY)
    with pytest.raises(ValueError, match=r'1 surplus: \(9, 0\); 1 repeated: \(0, 0\)'): visor_table(RECORDS + [RECORDS[0], toy_record(9, 0)], TOY)
    assert np.isnan(relation_rates([toy_record(0, 0)], TOY[:1])['cond'].item())


def test_results_of_few_pictures():
    result = visor_result(RECORDS, TOY)
    assert result['n'] == dict(prompts=2, rounds=2, images=4)
    assert (result['values']['OA'], result['units']['values']['OA']) == (75., [50., 100.])
    assert visor_result([toy_record(0, 0, (1, 1))], TOY[:1])['values'] == dict(OA=0., uncond=0., VISOR_1=0.)


# ---- from pictures

def stock_record(judge, path, row):
    "What the library alone finds."
    names, picture = prompt_classes(row), Image.open(path)
    inputs = judge.processor(text=[[QUERY.format(n) for n in names]], images=picture, return_tensors='pt', max_length=16)
    with torch.no_grad(): output = judge.model(**inputs)
    found = judge.processor.post_process_grounded_object_detection(output, .01, [picture.size[::-1]], [names])[0]
    return dict(scores=[[float(s) if i == l else 0. for i in (0, 1)] for s, l in zip(found['scores'], found['labels'])], boxes=found['boxes'].tolist())


def test_visor_from_records_is_visor_from_the_library(judge, images, tmp_path):
    records = detect(judge, images, PROMPTS, 2, tmp_path/'verdicts', batch=5, keep_boxes=True)
    rows = {row['unique_id']: row for row in PROMPTS}
    stock = [dict(prompt_id=p, round=r, **stock_record(judge, images/image_name(p, r), rows[p])) for p, r in work_list(PROMPTS, 2)]
    for a, b in zip(records, stock): np.testing.assert_allclose(a['boxes'], b['boxes'], atol=.02)  # an order along one axis would not show a wrong scale
    seen = set()
    for threshold in (.3, .5, .6, .7, .8, .85, .9):
        ours, theirs = (visor_result(some, PROMPTS, threshold, 2, draws=20)['values'] for some in (records, stock))
        assert ours == pytest.approx(theirs)
        seen.add(tuple(ours.values()))
    assert len(seen) >= 3, 'the comparison should not be one of constants'


def test_neither_batches_nor_processes_nor_interruptions_show(judge, images, tmp_path, monkeypatch):
    from tokencompose.metrics import detection
    whole = visor_result(detect(judge, images, PROMPTS, 2, tmp_path/'whole', batch=12, keep_boxes=True), PROMPTS, .7, 2)
    shared = [detect(judge, images, PROMPTS, 2, tmp_path/'shared', batch=2, share=(rank, 3), keep_boxes=True) for rank in (2, 0, 1)][-1]
    write, written = detection.write_jsonl, []
    def failing(path, rows):
        if len(written) == 3: raise OSError('No space left on device')
        written.append(path)
        write(path, rows)
    with monkeypatch.context() as patch:
        patch.setattr(detection, 'write_jsonl', failing)
        with pytest.raises(OSError, match='No space'): detect(judge, images, PROMPTS, 2, tmp_path/'part', batch=1, part=1, keep_boxes=True)
    assert len(read_detections(tmp_path/'part')) == 3
    resumed = detect(judge, images, PROMPTS, 2, tmp_path/'part', batch=4, keep_boxes=True)
    for records in (shared, resumed):
        result = visor_result(records, PROMPTS, .7, 2)
        assert result['values'] == pytest.approx(whole['values']) and result['units'] == whole['units']
    with pytest.raises(ValueError, match='9 missing'): visor_result(read_detections(tmp_path/'part')[:3], PROMPTS, .7, 2)


def test_owlvit_reads_old_preprocessing_and_refuses_a_crop(tmp_path):
    path = save_owlvit(tmp_path/'judge')/'preprocessor_config.json'
    old = {k: v for k, v in read_json(path).items() if k not in ('size', 'crop_size', 'image_processor_type')} | dict(feature_extractor_type='OwlViTFeatureExtractor')
    write_json(path, old | dict(size=[64, 64], crop_size=64, do_center_crop=False))
    assert load_judge(str(tmp_path/'judge'), device='cpu').pads is False
    write_json(path, old | dict(size=[64, 64], crop_size=48, do_center_crop=True))
    with pytest.raises(ValueError, match='cuts the borders off'): load_judge(str(tmp_path/'judge'), device='cpu')
    write_json(path, old | dict(size=[96, 96]))
    with pytest.raises(ValueError, match='96x96 pixels, the model takes 64x64'): load_judge(str(tmp_path/'judge'), device='cpu')


# ---- the notebooks

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp('place')
    tiny_pipeline([f'{row["text"]}.' for row in visor_prompts(['apple', 'banana', 'cat', 'boat'])]).save_pretrained(folder/'pipeline')
    save_judge(folder/'owlv2')
    save_owlvit(folder/'owlvit')
    return folder


def sampled(place, tmp_path, **params):
    run(SAMPLE, tmp_path, **dict(benchmark='visor', model=str(place/'pipeline'), out_dir=str(tmp_path/'images'), prompts=4, rounds=2, inference_steps=1) | params)
    return tmp_path/'images'


def evaluated(place, tmp_path, **params):
    run(EVALUATE, tmp_path, **dict(metric='visor', judge=str(place/'owlvit'), images=str(tmp_path/'images'), rounds=2, judge_threshold=.6, out_dir=str(tmp_path/'runs'/'mini'/'results')) | params)
    return load_results('mini', str(tmp_path/'runs'))


def test_visor_from_a_model_to_a_result(place, tmp_path):
    images = sampled(place, tmp_path)
    prompts = read_visor(images/'prompts.json')
    assert len(prompts) == 4 and {row['unique_id'] for row in prompts} <= set(range(960))
    result, = evaluated(place, tmp_path, method='token', train_seed=1)
    assert (result['metric'], result['method'], result['seed'], result['n']) == ('visor', 'token', 1, dict(prompts=4, rounds=2, images=8))
    records = read_detections(tmp_path/'runs/mini/results/visor/token-seed1-detections')
    assert result['values'] == pytest.approx(by_loops(records, prompts, .6, 2))
    assert 'owlvit' in result['judge'] and 'above 0.6' in result['judge']
    other, = evaluated(place, tmp_path, method='token', train_seed=1, judge_threshold=.5)
    assert len(read_detections(tmp_path/'runs/mini/results/visor/token-seed1-detections')) == 8, 'another threshold costs no second look'
    assert other['values'] == pytest.approx(by_loops(records, prompts, .5, 2))


def test_a_folder_that_is_not_as_it_should_be(place, tmp_path):
    images = sampled(place, tmp_path)
    first, *_, last = (path for path in sorted(images.glob('*.png')))
    whole = first.read_bytes()
    (images/'9999_0.png').write_bytes(whole)                                        # surplus: left out
    result, = evaluated(place, tmp_path)
    assert result['n']['images'] == 8
    first.write_bytes(whole[:-30])
    kept = {path: path.stat().st_mtime_ns for path in images.glob('*_*.png') if path not in (first, last)}
    last.unlink()
    with pytest.raises(FileNotFoundError, match=rf'1 missing, the first is {last.name}; 1 broken, the first one is {first.name}'): evaluated(place, tmp_path)
    sampled(place, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, 'what was whole is left alone'
    assert last.is_file() and abs(np.asarray(Image.open(first)).astype(int) - np.asarray(Image.open(images/'9999_0.png'))).max() <= 1
    prompts = read_visor(images/'prompts.json')
    swapped = visor_row(prompts[0]['unique_id'], *prompt_classes(prompts[0])[:1], next(r for r in RELATIONS if r != prompts[0]['rel_type']), prompt_classes(prompts[0])[1])
    save_visor(images/'prompts.json', [swapped] + prompts[1:])
    with pytest.raises(ValueError, match=f'1 pictures in .* were drawn from other texts .* prompt {swapped["unique_id"]}'): evaluated(place, tmp_path)


def test_two_judges_do_not_share_a_folder(place, tmp_path):
    sampled(place, tmp_path)
    evaluated(place, tmp_path)
    with pytest.raises(ValueError, match='made with other settings'): evaluated(place, tmp_path, judge=str(place/'owlv2'))


@pytest.mark.parametrize('notebook, params, sentence', [
    (SAMPLE, dict(prompts=961), 'count: expected 1 to 960'),
    (SAMPLE, dict(benchmark='vizor'), "Parameter benchmark: 'vizor' is not one of multigen_coco, multigen_ade20k, visor"),
    (SAMPLE, dict(rounds=0), 'prompts and rounds: expected 1 or more, got 4 and 0'),
    (EVALUATE, dict(benchmark='multigen_coco'), 'visor scores visor, not multigen_coco'),
    (EVALUATE, dict(images='nowhere'), 'holds no finished pictures')])
def test_bad_parameters(notebook, params, sentence, place, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): (sampled if notebook == SAMPLE else evaluated)(place, tmp_path, **params)
