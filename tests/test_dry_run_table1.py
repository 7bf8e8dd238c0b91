"""The dry run of Table 1, see test_dry_run.py: every method and metric at sd14."""
from make_real_files import FileServer, write_flickr_like
from PIL import Image
from test_dry_run import files, paper_with, run  # noqa: F401  (files is a fixture)
from test_fetch import given

from tokencompose.rivals import attend_excite, layout
from tokencompose.core import read_json
from tokencompose.reporting.results import load_results

# Table 1, row by row: what is drawn for each method, one picture a prompt. The paper has no COCO distance of the methods that want boxes or tokens.
DRAWN = {'frozen': ('multigen_coco', 'multigen_ade20k', 'visor', 'coco_captions', 'flickr30k'), 'composable': ('multigen_coco', 'flickr30k'), 'layout': ('multigen_coco', 'visor', 'flickr30k'),
         'structured': ('multigen_coco', 'coco_captions'), 'attend_excite': ('multigen_coco', 'flickr30k')}
SHORT = dict(layout=dict(max_iter=1, loss_scale=3e4), attend_excite=dict(max_refinement_steps=1))  # a random model attends to everything alike


def test_table_1(files, tmp_path, monkeypatch):  # noqa: F811
    "The four rivals, both MultiGen lists, VISOR by its own judge, FID by Inception and latency at sd14, with the profile's own models."
    weights, coco, runs = files/'weights', tmp_path/'coco', tmp_path/'runs'
    maps = {}
    paper_with('sd14', weights, tmp_path/'inception.pth', monkeypatch)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    strengths, losses = attend_excite.token_strengths, layout.layout_losses
    monkeypatch.setattr(attend_excite, 'token_strengths', lambda seen, size, *args: (maps.setdefault('attend_excite', (size, len(seen))), strengths(seen, size, *args))[1])
    monkeypatch.setattr(layout, 'layout_losses', lambda seen, *args: (maps.setdefault('layout', [m.shape[2] for m in seen]), losses(seen, *args))[1])
    def step(name, **params): run(name, tmp_path/'executed.ipynb', **dict(profile='sd14') | params)
    with FileServer(files/'remote') as server: step('data_prep/00_fetch.ipynb', **given(server, val_images=1, coco_captions=2), out_dir=coco)
    write_flickr_like(coco/'flickr30k', n=2)

    for method, benchmarks in DRAWN.items():
        rival = dict(rival_options=SHORT.get(method, {})) if method != 'frozen' else {}
        for benchmark in benchmarks:
            step('nbs/sample.ipynb', method=method, **rival, benchmark=benchmark, data=coco, prompts=2 if method == 'frozen' and benchmark in ('coco_captions', 'flickr30k') else 1, rounds=1, inference_steps=1, precision='bf16' if rival == {} else 'no', out_dir=tmp_path/method/benchmark)
            drawn, plain = ({path.name: path.read_bytes() for path in (tmp_path/m/benchmark).glob('*.png')} for m in (method, 'frozen'))
            assert drawn and drawn.keys() <= plain.keys() and (not rival or all(drawn[name] != plain[name] for name in drawn)), (method, benchmark)
        if rival: assert read_json(tmp_path/method/'multigen_coco'/'settings.json')['method']['method'] == method
    assert Image.open(next((tmp_path/'layout'/'visor').glob('*.png'))).size == (512, 512)
    assert maps == dict(attend_excite=((16, 16), 5), layout=[8*8, 16*16, 16*16, 16*16]), 'the layers that the two methods are published with'

    def scored(metric, method, benchmark, **params): step('nbs/evaluate.ipynb', metric=metric, method=method, benchmark=benchmark, images=tmp_path/method/benchmark, out_dir=runs/'sd14'/'results', **params)
    scored('multigen', 'attend_excite', 'multigen_coco', rounds=1)
    scored('visor', 'layout', 'visor', rounds=1)
    scored('fid', 'frozen', 'coco_captions', references=coco/'val2017')
    scored('fid', 'frozen', 'flickr30k', references=coco/'flickr30k'/'flickr30k-images')
    step('nbs/8_studies/run_latency.ipynb', rivals=['structured'], data=coco, models=dict(tokencompose=f'{weights}/sd14'), repeats=2, warm_up=0, inference_steps=1, out_dir=runs/'sd14'/'results')
    found = {(r['metric'], r['method']): r for r in load_results('sd14', str(runs))}
    assert {('multigen_coco', 'attend_excite'), ('visor', 'layout'), ('fid_coco', 'frozen'), ('fid_flickr', 'frozen'), ('latency', 'frozen'), ('latency', 'tokencompose')} <= set(found)
    assert 'owlvit' in found['visor', 'layout']['judge'] and set(found['visor', 'layout']['values']) >= {'OA', 'uncond'}
    assert all(found[key]['values']['FID'] > 0 and found[key]['judge'].startswith('Inception 2015') for key in (('fid_coco', 'frozen'), ('fid_flickr', 'frozen')))
    assert found['fid_coco', 'frozen']['notes']['reference_preparation'].startswith('shorter side to 512')
