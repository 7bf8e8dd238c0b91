# The graph of the miniature paper: which notebook makes what from what. `make reproduce` runs it; `make reproduce
# FIGURES=table1` only what one table or figure needs.
# Every rule is one papermill notebook that resumes by itself, so only a small file that is written last is declared as
# output: what a killed job had finished stays on disk and is used again.
import os, shlex, sys
from tokencompose.methods import METHODS, parse_run, run_name, run_names
from tokencompose.metrics.benchmarks import judges, METRIC_BENCHMARKS, result_key
from tokencompose.profiles import FIRST_STEP, get_profile

PROFILE = config.get('profile', 'quick')
P = get_profile(PROFILE)
DATA, RUNS = f'data/{PROFILE}', f'runs/{PROFILE}'
METRIC = {benchmark: metric for metric, names in METRIC_BENCHMARKS.items() for benchmark in names if benchmark}
MULTIGEN = METRIC_BENCHMARKS['multigen']
TABLE1 = [*MULTIGEN, *METRIC_BENCHMARKS['visor'], *METRIC_BENCHMARKS['fid']]
PROBES = [metric for metric in METRIC_BENCHMARKS if metric not in METRIC.values()]  # look at the model itself: nothing is drawn from prompts

def scores(shown, metrics): return {(run, metric) for run in P.runs(shown) for metric in metrics}
# Nobody can fetch Flickr30K for its users (data_prep/00_fetch says how they get it): its column stays empty until it is there
FLICKR = f'{DATA}/flickr30k/val.txt'
NO_FLICKR = P.pictures == 'photos' and not os.path.isfile(FLICKR) and not config.get('flickr30k')  # given by `make plan`
def can_draw(run, benchmark):
    "COCO's captions do not say which words are things, and some rivals must know; the paper has no number for them either."
    if benchmark == 'flickr30k' and NO_FLICKR: return False
    return not (benchmark == 'coco_captions' and METHODS[parse_run(run)[0]].needs_things)

# What each table or figure wants of its rows: (run, score), a score being a benchmark or a probe
FIGURES = {
    'figure2': scores('figure2', [*MULTIGEN, 'grounding']),
    'table1': {wanted for wanted in scores('table1', TABLE1) if can_draw(*wanted)},
    'table2': scores('table2', [*P.ablation, 'grounding']),
    'table3': scores('table3', [*P.ablation, 'grounding']),
    'table4': scores('table4', ['daam']),
    'table5': scores('table5', ['compbench', 'geneval']),
    'figure3': set(),
    'figure4': {(run, 'examples') for run in run_names(P.methods('figure4'), P.seeds[:1])},
    'figure5': {(run, 'multigen_coco') for run in run_names(P.methods('figure5'), P.seeds[:1])},
}
ASKED = str(config.get('figures') or ' '.join(P.figures)).replace(',', ' ').split()
DAAM_ASKED = FIGURES['table4'] if 'table4' in ASKED else set()
unknown = [name for name in ASKED if name not in FIGURES]
if unknown: raise ValueError(f'FIGURES: {", ".join(unknown)} is not one of {", ".join(FIGURES)}.')

onstart:
    if NO_FLICKR and 'table1' in ASKED:
        print(f"Without Flickr30K's column: there is no {FLICKR}. data_prep/00_fetch says how to get it; then give this command again.",
              file=sys.stderr)

# One row of a table or figure, for `make row`
ROW = run_name(config['row'], int(config.get('seed', P.seeds[0]))) if 'row' in config else None
ROW_SCORES = [wanted for name in ASKED for wanted in FIGURES[name] if wanted[0] == ROW]
if ROW and not ROW_SCORES:
    known = sorted({run for name in ASKED for run, _ in FIGURES[name]})
    raise ValueError(f'ROW: {", ".join(ASKED)} of profile {PROFILE} has no run {ROW}; it has {", ".join(known)}.')

# Starting a notebook takes longer than judging 64 pictures. So what is still to be drawn of a run is drawn in one job, and
# judged in another. The last file of a job is named by what was made together, such as frozen/visor+geneval: what is there
# is not made again when more is asked for, and where it is out of date the same things are made together once more.
ORDER = [*METRIC, *PROBES]
WANTED = {wanted for name in ASKED for wanted in FIGURES[name] if not ROW or wanted[0] == ROW}

# For `make rows`: a model's record is finished before the next model is begun; some training seeds only, the first of them
# with the methods that have none
ONE_BY_ONE = int('rows' in config)
SEEDS = str(config.get('seeds', '')).replace(',', ' ').split()
unknown = [seed for seed in SEEDS if seed not in map(str, P.seeds)]
if unknown: raise ValueError(f'SEEDS: profile {PROFILE} has no training seed {", ".join(unknown)}; it has {", ".join(map(str, P.seeds))}.')
def of_seeds(run):
    seed = parse_run(run)[1]
    return not SEEDS or str(P.seeds[0] if seed is None else seed) in SEEDS

def taken(run, score):
    "Says that a committed record was taken, if one was; no rule makes it."
    return f'{RUNS}/results/{result_key(METRIC.get(score, score), score, P.extractor)}/taken-{run}'
def job_file(place, run, score, apart=()):
    "The file of the job that makes a score, or its pictures, with the others of this run that are asked for and not there."
    there = {one: name for name in sorted(os.listdir(f'{place}/{run}')) for one in name.split('+')} if os.path.isdir(f'{place}/{run}') else {}
    if score in there or score in apart: return f'{place}/{run}/{there.get(score, score)}'
    asked = [one for one in ORDER if (run, one) in WANTED and one not in (*there, *apart) and not os.path.isfile(taken(run, one))]
    return f'{place}/{run}/' + '+'.join(asked if score in asked else [score])
def made(run, score):
    return taken(run, score) if os.path.isfile(taken(run, score)) else job_file(f'{RUNS}/results/done', run, score, apart=('daam',))
def drawn(run, benchmark): return job_file(f'{RUNS}/images/done', run, benchmark, apart=PROBES)

PYTHON = shlex.quote(sys.executable)  # the environment that runs this graph, whether or not it is on the PATH
NOTEBOOKS = f'{RUNS}/notebooks'
os.makedirs(NOTEBOOKS, exist_ok=True)

ON_GPU = f'{PYTHON} -m tokencompose.devices {PYTHON}'  # one GPU a job, none shared

def papermill(log, given='', python=PYTHON, **params):
    "The shell command of one step; its notebook is the rule's first input."
    given += ''.join(f' -p {k} {v}' for k, v in params.items())
    return f'{python} -m papermill --no-progress-bar --log-level ERROR {{input[0]}} {log} -p profile {PROFILE} {given}'

def weights(folder):
    "Weight files of a model in a folder (none for a hub id): what was made with others is made again, or refused."
    return [path for part in ('unet/diffusion_pytorch_model.safetensors', 'model.safetensors') if os.path.isfile(path := f'{folder}/{part}')]

def trained(w): return [f'{RUNS}/train/{w.run}/result.json'] if METHODS[parse_run(w.run)[0]].trained else []
def asked(w):
    "A run as the notebooks are asked for it: by method and training seed."
    method, seed = parse_run(w.run)
    return f'-p method {method}' + (f' -p train_seed {seed}' if seed is not None else '')

TRAINED = [m.name for m in METHODS.values() if m.trained]
NOT_TRAINED = [m.name for m in METHODS.values() if not m.trained]
wildcard_constraints:
    run='|'.join([*NOT_TRAINED, rf'(?:{"|".join(TRAINED)})-seed\d+']), method='|'.join(TRAINED), seed=r'\d+', masks='automatic|exact',
    scores=r'[a-z0-9_]+(?:\+[a-z0-9_]+)*', kind='exact|val', figure='|'.join(FIGURES)

rule all:
    input: [f'{RUNS}/paper_figures/{name}.ipynb' for name in ASKED]

rule row:  # a method of a table with one training seed: trained, drawn, judged, probed
    input: sorted(made(*wanted) for wanted in ROW_SCORES)

def left(run): return [wanted for wanted in WANTED if wanted[0] == run and not os.path.isfile(taken(*wanted))]

rule rows:  # every model's record
    input: [f'{RUNS}/kept/{run}' for run in sorted({run for run, _ in WANTED}) if of_seeds(run) and left(run)]

rule kept:
    input: lambda w: sorted(made(*wanted) for wanted in WANTED if wanted[0] == w.run)
    output: touch(f'{RUNS}/kept/' + '{run}')
    priority: 3*ONE_BY_ONE
    threads: 1
    shell: f'{PYTHON} -m tokencompose.reporting.records keep --profile {PROFILE} --run {{wildcards.run}}'

# Of photos, those that FID compares with come too; --config fetch="{coco_url: http://mirror/coco}" names other servers
FETCH = dict(coco_captions=-1) | dict(config.get('fetch') or {}) if P.pictures == 'photos' else {}

rule pictures:  # scenes drawn, or photos fetched
    input: FIRST_STEP[P.pictures]
    output: f'{DATA}/provenance.json'
    threads: 1
    shell: papermill(f'{NOTEBOOKS}/{os.path.basename(FIRST_STEP[P.pictures])}', **FETCH)

rule select_captions:
    input: 'data_prep/01_select_captions.ipynb', f'{DATA}/provenance.json', weights(P.clip)
    output: f'{DATA}/prepared/train/captions/captions.jsonl'
    threads: 1
    resources: gpu=1
    shell: papermill(f'{NOTEBOOKS}/01_select_captions.ipynb', python=ON_GPU)

rule tag_nouns:
    input: 'data_prep/02_tag_nouns.ipynb', rules.select_captions.output, weights(P.tagger)
    output: f'{DATA}/prepared/train/nouns/nouns.jsonl'
    threads: 1
    resources: gpu=1
    shell: papermill(f'{NOTEBOOKS}/02_tag_nouns.ipynb', python=ON_GPU)

rule segment:
    input: 'data_prep/03_segment.ipynb', rules.tag_nouns.output, weights(P.grounder), weights(P.segmenter)
    output: f'{DATA}/prepared/train/masks/masks.jsonl'
    threads: 1
    resources: gpu=1
    shell: papermill(f'{NOTEBOOKS}/03_segment.ipynb', python=ON_GPU)

rule build_dataset:  # the training set, its masks found by the models above
    input: 'data_prep/04_build_dataset.ipynb', rules.segment.output
    output: f'{DATA}/tokencompose/provenance.json'
    threads: 1
    shell: papermill(f'{NOTEBOOKS}/04_build_dataset.ipynb')

rule build_exact_dataset:  # the held-out set and, for the ablation, the training set with the annotations' own masks
    input: 'data_prep/04_build_dataset.ipynb', f'{DATA}/provenance.json'
    output: f'{DATA}/tokencompose' + '_{kind}/provenance.json'
    params: split=lambda w: 'val' if w.kind == 'val' else 'train'
    threads: 1
    shell: papermill(NOTEBOOKS + '/04_build_dataset_{wildcards.kind}.ipynb', split='{params.split}', masks='exact', out_dir=f'{DATA}/tokencompose' + '_{wildcards.kind}')

def dataset(masks): return f'{DATA}/tokencompose' + '_exact'*(masks == 'exact')

rule encode:  # once, so that trainings side by side find the cache
    input: lambda w: f'{dataset(w.masks)}/provenance.json', f'{DATA}/tokencompose_val/provenance.json', weights(P.model)
    output: touch(f'{DATA}/cache/{os.path.basename(P.model)}-' + '{masks}.encoded')
    params: method=lambda w: 'exact' if w.masks == 'exact' else 'tokencompose'
    resources: gpu=1
    shell: f'{ON_GPU} -m tokencompose.training --profile {PROFILE} --method {{params.method}} --encode_only'

rule train:
    input: 'nbs/train.ipynb', lambda w: f'{DATA}/cache/{os.path.basename(P.model)}-{METHODS[w.method].masks}.encoded', weights(P.model)
    output: f'{RUNS}/train/' + '{method}-seed{seed}/result.json'
    priority: 0 if ONE_BY_ONE else 1  # before pictures are drawn, so that the longest jobs are not the last
    threads: 1
    resources: gpu=1
    shell: papermill(NOTEBOOKS + '/train-{wildcards.method}-seed{wildcards.seed}.ipynb', method='{wildcards.method}', seed='{wildcards.seed}', python=ON_GPU)

def benchmarks(w): return [score for score in w.scores.split('+') if score in METRIC]
def probes(w): return [score for score in w.scores.split('+') if score in PROBES]

rule sample:
    input: 'nbs/sample.ipynb', trained, f'{DATA}/provenance.json', weights(P.model)
    output: touch(f'{RUNS}/images/done/' + '{run}/{scores}')
    priority: ONE_BY_ONE
    params: asked=asked
    threads: 1
    resources: gpu=1
    shell: papermill(NOTEBOOKS + '/sample-{wildcards.run}-{wildcards.scores}.ipynb', '{params.asked}', benchmark='{wildcards.scores}', python=ON_GPU)

rule evaluate:
    input:
        'nbs/evaluate.ipynb', trained,
        lambda w: sorted({drawn(w.run, benchmark) for benchmark in benchmarks(w)}),
        lambda w: sorted({path for benchmark in benchmarks(w) for judge in judges(METRIC[benchmark], P) for path in weights(judge)}),
        lambda w: [f'{DATA}/tokencompose_val/provenance.json', *weights(P.model)] if probes(w) else [],
        lambda w: made(w.run, 'daam') if 'examples' in probes(w) and (w.run, 'daam') in DAAM_ASKED else []  # its inversions are used again
    output: touch(f'{RUNS}/results/done/' + '{run}/{scores}')
    priority: 2*ONE_BY_ONE
    params:
        asked=asked, metric=lambda w: '+'.join(dict.fromkeys([*(METRIC[name] for name in benchmarks(w)), *probes(w)])),
        benchmark=lambda w: f'-p benchmark {"+".join(benchmarks(w))}' if benchmarks(w) else ''
    threads: 1
    resources: gpu=1
    shell: papermill(NOTEBOOKS + '/evaluate-{wildcards.run}-{wildcards.scores}.ipynb', '{params.asked} {params.benchmark}', metric='{params.metric}', python=ON_GPU)

TIMED = [run for run in P.runs('table1', 'frozen', 'rival', 'trained') if run == parse_run(run)[0] or run == run_name('tokencompose', P.seeds[0])]
LATENCY = [taken(run, 'latency') for run in TIMED]
if not all(map(os.path.isfile, LATENCY)): LATENCY = [f'{RUNS}/results/latency/done']

rule latency:  # with the machine to itself
    input: 'nbs/8_studies/run_latency.ipynb', f'{RUNS}/train/{run_name("tokencompose", P.seeds[0])}/result.json', weights(P.model)
    output: touch(f'{RUNS}/results/latency/done')
    threads: workflow.resource_settings.cores or 4  # a cluster says no number
    resources: gpu=1
    shell: papermill(f'{NOTEBOOKS}/latency.ipynb', python=ON_GPU)

rule paper_figure:
    input:
        'paper_figures/{figure}.ipynb',
        lambda w: sorted(made(*wanted) for wanted in FIGURES[w.figure]),
        lambda w: LATENCY if w.figure == 'table1' else [],
        lambda w: rules.segment.output if w.figure == 'figure2' and not os.path.isfile(f'{RUNS}/results/pipeline/data.json') else []
    output: f'{RUNS}/paper_figures/' + '{figure}.ipynb'
    threads: 1
    shell: papermill('{output[0]}')
