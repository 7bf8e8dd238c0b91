"VISOR from prompts to a result file: against the library's post-processing, through other batches, processes and interruptions."
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_bad_input import run
from test_detection import NAMES, save_judge
from tokencompose.core import read_json, write_json
from tokencompose.metrics.detection import detect, load_judge, QUERY, read_detections
from tokencompose.metrics.multigen import prompt_classes
from tokencompose.metrics.visor import read_visor, RELATIONS, save_visor, visor_prompts, visor_result, visor_row
from tokencompose.metrics.visor import visor_subset
from tokencompose.models import build_tokenizer, tiny_pipeline
from tokencompose.reporting.results import load_results
from tokencompose.core import image_name
from tokencompose.sampling import sample_images, work_list

SAMPLE, EVALUATE = 'nbs/sample.ipynb', 'nbs/evaluate.ipynb'
PROMPTS = visor_subset(visor_prompts(NAMES), 6)
HOLDS = {'to the left of': lambda a, b: a[0] < b[0], 'to the right of': lambda a, b: a[0] > b[0], 'above': lambda a, b: a[1] < b[1], 'below': lambda a, b: a[1] > b[1]}


def save_owlvit(folder, seed=0, size=64):
    "A random OWL-ViT whose scores are spread out."
    from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor
    tokenizer = build_tokenizer([QUERY.format(name) for name in NAMES]*2, 30, 16)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = OwlViTForObjectDetection(OwlViTConfig(text_config=text | small, vision_config=dict(image_size=size, patch_size=8) | small, projection_dim=32))
        for head in (net.class_head.logit_shift, net.class_head.logit_scale):
            torch.nn.init.normal_(head.weight, std=.3)
            torch.nn.init.constant_(head.bias, -.5)
        for parameter in net.owlvit.text_model.parameters(): parameter.data *= 4
    net.save_pretrained(folder)
    OwlViTProcessor(OwlViTImageProcessor(size=dict(height=size, width=size)), tokenizer).save_pretrained(folder)
    return folder


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
    result, = evaluated(place, tmp_path, method='token-seed1')
    assert (result['metric'], result['method'], result['seed'], result['n']) == ('visor', 'token', 1, dict(prompts=4, rounds=2, images=8))
    records = read_detections(tmp_path/'runs/mini/results/visor/token-seed1-detections')
    assert result['values'] == pytest.approx(by_loops(records, prompts, .6, 2))
    assert 'owlvit' in result['judge'] and 'above 0.6' in result['judge']
    other, = evaluated(place, tmp_path, method='token-seed1', judge_threshold=.5)
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
