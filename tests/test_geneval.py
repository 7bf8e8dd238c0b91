"GenEval: verdicts against a second scorer, instances against the library, colours, numbers, and the way through the notebooks."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from make_real_files import geneval_row, GENEVAL, write_prompt_lists
from PIL import Image
from test_bad_input import run
from test_detection import save_judge

from tokencompose.core import image_name, read_json, write_json, write_jsonl
from tokencompose.data.classes import COCO_80
from tokencompose.metrics.detection import read_detections
from tokencompose.metrics.geneval import COLOR_NAMES, counted, geneval_result, geneval_table, geneval_verdicts, positions
from tokencompose.metrics.geneval import read_geneval, read_geneval2, shortcomings, soft_scores, TASKS, verdict
from tokencompose.metrics.segments import colored_things, ColorNamer, cut_out, find_instances, GENEVAL_NAMES, instances_of
from tokencompose.metrics.segments import load_instances, Mask2Former, tiny_mask2former
from tokencompose.metrics.vqa import load_judge_clip
from tokencompose.profiles import PROFILES
from tokencompose.reporting.results import load_results

NAMES = ['cat', 'dog', 'bus']


# ---- the second scorer: written from the published rules alone, class by class and box by box

def second_verdict(prompt, boxes):
    least = .9 if prompt['tag'] == 'counting' else .3
    by_class = {}
    for box in boxes: by_class.setdefault(box['name'], []).append(box)
    for name, own in by_class.items():
        own.sort(key=lambda b: b['score'], reverse=True)
        by_class[name] = [b for b in own if b['score'] > least][:16]
    passed, targets = True, []
    for want in prompt['include']:
        own, ok = by_class.get(want['class'], [])[:want['count']], True
        if len(own) != want['count']: ok = False
        elif 'color' in want and sum(b['color'] == want['color'] for b in own) != want['count']: ok = False
        elif 'position' in want:
            word, which = want['position']
            if targets[which] is None: ok = False
            else:
                for b in own:
                    for t in targets[which]: ok = ok and stands(b['box'], t['box'], word)
        passed = passed and ok
        targets.append(own if ok else None)
    for ban in prompt.get('exclude', []):
        if len(by_class.get(ban['class'], [])) >= ban['count']: passed = False
    return passed


def stands(a, b, word):
    "Whether box a stands to box b as the word says."
    ax, ay, bx, by = (a[0] + a[2])/2, (a[1] + a[3])/2, (b[0] + b[2])/2, (b[1] + b[3])/2
    dx, dy = ax - bx, ay - by
    wide, tall = abs(a[2] - a[0]) + abs(b[2] - b[0]), abs(a[3] - a[1]) + abs(b[3] - b[1])
    sx = max(abs(dx) - .1*wide, 0.)*(1 if dx > 0 else -1)
    sy = max(abs(dy) - .1*tall, 0.)*(1 if dy > 0 else -1)
    if abs(sx) < 1e-3 and abs(sy) < 1e-3: return False
    length = (dx*dx + dy*dy)**.5
    return {'left of': sx/length < -.5, 'right of': sx/length > .5, 'above': sy/length < -.5, 'below': sy/length > .5}[word]


def invented_prompt(rng):
    "A row of any of the six forms; sometimes with more than the published file has."
    tag = TASKS[rng.integers(6)]
    first, second = (str(name) for name in rng.permutation(NAMES)[:2])
    colors = [str(c) for c in rng.permutation(COLOR_NAMES)[:2]]
    count = int(rng.integers(1, 4)) if rng.random() < .3 else 1
    def clause(name, **more): return dict({'class': name, 'count': count}, **more)
    place = [str(rng.choice(['left of', 'right of', 'above', 'below'])), 0]
    include = dict(single_object=[clause(first)], two_object=[clause(first), clause(second)], counting=[clause(first)], colors=[clause(first, color=colors[0])],
                   position=[clause(second), clause(first, position=place)], color_attr=[clause(first, color=colors[0]), clause(second, color=colors[1])])[tag]
    if tag == 'position' and rng.random() < .3: include[0]['color'] = colors[0]
    more = dict(exclude=[{'class': first, 'count': count + 1}]) if tag == 'counting' or rng.random() < .1 else {}
    return dict(tag=tag, include=include, **more, prompt='invented')


def invented_boxes(rng):
    "Boxes of three classes, many of them on a coarse grid, a few of them in heaps of more than sixteen."
    n = int(rng.choice([0, 1, 2, 3, 5, 8, 40], p=[.05, .15, .2, .2, .2, .15, .05]))
    boxes = []
    for _ in range(n):
        corner, size = rng.uniform(0, 400, 2), rng.uniform(5, 200, 2)
        if rng.random() < .5: corner, size = corner.round(-2), size.round(-1) + 10
        score = float(rng.choice([rng.uniform(0, 1), .3, .9, .31, .95]))
        boxes.append(dict(name=str(rng.choice(NAMES)), score=score + float(rng.uniform(0, 1e-9)), box=[float(v) for v in (*corner, *(corner + size))], color=str(rng.choice(COLOR_NAMES[:3]))))
    return boxes


def test_no_difference_from_the_second_scorer_on_ten_thousand_sets():
    rng, right, differ = np.random.default_rng(0), [], []
    for i in range(10_000):
        prompt, boxes = invented_prompt(rng), invented_boxes(rng)
        ours, theirs = verdict(prompt, boxes), second_verdict(prompt, boxes)
        right.append(ours)
        if ours != theirs: differ.append((prompt, boxes))
    assert not differ, f'{len(differ)} differ, the first is {differ[0]}'
    assert .1 < np.mean(right) < .9, 'the sets should be neither all right nor all wrong'


# ---- rules, one at a time

def thing(name, score=.8, box=(0, 0, 10, 10), color='red'): return dict(name=name, score=score, box=list(box), color=color)
def asks(tag, *include, **more): return dict(tag=tag, include=list(include), prompt='p', **more)
def clause(name, count=1, **more): return dict({'class': name, 'count': count}, **more)


def test_the_threshold_is_strict_and_higher_for_counting():
    assert not verdict(asks('single_object', clause('cat')), [thing('cat', .3)]) and verdict(asks('single_object', clause('cat')), [thing('cat', .3000001)])
    two = [thing('cat', .95), thing('cat', .9)]
    assert not verdict(asks('counting', clause('cat', 2)), two) and verdict(asks('two_object', clause('cat', 2)), two)
    assert verdict(asks('counting', clause('cat', 2)), two, counting_threshold=.5)


def test_at_most_sixteen_of_a_class():
    many = [thing('cat', .95 - .001*i) for i in range(20)]
    assert not verdict(asks('counting', clause('cat', 17)), many) and verdict(asks('counting', clause('cat', 17)), many, most=20)
    assert verdict(asks('counting', clause('cat', 16), exclude=[clause('cat', 17)]), many)  # so nothing is ever excluded from 17 on
    assert not verdict(asks('counting', clause('cat', 2), exclude=[clause('cat', 3)]), many)


def test_only_the_first_boxes_are_looked_at():
    "The most confident box decides about the colour, wherever it stands in the list."
    boxes = [thing('cat', .5, color='blue'), thing('cat', .9, color='red')]
    assert verdict(asks('colors', clause('cat', color='red')), boxes) and not verdict(asks('colors', clause('cat', color='blue')), boxes)


def test_overlaps_are_suppressed_on_request_only():
    boxes = [thing('cat', .95), thing('cat', .94, (0, 0, 10, 11)), thing('cat', .93, (50, 50, 60, 60))]
    assert verdict(asks('counting', clause('cat', 3)), boxes) and not verdict(asks('counting', clause('cat', 3)), boxes, max_overlap=.9)
    assert len(counted(boxes, 'counting', max_overlap=.9)['cat']) == 2


def test_a_clause_whose_target_failed_fails():
    prompt = asks('position', clause('dog', color='blue'), clause('cat', position=['left of', 0]))
    boxes = [thing('cat', box=(0, 0, 10, 10)), thing('dog', box=(90, 0, 100, 10), color='red')]
    assert shortcomings(prompt, boxes) == ['1 blue dog: found red', 'cat left of something that is not there as asked']


@pytest.mark.parametrize('box, expected', [((0, 100, 20, 120), {'left of'}), ((200, 100, 220, 120), {'right of'}), ((100, 0, 120, 20), {'above'}), ((100, 200, 120, 220), {'below'}),
                                           ((0, 0, 20, 20), {'left of', 'above'}), ((100, 100, 120, 120), set()), ((97, 100, 117, 120), set())])
def test_positions_by_hand(box, expected): assert positions(list(box), [100, 100, 120, 120]) == expected


@given(st.lists(st.integers(0, 500), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_positions_are_mirror_images(values):
    a, b = ([x, y, x + w, y + h] for x, y, w, h in (values[:4], values[4:]))
    mirrored = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
    assert {mirrored[word] for word in positions(a, b)} == positions(b, a)


# ---- bad input

def test_prompt_files(tmp_path):
    rows = read_geneval(write_prompt_lists(tmp_path)/'geneval'/'evaluation_metadata.jsonl')
    assert [row['tag'] for row in rows] == [task for task in TASKS for _ in range(3)] and rows[4]['text'] == geneval_row('two_object', 1)['prompt']
    write_json(tmp_path/'prompts.json', rows)
    assert read_geneval(tmp_path/'prompts.json') == json.loads(json.dumps(rows)) and set(GENEVAL) == set(TASKS)


@pytest.mark.parametrize('change, sentence', [
    (dict(tag='beauty'), "row 0: the tag 'beauty' is not one of single_object"), (dict(include=[]), '`include` is empty'), (dict(prompt=None), 'the prompt is missing'),
    (dict(include=[clause('cat', 0)]), 'the count of cat should be a number from 1 on, got 0'), (dict(include=[clause('cat', color='mauve')]), "the colour 'mauve' of cat is not one of red, orange"),
    (dict(include=[clause('cat', position=['beside', 0])]), "the position 'beside' of cat"), (dict(include=[clause('cat', position=['above', 0])]), 'which does not come before it'),
    (dict(include=['cat']), "expected a clause with a class, got 'cat'")])
def test_prompts_that_cannot_be(change, sentence, tmp_path):
    write_jsonl(tmp_path/'e.jsonl', [geneval_row('single_object', 0) | change])
    with pytest.raises(ValueError, match=sentence): read_geneval(tmp_path/'e.jsonl')


def test_files_that_are_empty_or_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='fetch that of GenEval with data_prep/00_fetch.ipynb'): read_geneval(tmp_path/'none.jsonl')
    (tmp_path/'e.jsonl').write_text('')
    with pytest.raises(ValueError, match='holds no prompts'): read_geneval(tmp_path/'e.jsonl')
    with pytest.raises(FileNotFoundError, match='CC BY-NC and not shipped'): read_geneval2(tmp_path/'none.jsonl')


def test_colours_and_clauses_that_are_unknown_to_the_verdict():
    with pytest.raises(ValueError, match="has the colour 'mauve', which is not one of red"): verdict(asks('colors', clause('cat', color='red')), [thing('cat', color='mauve')])
    with pytest.raises(ValueError, match="the colour 'mauve' of cat"): verdict(asks('colors', clause('cat', color='mauve')), [])
    with pytest.raises(ValueError, match='the tag is missing'): verdict(dict(include=[clause('cat')]), [])
    assert verdict(asks('single_object', clause('cat')), [thing('cat', color=None)]), 'a colour that nobody asks for may be missing'


# ---- numbers

def test_accuracies_and_their_mean_against_counting():
    rng = np.random.default_rng(1)
    rows = [dict(unique_id=i, tag=task) for i, task in enumerate(np.repeat(TASKS, [5, 4, 3, 2, 6, 1]).tolist())]
    right = rng.random((len(rows), 4)) < .6
    table, result = geneval_table(rows, right), geneval_result(rows, right)
    each = {task: np.mean([right[i] for i, row in enumerate(rows) if row['tag'] == task]) for task in TASKS}
    assert result['values'] == pytest.approx(each | dict(mean=np.mean(list(each.values()))))
    assert (table.loc['mean', 'low'] <= result['values']['mean'] <= table.loc['mean', 'high']) and table.loc['position', 'prompts'] == 6
    rounds = [np.mean([right[[row['tag'] == task for row in rows], r].mean() for task in TASKS]) for r in range(4)]
    assert result['std']['mean'] == pytest.approx(np.std(rounds))


def test_a_task_without_prompts_is_left_out_of_the_mean():
    rows = [dict(unique_id=0, tag='colors'), dict(unique_id=1, tag='position'), dict(unique_id=2, tag='position')]
    result = geneval_result(rows, np.array([[True], [True], [False]]))
    assert set(result['values']) == {'colors', 'position', 'mean'} and result['values']['mean'] == .75


def test_verdicts_want_every_picture():
    rows = [dict(unique_id=i, **asks('single_object', clause('cat'))) for i in range(2)]
    records = [dict(prompt_id=i, round=r, detections=[thing('cat')]*(i == r)) for i in range(2) for r in range(2)]
    assert geneval_verdicts(rows, records, 2).tolist() == [[True, False], [False, True]]
    with pytest.raises(ValueError, match='1 missing'): geneval_verdicts(rows, records[1:], 2)


def test_soft_scores(tmp_path):
    scores = soft_scores([[.5, .5], [1., 0.], [.9, .9, .3]])
    assert scores.arithmetic.tolist() == pytest.approx([.5, .5, .7]) and scores.geometric.tolist() == pytest.approx([.5, 0, (.9*.9*.3)**(1/3)])
    for wrong in ([], [1.2], [[.5]]):
        with pytest.raises(ValueError, match='Picture 1: expected one probability'): soft_scores([[.5], wrong])
    row = dict(prompt='two red cats', atom_count=2, vqa_list=[['How many cats are there?', 'two'], ['Are the cats red?', 'Yes']], skills=['count', 'attribute'])
    write_jsonl(tmp_path/'g2.jsonl', [row])
    assert read_geneval2(tmp_path/'g2.jsonl')[0]['questions'] == row['vqa_list']
    write_jsonl(tmp_path/'g2.jsonl', [row, row | dict(skills=['count'])])
    with pytest.raises(ValueError, match='row 2: expected a prompt, its vqa_list, and as many skills'): read_geneval2(tmp_path/'g2.jsonl')


# ---- the eyes

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A random Mask2Former, a random OWLv2 that knows COCO's names, and the zoo's CLIP."
    folder = tmp_path_factory.mktemp('models')
    tiny_mask2former(folder/'mask2former')
    save_judge(folder/'owlv2')
    return folder


def coarse_picture(size, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def test_instances_are_those_of_the_library(models):
    "On a picture of 384 pixels, the size at which the library cuts its masks."
    judge, picture = load_instances(str(models/'mask2former'), device='cpu'), coarse_picture((384, 384))
    inputs = judge.processor(picture, return_tensors='pt')
    with torch.no_grad(): output = judge.model(**inputs)
    stock = judge.processor.post_process_instance_segmentation(output, threshold=.05, target_sizes=[(384, 384)], return_binary_maps=True)[0]
    theirs = sorted((info['score'], judge.names[info['label_id']]) for info in stock['segments_info'])
    things = judge(picture, list(judge.names), set())
    assert len(things) >= 3 and [t['score'] for t in things] == sorted([t['score'] for t in things], reverse=True)
    assert sorted(t['score'] for t in things) == pytest.approx([score for score, _ in theirs], abs=2e-3)  # masks once and twice resized
    assert sorted(t['name'] for t in things) == sorted(name for _, name in theirs)


@pytest.mark.parametrize('size', [(64, 64), (100, 60), (50, 90)])
def test_masks_and_boxes_have_the_pictures_size(models, size):
    for thing in load_instances(str(models/'mask2former'), device='cpu')(coarse_picture(size), list(GENEVAL_NAMES), set()):
        ys, xs = np.nonzero(thing['mask'])
        assert thing['mask'].shape == size[::-1] and thing['box'] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_three_classes_have_other_names_in_geneval():
    renamed = [(coco, name) for coco, name in zip(COCO_80, GENEVAL_NAMES) if coco != name]
    assert renamed == [('mouse', 'computer mouse'), ('remote', 'tv remote'), ('keyboard', 'computer keyboard')] and len(GENEVAL_NAMES) == 80


def test_an_instance_without_a_pixel_or_below_the_floor_is_none():
    classes, scores, masks = instances_of(torch.tensor([[5., 0, 0], [0, 5., 0], [-9., -9, 9.]]), torch.stack([torch.full((4, 4), v) for v in (3., -3., 3.)]))
    assert classes.tolist() == [0] and masks.all()


def test_who_cannot_judge(models, tmp_path):
    with pytest.raises(ValueError, match="of the type 'clip': point `instances` at a Mask2Former"): load_instances('tokencompose/zoo/clip')
    with pytest.raises(ValueError, match="does not know the class 'mouse'"): Mask2Former(models/'mask2former', 'm', 'cpu')(coarse_picture((64, 64)), ['mouse'], set())


def test_what_is_cut_out():
    picture, mask = Image.new('RGB', (8, 6), 'red'), np.zeros((6, 8), bool)
    mask[2:4, 2:5] = True
    cut = np.asarray(cut_out(picture, [1.2, 1., 6., 5.4], mask))
    assert cut.shape == (4, 5, 3) and (cut[1:3, 1:4] == [255, 0, 0]).all() and (cut[0] == 0x99).all()
    assert cut_out(picture, [3., 3., 3., 3.]).size == (1, 1)


class FakeClip:
    "Reads by a table and sees nothing but one direction."
    label = 'fake'
    def read(self, texts): return torch.stack([torch.nn.functional.normalize(torch.tensor([float(len(t)), float('red' in t), float('object' in t)]), dim=0) for t in texts])
    def see(self, pictures): return torch.tensor([[0., 1., 0.]]).expand(len(pictures), 3)


def test_a_colour_is_the_mean_of_three_sentences():
    namer = ColorNamer(FakeClip())
    row, = namer(Image.new('RGB', (9, 9)), [dict(name='cat', box=[0, 0, 9, 9])])
    texts = [[f'a photo of a {c} cat', f'a photo of a {c}-colored cat', f'a photo of a {c} object'] for c in COLOR_NAMES]
    means = [FakeClip().read(own).mean(0) for own in texts]
    assert row == pytest.approx([float((m/m.norm())[1]) for m in means], abs=1e-6) and int(np.argmax(row)) == 0


def write_pictures(folder, rows, rounds=2, size=64):
    folder.mkdir()
    for i, row in enumerate(rows):
        for r in range(rounds): coarse_picture((size, size), 10*i + r).save(folder/image_name(row['unique_id'], r))
    return folder


@pytest.fixture
def prompts(tmp_path): return read_geneval(write_prompt_lists(tmp_path)/'geneval'/'evaluation_metadata.jsonl')


def test_records_do_not_depend_on_who_works_and_when(models, prompts, tmp_path):
    finder, namer = load_instances(str(models/'mask2former'), device='cpu'), ColorNamer(load_judge_clip('tokencompose/zoo/clip', device='cpu'))
    images = write_pictures(tmp_path/'images', prompts)
    def find(folder, **more): return find_instances(finder, namer, images, prompts, list(finder.names), 2, tmp_path/folder, **more)
    whole = find('whole')
    for rank in (2, 0): find('parts', share=(rank, 3))
    assert len(find('parts', share=(1, 3))) == len(whole) == 36 and find('parts') == whole
    assert all((len(cosines) == 10) == (name in record['asked']) for record in whole for name, cosines in zip(record['names'], record['colors']))
    asked = [dict(prompts[0], include=[clause('cat', color='red')]), *prompts[1:]]
    again = find_instances(finder, namer, images, asked, list(finder.names), 2, tmp_path/'parts')
    assert [a != b for a, b in zip(again, whole)].count(True) == 2, 'a prompt that asks for a colour now is looked at again'


def test_from_pictures_to_a_result_and_back(models, prompts, tmp_path, monkeypatch):
    "Through nbs/evaluate.ipynb; and the verdicts again, from the records alone."
    monkeypatch.setitem(PROFILES, 'mini', PROFILES['mini'].replace(instances=str(models/'mask2former'), instances_threshold=.4, counting_threshold=.5, geneval_prompts=3))
    images = write_pictures(tmp_path/'images', prompts)
    write_json(images/'prompts.json', prompts)
    write_json(images/'settings.json', dict(prompts={str(row['unique_id']): row['text'] for row in prompts}))
    def evaluated(**more):
        run('nbs/evaluate.ipynb', tmp_path, metric='geneval', images=str(images), out_dir=str(tmp_path/'runs'/'mini'/'results'), **more)
        return load_results('mini', str(tmp_path/'runs'))[0]
    result = evaluated()
    records = list(map(colored_things, read_detections(tmp_path/'runs/mini/results/geneval/frozen-instances')))
    right = geneval_verdicts(prompts, records, 2, threshold=.4, counting_threshold=.5)
    assert result['metric'] == 'geneval' and result['n'] == dict(prompts=18, rounds=2, images=36) and result['values'] == pytest.approx(geneval_result(prompts, right)['values'])
    assert 'above 0.4; colours by tokencompose/zoo/clip' in result['judge'] and set(result['values']) == {*TASKS, 'mean'}
    assert evaluated()['values'] == result['values'] and read_json(tmp_path/'runs/mini/results/geneval/frozen.json')['notes'] == dict(threshold=.4, counting_threshold=.5)
