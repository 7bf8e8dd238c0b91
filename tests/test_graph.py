"The graph of `make reproduce`: which commands it runs, that each is one its notebook understands, and that nothing runs twice."
import re
import shlex
import sys

import papermill as pm
import pytest
from conftest import ROOT
from processes import run_python, SNAKEMAKE

from tokencompose.metrics.benchmarks import METRIC_BENCHMARKS, result_key, scores_of
from tokencompose.methods import rows, run_name, run_names
from tokencompose.profiles import get_profile, PROFILES


FIGURES = 'figure2 table2 figure4'  # what `make reproduce` makes at quick


def dry_run(profile, figures=FIGURES, check=True):
    "What the graph would run from nothing."
    code, said = run_python(SNAKEMAKE, '-n', '-p', '--forceall', '--nolock', '--cores', '2', '--config', f'profile={profile}', f'figures={figures}')
    assert not check or code == 0, said
    return said


def take(folder, profile, run, score):
    "As `adopt_records` leaves it: by the name of the result files, frechet_coco for coco_captions."
    metric = next((metric for metric, names in METRIC_BENCHMARKS.items() if score in names), score)
    path = folder/'runs'/profile/'results'/result_key(metric, score, get_profile(profile).extractor)/f'taken-{run}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def planned(profile, figures=FIGURES): return [parsed(line) for line in re.findall(r'papermill --no-progress-bar .*', dry_run(profile, figures))]


def parsed(line):
    words = [w for w in shlex.split(line) if not w.startswith('--')][1:]
    words = words[words.index('ERROR') + 1:]
    flags = words[2:]
    assert flags[::3] == ['-p']*(len(flags)//3), line
    return words[0], words[1], dict(zip(flags[1::3], flags[2::3]))


def pairs_of(plan, notebook):
    "(run, score) pairs that a notebook is asked for; one call may be for several."
    calls = [given for n, _, given in plan if n == notebook]
    if notebook == 'nbs/sample.ipynb': return [(run_of(given), name) for given in calls for name in given['benchmark'].split('+')]
    return [(run_of(given), benchmark or metric) for given in calls for metric, benchmark in scores_of(given['metric'], given.get('benchmark', ''))]


def run_of(given): return run_name(given['method'], given.get('train_seed', 0))


@pytest.fixture(scope='module')
def quick(): return planned('quick')


def test_commands_need_no_activated_environment():
    "`make reproduce` does not put the environment on the PATH, so each command names its Python."
    commands = re.findall(r'^\s*(?:Shell command: )?(.*) -m (?:papermill|tokencompose\.training) ', dry_run('quick'), re.M)
    plain, on_gpu = (sys.executable,), (sys.executable, '-m', 'tokencompose.devices', sys.executable)
    assert len(commands) > 20 and {tuple(shlex.split(c)) for c in commands} == {plain, on_gpu}


def check_commands(plan, profile):
    for notebook, _, given in plan:
        known = set(pm.inspect_notebook(str(ROOT/notebook)))
        assert set(given) <= known, (notebook, given)
        assert given['profile'] == profile


def test_every_command_fits_its_notebook(quick): check_commands(quick, 'quick')


def test_every_model_is_drawn_and_judged_once(quick):
    outputs = [output for _, output, _ in quick]
    assert len(set(outputs)) == len(outputs)
    seeds = get_profile('quick').seeds
    runs = {'frozen', *run_names(['denoise', 'pixel', 'token', 'tokencompose'], seeds)}
    lists = ('multigen_coco', 'multigen_ade20k')
    drawn, judged = (pairs_of(quick, f'nbs/{name}.ipynb') for name in ('sample', 'evaluate'))
    assert len(quick) == 23, 'a run is drawn in one process, and judged in one'
    assert sorted(drawn) == sorted((r, b) for r in runs for b in lists)
    assert sorted(judged) == sorted((r, b) for r in runs for b in (*lists, 'grounding', 'examples'))
    trained = [run_name(g['method'], g['seed']) for n, _, g in quick if n == 'nbs/train.ipynb']
    assert sorted(trained) == sorted(runs - {'frozen'})


def test_what_is_not_trained_has_no_training_seed(quick):
    for notebook, _, given in quick:
        if notebook in ('nbs/sample.ipynb', 'nbs/evaluate.ipynb'): assert ('train_seed' in given) == (given['method'] != 'frozen')


@pytest.fixture(scope='module')
def table1(): return planned('quick', 'table1 figure5')


def test_every_method_of_table_1_is_drawn_and_judged_on_every_benchmark_once(table1):
    seeds = get_profile('quick').seeds
    rivals = {'composable', 'layout', 'structured', 'attend_excite'}
    runs = {'frozen', *rivals, *run_names(['denoise', 'tokencompose'], seeds)}
    benchmarks = ('multigen_coco', 'multigen_ade20k', 'visor', 'coco_captions', 'flickr30k')
    drawn, judged = (pairs_of(table1, f'nbs/{name}.ipynb') for name in ('sample', 'evaluate'))
    expected = [(r, b) for r in runs for b in benchmarks if b != 'coco_captions' or r not in rivals - {'structured'}]  # three cannot draw them
    assert sorted(drawn) == sorted(expected)
    assert sorted(judged) == sorted(expected)
    assert [n for n, *_ in table1].count('nbs/8_studies/run_latency.ipynb') == 1
    assert sorted(g['method'] for n, _, g in table1 if n == 'nbs/train.ipynb') == sorted(v for v in ('denoise', 'tokencompose') for _ in seeds)


def test_table_1_commands_fit_their_notebooks(table1): check_commands(table1, 'quick')


def made(profile): return {output.split('/')[-1] for notebook, output, _ in planned(profile, '') if notebook.startswith('paper_figures/')}


def test_without_a_choice_the_profiles_make_everything():
    "Table 3 is of a second base model, which has a profile of its own; `quick` leaves out what takes long."
    mini, second = made('mini'), made('mini_v')
    assert second == {'table3.ipynb'} and not mini & second
    assert mini | second == {path.name for path in (ROOT/'paper_figures').glob('*.ipynb')}
    assert made('quick') == {f'{name}.ipynb' for name in FIGURES.split()}


def test_the_layers_of_table_2_are_trained_and_scored():
    plan = planned('mini', 'table2')
    trained = [g['method'] for n, _, g in plan if n == 'nbs/train.ipynb']
    losses, layers = ['denoise', 'pixel', 'token', 'tokencompose'], ['layers_down16_mid8_up16', 'layers_up16', 'layers_mid8_up16']
    assert sorted(trained) == sorted(losses*5 + layers*3)
    judged = pairs_of(plan, 'nbs/evaluate.ipynb')
    runs = ['frozen', *run_names(losses, range(5)), *run_names(layers, range(3))]
    assert sorted(judged) == sorted((r, b) for r in runs for b in (*get_profile('mini').ablation, 'grounding'))
    check_commands(plan, 'mini')


def test_table_3_is_of_the_second_base_model():
    plan = planned('mini_v', '')
    assert {g['profile'] for *_, g in plan} == {'mini_v'}
    drawn = {run_of(g) for n, _, g in plan if n == 'nbs/sample.ipynb'}
    assert drawn == {'frozen', *run_names(['denoise', 'tokencompose'], range(3))}


def test_table_4_redraws_pictures_before_figure_4_shows_them():
    plan = planned('mini', 'table4 figure4')
    redrawn = [(i, g) for i, (n, _, g) in enumerate(plan) if g.get('metric') == 'daam']
    assert sorted(run_of(g) for _, g in redrawn) == sorted(['frozen', *run_names(['denoise', 'tokencompose'], range(3))])
    assert not [n for n, *_ in plan if n == 'nbs/sample.ipynb']
    shown = [(i, run_of(g)) for i, (_, _, g) in enumerate(plan) if g.get('metric') == 'examples']
    assert sorted(run for _, run in shown) == sorted(['frozen', *run_names(['denoise', 'pixel', 'token', 'tokencompose'], (0,))])
    place = {run_of(g): i for i, g in redrawn}
    assert all(i > place.get(run, -1) for i, run in shown), 'a figure uses the inversions of the table'
    assert [n for n, *_ in plan].index('paper_figures/figure4.ipynb') > max(i for i, _ in shown)
    check_commands(plan, 'mini')
    assert not [g for *_, g in planned('mini', 'figure4') if g.get('metric') == 'daam']  # alone it makes the two inversions a model that it needs


def test_one_row_of_a_table():
    def row(name, seed, figures='table2'):
        return run_python(SNAKEMAKE, 'row', '-n', '-p', '--forceall', '--nolock', '--cores', '2', '--config', 'profile=mini', f'figures={figures}', f'row={name}', f'seed={seed}')[1]
    plan = [parsed(line) for line in re.findall(r'papermill --no-progress-bar .*', row('token', 2))]
    assert [(g['method'], g['seed']) for n, _, g in plan if n == 'nbs/train.ipynb'] == [('token', '2')]
    judged = sorted(score for _, score in pairs_of(plan, 'nbs/evaluate.ipynb'))
    assert judged == sorted((*get_profile('mini').ablation, 'grounding')) and not [n for n, *_ in plan if n.startswith('paper_figures')]
    assert 'ROW: table2 of profile mini has no run token-seed7; it has denoise-seed0, ' in row('token', 7)
    assert 'has no run layout; it has' in row('layout', 0)


def test_what_a_record_holds_is_not_made_again(tmp_path):
    "Neither the score nor the pictures nor the model behind it."
    for name in ('nbs', 'data_prep', 'paper_figures', 'tokencompose', 'settings.ini'): (tmp_path/name).symlink_to(ROOT/name)
    for score in (*get_profile('quick').ablation, 'grounding'):
        for run in ('frozen', 'denoise-seed0'): take(tmp_path, 'quick', run, score)
    said = run_python(SNAKEMAKE, '-s', ROOT/'Snakefile', '-n', '-p', '--nolock', '--cores', '2', '--config', 'profile=quick', 'figures=table2', cwd=tmp_path)[1]
    plan = [parsed(line) for line in re.findall(r'papermill --no-progress-bar .*', said)]
    made = {run_of(g) for n, _, g in plan if n in ('nbs/sample.ipynb', 'nbs/evaluate.ipynb')}
    assert made == set(run_names(['pixel', 'token', 'tokencompose'], (0,))), said[-500:]
    assert {g['method'] for n, _, g in plan if n == 'nbs/train.ipynb'} == {'pixel', 'token', 'tokencompose'}


def test_rows_one_after_the_other(tmp_path):
    for name in ('nbs', 'data_prep', 'paper_figures', 'tokencompose', 'settings.ini'): (tmp_path/name).symlink_to(ROOT/name)
    for score in (*get_profile('mini').ablation, 'grounding'): take(tmp_path, 'mini', 'pixel-seed1', score)
    def kept(**config):
        given = [f'{name}={value}' for name, value in config.items()]
        said = run_python(SNAKEMAKE, 'rows', '-s', ROOT/'Snakefile', '-n', '-p', '--nolock', '--cores', '2', '--config', 'profile=mini', 'figures=table2', *given, cwd=tmp_path)[1]
        return set(re.findall(r'records keep --profile mini --run (\S+)', said)), said
    runs, said = kept(seeds=1, rows=1)
    assert runs == set(get_profile('mini').runs('table2')) & {f'{name}-seed1' for name in rows('table2')} - {'pixel-seed1'}, said[-500:]
    assert {'frozen', 'denoise-seed0', 'denoise-seed2'} == kept(seeds='"0 2"', rows=1)[0] & {'frozen', 'denoise-seed0', 'denoise-seed1', 'denoise-seed2'}
    assert 'SEEDS: profile mini has no training seed 9; it has 0, 1, ' in kept(seeds='"1 9"')[1]
    first = [int(re.search(r'priority: (\d)', said.split(f'rule {rule}:')[1].split('shell')[0] + 'priority: 0')[1]) for rule in ('train', 'sample', 'evaluate', 'kept')]
    assert first == [0, 1, 2, 3]  # what finishes a row is done before another is begun


def test_what_is_there_is_not_made_again_when_more_is_asked_for(tmp_path):
    for name in ('nbs', 'data_prep', 'paper_figures', 'tokencompose', 'settings.ini'): (tmp_path/name).symlink_to(ROOT/name)
    for place, scores in (('images', 'multigen_coco+visor'), ('results', 'multigen_coco+visor')):
        path = tmp_path/'runs'/'mini'/place/'done'/'layout'/scores
        path.parent.mkdir(parents=True)
        path.touch()
    said = run_python(SNAKEMAKE, '-s', ROOT/'Snakefile', '-n', '-p', '--nolock', '--cores', '2', '--config', 'profile=mini', 'figures=table1', cwd=tmp_path)[1]
    made_now = [line for line in re.findall(r'wildcards: run=layout, scores=(.*)', said)]
    assert 'multigen_ade20k+flickr30k' in made_now and all('visor' not in scores or scores == 'multigen_coco+visor' for scores in made_now), said[-500:]


def test_an_unknown_figure_is_refused():
    assert 'FIGURES: table9 is not one of figure2, ' in dry_run('quick', 'table2 table9', check=False)


def test_a_run_on_exact_masks_waits_for_their_data_set():
    plan = dry_run('mini', 'figure2')
    assert re.search(r'training --profile mini --method exact --encode_only', plan) and re.search(r'training --profile mini --method tokencompose --encode_only', plan)
    assert sorted({g['method'] for n, _, g in planned('mini', 'figure2') if n == 'nbs/train.ipynb'}) == ['exact', 'tokencompose']


def test_every_table_of_the_paper_that_is_made_has_rows():
    assert all(rows(name) for name in ('table1', 'table2', 'table3', 'table4', 'figure2', 'figure4', 'figure5'))


@pytest.mark.parametrize('profile', PROFILES)
def test_every_profile_begins_with_its_own_data(profile):
    "Photos are fetched, with those that FID compares with, and nothing is drawn in their folder."
    plan = planned(profile, 'table4' if profile != 'sd21' else 'table3')
    first = [(n, given) for n, _, given in plan if n.startswith('data_prep/00_')]
    assert first == [('data_prep/00_fetch.ipynb', dict(profile=profile, coco_captions='-1')) if profile in ('sd14', 'sd21') else ('data_prep/00_scenes.ipynb', dict(profile=profile))]
    check_commands(plan, profile)
