"The committed records of a run make its committed table again."
import ast
import functools
import itertools
import json
import os
import re

import papermill as pm
import pytest
from conftest import ROOT
from hypothesis import given, strategies as st
from PIL import Image
from test_bad_input import HereEngine  # noqa: F401  (registers the engine "here")

from tokencompose.core import image_name, read_json, repo_root, write_json
from tokencompose.data.world_files import write_world
from tokencompose.methods import METHODS, parse_run, rows, run_names
from tokencompose.metrics.compbench import CATEGORIES
from tokencompose.metrics.geneval import TASKS
from tokencompose.metrics.multigen import prompt_row
from tokencompose.profiles import get_profile
from tokencompose.reporting.records import adopt_records, compact_json, identity, keep_records, own_parameters
from tokencompose.reporting.results import load_results, result_path, save_result, toy_result
from tokencompose.reporting.tables import pictures_grid

RECORDS = ROOT/'paper_figures/records'
WHOLE = [('mini', 'table1'), ('mini', 'table2'), ('mini_v', 'table3'), ('mini', 'table4'), ('mini', 'table5')]  # profile and a table that its records hold wholly


def numbers(text): return re.findall(r'-?\d+\.\d+', text)


def agree(a, b):
    "Two printed numbers, up to one in the last digit: another processor may round the other way."
    digits = len(b.split('.')[1])
    return len(a.split('.')[1]) == digits and abs(float(a) - float(b)) < 1.5*10**-digits


def styled_table(notebook):
    "HTML of the table with the paper's numbers, which alone is styled, in an executed notebook."
    outputs = [output for cell in notebook['cells'] if cell['cell_type'] == 'code' for output in cell['outputs']]
    shown = (''.join(output['data']['text/html']) for output in outputs if 'text/html' in output.get('data', {}))
    return next(html for html in shown if '<table id="T_' in html)


def styled_cells(notebook): return re.findall(r'<td[^>]*>(.*?)</td>', styled_table(notebook))


@pytest.mark.parametrize('profile,table', WHOLE)
def test_records_make_the_committed_table(profile, table, tmp_path):
    params = dict(profile=profile, runs='paper_figures/records', out_dir=str(tmp_path))
    notebook, executed = tmp_path/'again.ipynb', ROOT/f'paper_figures/executed/{table}.ipynb'
    pm.execute_notebook(ROOT/f'paper_figures/{table}.ipynb', notebook, params, cwd=ROOT, progress_bar=False, engine_name='here')
    again, committed = (styled_cells(read_json(path)) for path in (notebook, executed))
    lacking = int(table == 'table1')  # the latency of denoising only, which costs what any trained model does
    assert len(again) == len(committed) and sum('not run' in cell for cell in committed) == lacking
    pairs = [pair for cells in zip(again, committed) for pair in zip(*map(numbers, cells), strict=True)]
    assert len(pairs) > 50 and not [pair for pair in pairs if not agree(*pair)]


@pytest.mark.parametrize('table', [table for _, table in WHOLE])
def test_committed_rows_are_called_as_the_table_of_methods_says(table):
    html = styled_table(read_json(ROOT/f'paper_figures/executed/{table}.ipynb'))
    label = 'numbered' if table == 'table2' else 'label'
    assert re.findall(r'<th[^>]*row_heading level0[^>]*>(.*?)</th>', html) == [getattr(METHODS[m], label) for m in rows(table)]


def toy_run(folder, seeds=(0, 1)):
    "Results as a profile leaves them, invented, of every kind that a table or figure reads."
    rows = {run: found for run, found in zip(run_names(METHODS, seeds), itertools.cycle([((1, 2), (1, 1)), ((3, 2), (2, 1)), ((2, 2), (2, 0))]))}
    for run, found in rows.items():
        method, seed = parse_run(run)
        made = functools.partial(toy_result, method, found, seed=seed)
        for metric in ('multigen_coco', 'multigen_ade20k'): save_result(made(metric=metric, notes=dict(where=f'{repo_root()}/runs')), folder)
        for metric, name in (('visor', 'OA'), ('grounding', 'mass'), ('grounding', 'iou_0.5'), ('frechet_coco', 'FD'), ('frechet_flickr30k', 'FD'), ('daam', 'mIoU'), ('training', 'seconds')):
            path = result_path('mini', metric, method, seed, folder)
            old = read_json(path) if path.is_file() else None
            result = made(metric=metric)
            for part in ('values', 'intervals', 'std'): result[part] = {name: result[part]['MG2']} if 'MG2' in result.get(part, {}) else {}
            result['units'] = dict(ids=result['units']['ids'], values={name: result['units']['values']['MG2']})
            if old:
                for part in ('values', 'intervals', 'std'): result[part] |= old[part]
                result['units']['values'] |= old['units']['values']
            save_result(result, folder)
        place = folder/'mini'/'results'/'pictures'/run/'multigen_coco'
        rows_shown = [dict(unique_id=i, text='a cat', objects=['cat'], found=1) for i in range(2)]
        write_json(place/'prompts.json', rows_shown)
        for i in range(2): Image.new('L', (8, 8)).save(place/image_name(i, 0))
    return rows


def test_kept_records_are_the_results_but_for_their_size(tmp_path):
    toy_run(tmp_path/'runs')
    keep_records(tmp_path/'runs'/'mini', tmp_path/'records'/'mini')
    old, new = (load_results('mini', tmp_path/name) for name in ('runs', 'records'))
    assert [r['values'] for r in new] == [r['values'] for r in old] and len(new) == len(old)
    assert {r['notes']['where'] for r in new if 'notes' in r} == {'runs'}
    kept = {path.parts[-3] for path in (tmp_path/'records').rglob('*.png')}
    assert kept == {run for run in run_names(METHODS, (0, 1)) if not run.endswith('seed1')}, 'pictures of the first training seed only'
    assert len(pictures_grid(tmp_path/'records'/'mini'/'results'/'pictures', ['frozen', 'denoise-seed0', 'denoise-seed1'], columns=2).axes) == 4


def test_one_run_is_kept_alone_and_others_stay(tmp_path):
    toy_run(tmp_path/'runs')
    records = tmp_path/'records'/'mini'
    keep_records(tmp_path/'runs'/'mini', records, only='layout')
    assert {r['method'] for r in load_results('mini', tmp_path/'records')} == {'layout'}
    keep_records(tmp_path/'runs'/'mini', records, only='token-seed1')
    assert {(r['method'], r['seed']) for r in load_results('mini', tmp_path/'records')} == {('layout', None), ('token', 1)}
    with pytest.raises(FileNotFoundError, match='make reproduce'): keep_records(tmp_path/'nowhere', tmp_path/'kept')


# ---- every table and figure from records alone

def like(metric, run, of=None, **changes):
    "An invented result in the form of the committed ones."
    method, seed = parse_run(run)
    return read_json(RECORDS/'mini'/'results'/(of or metric)/'frozen.json') | dict(metric=metric, method=method, seed=seed) | changes


def latency(run):
    units = dict(ids=list(range(4)), values=dict(seconds=[1., 1.1, .9, 1.], ratio=[1., 1., 1., 1.]))
    return like('latency', run, 'visor', n=dict(rounds=4, images=4), values=dict(seconds=1., ratio=1.), std={}, units=units,
                intervals=dict(seconds=[.9, 1.1], ratio=[.9, 1.1]), judge='a clock', notes={})


def examples(run, pictures):
    shown = [dict(id=str(k), caption='a cat', nouns=['cat'], distance=.01) for k in range(2)]
    for k, name in itertools.product(range(2), ('given', 'redrawn', 'map0', 'mask0')): image(pictures/run/'examples'/f'{k}-{name}.png')
    result = like('examples', run, 'visor', n=dict(images=2), values=dict(first=.01, second=.02), std={}, intervals={}, notes=dict(shown=shown))
    del result['units'], result['judge']
    return result


def pipeline(pictures):
    steps = [dict(step='boxes', measure='box found', aim=.9, of='9 things', mean=.95, low=.9, high=1.)]
    notes = dict(steps=steps, taggers={'zoo (flair)': dict(precision='1', recall='1', f1='1')}, sets={'mini, automatic': dict(rows='9')})
    for name in ('captions', 'masks'): image(pictures/'data'/'pipeline'/f'{name}.png')
    result = like('pipeline', 'data', 'visor', n=dict(images=9), values=dict(boxes=.95), std={}, intervals=dict(boxes=[.9, 1.]), notes=notes)
    del result['units'], result['judge']
    return result


def binding(run, pictures):
    "T2I-CompBench and GenEval: three prompts of each category and task, one of them with a held-out pair."
    results = []
    for metric, key, groups in (('compbench', 'category', CATEGORIES), ('geneval', 'tag', [task for task in TASKS if task != 'counting'])):
        asked = [{'unique_id': f'{group}_{i}', key: group, 'text': f'{group} {i}', 'said': ['yes']} for group in groups for i in range(3)]
        scores = {group: [(.3 + .1*i if row[key] == group else None) for i, row in enumerate(asked)] for group in groups}
        means = {group: sum(own)/len(own) for group, every in scores.items() if (own := [v for v in every if v is not None])}
        if metric == 'geneval': means['mean'] = sum(means.values())/len(means)
        notes = dict(held_out=['color_0', 'shape_0'], chunker='toy', spatial_rules='corrected') if metric == 'compbench' else {}
        units = dict(ids=[row['unique_id'] for row in asked], values=scores)
        results.append(like(metric, run, 'visor', n=dict(prompts=len(asked), rounds=1, images=len(asked)), values=means, std={}, intervals={}, units=units, judge='a judge', notes=notes))
        write_json(pictures/run/metric/'prompts.json', asked)
        for row in asked: image(pictures/run/metric/image_name(row['unique_id'], 0))
    return results


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient('L').resize((32, 32)).convert('RGB').save(path)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The records of a finished `make reproduce PROFILE=mini`, invented, kept from a run."
    folder = tmp_path_factory.mktemp('whole')
    pictures = folder/'runs'/'mini'/'results'/'pictures'
    asked = [prompt_row(i, ['cat', 'dog']) | dict(found=1) for i in range(5)]
    for run in run_names(METHODS, (0, 1, 2)):
        measured = [like(metric, run) for metric in ('multigen_coco', 'multigen_ade20k', 'visor', 'grounding', 'frechet_coco', 'daam')]
        measured += [like('frechet_flickr30k', run, 'frechet_coco'), latency(run), examples(run, pictures), *binding(run, pictures)]
        if parse_run(run)[1] is not None: measured.append(like('training', run, 'visor', n=dict(updates=9), values=dict(seconds=9.), std={}, intervals={}) | dict(units=None))
        for result in measured: save_result({key: value for key, value in result.items() if value is not None or key == 'seed'}, folder/'runs')
        write_json(pictures/run/'multigen_coco'/'prompts.json', asked)
        for row in asked: image(pictures/run/'multigen_coco'/image_name(row['unique_id'], 0))
    save_result(pipeline(pictures), folder/'runs')
    keep_records(folder/'runs'/'mini', folder/'records'/'mini')
    return folder/'records'


MADE = {'table1': ['table1.md', 'table1_ade20k.md', 'table1.txt', 'table1_latency.png'], 'table2': ['table2.md', 'table2.txt', 'table2_pictures.png'],
        'table4': ['table4.md', 'table4.txt'], 'table5': ['table5.md', 'table5.txt', 'table5_held_out.md', 'geneval.md', 'table5_compbench_color.png'],
        'figure2': ['figure2_steps.md', 'figure2_masks.md'], 'figure4': ['figure4.png'], 'figure5': ['figure5.png']}


@pytest.mark.parametrize('name', MADE)
def test_every_table_and_figure_is_made_from_records(name, whole, tmp_path):
    "No model, no picture folder, no data set: `exact`, rivals, Flickr30K, latency and the pipeline too."
    params = dict(profile='mini', runs=str(whole), out_dir=str(tmp_path)) | (dict(data=str(tmp_path/'nowhere')) if name == 'figure2' else {})
    pm.execute_notebook(ROOT/f'paper_figures/{name}.ipynb', tmp_path/'executed.ipynb', params, cwd=ROOT, progress_bar=False, engine_name='here')
    for file in MADE[name]:
        assert (tmp_path/file).stat().st_size > 0
        if file.endswith(('.md', '.txt')): assert 'not run' not in (tmp_path/file).read_text().replace('not run |', ''), file


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20))
def test_compact_json_is_json(value): assert json.loads(compact_json(value)) == value


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, train=4, val=2)
    return folder


PART = {  # what changes which part of an identity
    'training': [dict(lr=1e-3), dict(steps=7), dict(mask_rule='any'), dict(ema=.9), dict(batch_size=3), dict(token_loss_scale=.5)],
    'asked': [dict(prompts=7), dict(rounds=1), dict(inference_steps=9), dict(guidance_scale=2.), dict(scheduler='pndm')],
    'judge': [dict(judge_threshold=.3), dict(judge='tokencompose/zoo/clip')],
    'base': [dict(model='tokencompose/zoo/sd_v'), dict(model='somebody/model', revision='abc')],
    'data': [dict(noun_rule='authors'), dict(segmenter='tokencompose/zoo/clip')],
}


@pytest.mark.parametrize('part,changes', [(part, change) for part, changes in PART.items() for change in changes])
def test_each_setting_is_part_of_the_identity(part, changes, world):
    mini = get_profile('mini')
    before, after = (identity(settings, 'multigen_coco', 'token-seed0', world) for settings in (mini, mini.replace(**changes)))
    assert [name for name in before if before[name] != after[name]] == [part]


def test_what_does_not_matter_is_no_part_of_it(world):
    mini = get_profile('mini')
    same = mini.replace(sample_batch=3, checkpoint_every=7, sample_every=0, val_images=3, seeds=(0,))
    for key, run in (('multigen_coco', 'token-seed0'), ('grounding', 'frozen'), ('daam', 'denoise-seed1'), ('visor', 'layout')):
        assert identity(mini, key, run, world) == identity(same, key, run, world)
    assert identity(mini, 'multigen_coco', 'frozen', world) == identity(mini.replace(lr=1., segmenter='x'), 'multigen_coco', 'frozen', world), 'nothing was trained'


def test_a_relative_data_set_lies_below_the_root_wherever_a_notebook_runs(tmp_path, monkeypatch, world):
    mini, relative = get_profile('mini'), os.path.relpath(world, repo_root())
    monkeypatch.chdir(tmp_path)  # as JupyterLab does, which opens a notebook in its own folder
    assert identity(mini, 'multigen_coco', 'token-seed0', relative) == identity(mini, 'multigen_coco', 'token-seed0', world) != {}


def test_the_graph_takes_up_matching_records_only(tmp_path, world):
    mini, runs = get_profile('mini'), tmp_path/'runs'
    for run, settings in {'token-seed0': mini, 'token-seed1': mini.replace(lr=1e-3), 'frozen': mini}.items():
        method, seed = parse_run(run)
        save_result(toy_result(method, ((1, 2), (1, 1)), seed=seed, identity=identity(settings, 'multigen_coco', run, world)), runs)
    save_result(toy_result('pixel', ((1, 2), (1, 1)), seed=0), runs)
    keep_records(runs/'mini', tmp_path/'records'/'mini')
    taken, left = adopt_records('mini', tmp_path/'records', tmp_path/'new', world)
    assert taken == ['multigen_coco of frozen', 'multigen_coco of token-seed0']
    assert left == {'made with other training': ['multigen_coco of token-seed1'], 'made before records had an identity, or with parameters of its own': ['multigen_coco of pixel-seed0']}
    done = {path.name for path in (tmp_path/'new').rglob('*') if path.is_file()}
    assert done == {'frozen.json', 'taken-frozen', 'token.json', 'taken-token-seed0'}
    assert adopt_records('mini', tmp_path/'records', tmp_path/'none', tmp_path/'nowhere')[0] == []


def test_records_are_small_and_name_no_machine():
    files = [path for path in RECORDS.rglob('*') if path.is_file()]
    assert files
    for path in files:
        assert path.stat().st_size < 250_000, path
    for path in [*files, *(ROOT/'tokencompose/zoo').rglob('config.json')]:
        if path.suffix == '.json': assert not re.search(r'"/(?!/)', path.read_text()), f'{path} names a place on somebody\'s machine'


@pytest.mark.parametrize('given, own', [({}, False), (dict(warm_up=1), True), (dict(batch=4), True), (dict(objects=3), True), (dict(precision='bf16'), True),
                                        (dict(repeats=2), True), (dict(models={'token-seed0': 'elsewhere'}), True), (dict(profile='quick', device='cpu'), False)])
def test_a_latency_is_the_tables_when_nothing_of_its_conditions_was_given(given, own):
    "By the defaults that the notebook declares; the cell that decides is its own."
    notebook = ROOT/'nbs/8_studies/run_latency.ipynb'
    declared = pm.inspect_notebook(str(notebook))
    params = {name: ast.literal_eval(value['default']) for name, value in declared.items()} | given
    cell = next(''.join(c['source']) for c in read_json(notebook)['cells'] if ''.join(c['source']).startswith('usual = '))
    there = dict(params=params, batch=params['batch'], own_parameters=own_parameters)
    exec(cell.split('\nfor ')[0], there)
    assert bool(there['own']) == own
