"""The dry run of Table 5, see test_dry_run.py: from the published prompt files to the table at sd14, with random judges in their real layouts."""
import pandas as pd
from make_real_files import FileServer
from test_dry_run import files, paper_with, run  # noqa: F401  (files is a fixture)
from test_fetch import given

from tokencompose.methods import METHODS, rows
from tokencompose.metrics.compbench import CATEGORIES
from tokencompose.metrics.geneval import TASKS
from tokencompose.metrics.segments import tiny_mask2former
from tokencompose.metrics.vqa import tiny_vqa
from tokencompose.profiles import PROFILES
from tokencompose.reporting.results import load_results


def test_table_5(files, tmp_path, monkeypatch):  # noqa: F811
    "Two rows with the original's rules; spaCy's model is no package of the lock, so the zoo's tagger cuts the prompts."
    weights, data, runs = files/'weights', tmp_path/'data', tmp_path/'runs'
    paper_with('sd14', weights, tmp_path/'inception.pth', monkeypatch)
    clip = dict.fromkeys(('clipscore', 'color_clip'), f'{weights}/clip') | dict.fromkeys(('clipscore_revision', 'color_clip_revision'), '')
    judges = dict(vqa=str(tiny_vqa(tmp_path/'blip')), vqa_revision='', vqa_side=0, instances=str(tiny_mask2former(tmp_path/'mask2former')), instances_revision='')
    monkeypatch.setitem(PROFILES, 'sd14', PROFILES['sd14'].replace(chunker='tokencompose/zoo/tagger', **clip, **judges))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    def step(name, **params): run(name, tmp_path/'executed.ipynb', **dict(profile='sd14') | params)
    with FileServer(files/'remote') as server: step('data_prep/00_fetch.ipynb', **given(server, val_images=1, coco_captions=2), out_dir=data)
    for metric in ('compbench', 'geneval'):
        step('nbs/sample.ipynb', benchmark=metric, method='frozen', data=data, prompts=1, rounds=1, inference_steps=1, out_dir=tmp_path/metric)
        for method in ('frozen', 'tokencompose'): step('nbs/evaluate.ipynb', metric=metric, method=method, images=tmp_path/metric, rounds=1, out_dir=runs/'sd14'/'results')
    found = {(r['metric'], r['method']): r for r in load_results('sd14', str(runs))}
    assert set(found['compbench', 'frozen']['values']) == set(CATEGORIES) and set(found['geneval', 'frozen']['values']) == {*TASKS, 'mean'}
    assert found['compbench', 'frozen']['notes']['spatial_rules'] == 'original' and 'held_out' not in found['compbench', 'frozen']['notes']
    step('paper_figures/table5.ipynb', runs=runs, out_dir=tmp_path/'figures')
    table = pd.read_csv(tmp_path/'figures'/'table5.csv', index_col=[0, 1])
    assert 'not run' not in table.loc[(METHODS['frozen'].label, 'sd14')].tolist() and len(table) == 2*len(rows('table5'))
    assert (tmp_path/'figures'/'table5_compbench_complex.png').is_file() and (tmp_path/'figures'/'table5_geneval_counting.png').is_file()
