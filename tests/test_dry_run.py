"""The dry run of the paper: a profile from fetched files to judged pictures, Tables 2 to 4 and Figure 4; every model a tiny random one in the real file layout, every picture one of a few invented ones in COCO's. Here sd14; sd21 and Table 1 have files of their own, so that processes can share the work."""
import pandas as pd
import papermill as pm
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from make_real_files import accept_multigen, FileServer, write_coco_like
from make_real_models import tiny_owlvit, write_inception, write_models
from safetensors.torch import load_file
from test_bad_input import HereEngine  # noqa: F401  (registers the engine "here")
from test_detection import save_judge
from test_fetch import given

from tokencompose.core import file_sha256, read_json, read_jsonl
from tokencompose.data.dataset import read_rows
from tokencompose.methods import METHODS, rows, run_name
from tokencompose.metrics import fid
from tokencompose.profiles import PROFILES


PRECISION = dict(sd14='bf16', sd21='no')  # the profile's own once; on a CPU it is the slow one


@pytest.fixture(scope='module')
def files(tmp_path_factory, clip_files):
    from transformers import CLIPTokenizer, CLIPTokenizerFast
    folder = tmp_path_factory.mktemp('paper')
    pads = dict(sd14='<|endoftext|>', sd21='!')  # id 49407 and id 0, as the two models have them
    write_models(folder/'weights', {kind: CLIPTokenizer(*clip_files, model_max_length=77, pad_token=pad) for kind, pad in pads.items()})
    save_judge(folder/'weights'/'owlv2', tokenizer=CLIPTokenizerFast(*clip_files, model_max_length=16, pad_token='!'))
    tiny_owlvit(CLIPTokenizerFast(*clip_files, model_max_length=16, pad_token='!'), folder/'weights'/'owlvit')
    write_coco_like(folder/'remote', n=3, val=3, extra=0)
    return folder


def run(name, output, **params):
    pm.execute_notebook(str(ROOT/name), str(output), {key: str(value) if hasattr(value, 'parts') else value for key, value in params.items()}, cwd=str(ROOT), progress_bar=False, engine_name='here')


def paper_with(profile, weights, inception, monkeypatch):
    "The paper's profile with small models in place of the published ones."
    small = PROFILES[profile].replace(model=f'{weights}/{profile}', judge=f'{weights}/owlv2', visor_judge=f'{weights}/owlvit', inception=str(write_inception(inception)), revision='', judge_revision='', visor_judge_revision='')
    monkeypatch.setitem(PROFILES, profile, small)
    accept_multigen(monkeypatch, weights.parent/'remote')
    monkeypatch.setattr(fid.Inception.__init__, '__defaults__', ('', file_sha256(inception)))  # random weights instead of the ones that FID is defined by


OTHERS = dict(sd14=('denoise', 'pixel', 'token', 'layers_down16_mid8_up16'), sd21=('denoise',))  # Table 2 belongs to the first model, Table 3 to the second


def dry_run(profile, files, tmp_path, monkeypatch):
    "All stages of a profile, with every result that its tables show."
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    def next_precision(): AcceleratorState._reset_state(reset_partial_state=True)  # notebooks in one process, with two precisions
    def step(name, **params): run(name, tmp_path/f'{name.split("/")[-1]}', **dict(profile=profile) | params)
    weights, coco, out, runs = files/'weights', tmp_path/'coco', tmp_path, tmp_path/'runs'
    paper_with(profile, weights, tmp_path/'inception.pth', monkeypatch)
    trained, control = (runs/profile/'train'/run_name(method) for method in ('tokencompose', 'denoise'))
    with FileServer(files/'remote') as server: step('data_prep/00_fetch.ipynb', **given(server, profile=profile, val_images=1, coco_captions=2), out_dir=coco)
    step('data_prep/01_select_captions.ipynb', source=coco, clip=weights/'clip', out_dir=out/'captions')
    assert [len(r['candidates']) for r in read_jsonl(out/'captions/captions.jsonl')] == [5, 5, 5]
    step('data_prep/02_tag_nouns.ipynb', captions=out/'captions', tagger=weights/'pos-english'/'pytorch_model.bin', out_dir=out/'nouns')
    step('data_prep/03_segment.ipynb', source=coco, nouns=out/'nouns', grounder=weights/'groundingdino_swint_ogc.pth', bert=weights/'bert', segmenter=weights/'sam_vit_h_4b8939.pth',
         box_threshold=0.0, text_threshold=0.0, out_dir=out/'masks')
    step('data_prep/04_build_dataset.ipynb', stage=out/'masks', images=coco/'train2017', model=weights/profile, keep_empty=True, out_dir=out/'data')
    step('data_prep/04_build_dataset.ipynb', split='val', masks='exact', source=coco, model=weights/profile, out_dir=out/'val')
    step('data_prep/04_build_dataset.ipynb', masks='exact', image_list='all', source=coco, model=weights/profile, out_dir=out/'exact')
    assert len(read_rows(out/'data')) == 3 and any(read_rows(out/'val')[0].masks)
    with pytest.raises(ValueError, match='of its 0 nouns can be supervised'):  # a tagger of random weights finds none
        step('nbs/train.ipynb', model=weights/profile, data=out/'data', images=coco/'train2017', steps=2, out_dir=out/'none')
    next_precision()
    step('nbs/train.ipynb', model=weights/profile, data=out/'exact', images=coco/'train2017', val_data=out/'val', val_images=coco/'val2017', steps=2, batch_size=1, sample_every=2, inference_steps=1, mixed_precision=PRECISION[profile], out_dir=trained)
    next_precision()
    for method in OTHERS[profile]:  # the other objectives, and the one choice of layers with a layer of the way down
        step('nbs/train.ipynb', method=method, model=weights/profile, data=out/'exact', images=coco/'train2017', val_data=out/'val', val_images=coco/'val2017',
             steps=1, batch_size=1, sample_every=0, mixed_precision='no', out_dir=runs/profile/'train'/run_name(method))
    assert read_json(trained/'result.json')['result']['seconds'] > 0
    for benchmark, metric in dict(multigen_coco='multigen', multigen_ade20k='multigen', visor='visor', coco_captions='fid').items():  # a whole row of Tables 2 and 3
        step('nbs/sample.ipynb', benchmark=benchmark, data=coco, model=trained/'pipeline', prompts=1 + (metric == 'fid'), rounds=1, inference_steps=1, out_dir=out/'images'/benchmark)
        step('nbs/evaluate.ipynb', metric=metric, benchmark=benchmark, images=out/'images'/benchmark, references=coco/'val2017', rounds=1, method='tokencompose', out_dir=runs/profile/'results')
    step('nbs/evaluate.ipynb', metric='grounding', method='tokencompose', model=trained/'pipeline', data=out/'val', data_images=coco/'val2017', timesteps=[401], out_dir=runs/profile/'results')
    assert read_json(runs/profile/'results'/'multigen_coco'/'tokencompose.json')['n']['images'] == 1
    redrawn, made = dict(data=out/'val', inversions=out/'inversions', inference_steps=1, inner_steps=1), {}
    for method, model in {'frozen': weights/profile, 'denoise': control/'pipeline', 'tokencompose': trained/'pipeline'}.items():
        step('nbs/evaluate.ipynb', metric='daam', method=method, model=model, pictures=1, data_images=coco/'val2017', out_dir=runs/profile/'results', **redrawn | dict(inversions=out/'inversions'/run_name(method)))
        made |= {path: path.stat().st_mtime_ns for path in (out/'inversions'/run_name(method)).glob('*.safetensors')}
    assert len(made) == 3 and all(values.dtype == torch.float32 for path in made for name, values in load_file(path).items() if name != 'updates')
    step('paper_figures/table4.ipynb', runs=runs, out_dir=out/'figures')
    assert 'not run' not in (out/'figures'/'table4.csv').read_text()
    table = dict(sd14='table2', sd21='table3')[profile]  # each of a base model
    step(f'paper_figures/{table}.ipynb', runs=runs, out_dir=out/'figures')
    label = METHODS['tokencompose'].numbered if profile == 'sd14' else METHODS['tokencompose'].label
    row = pd.read_csv(out/'figures'/f'{table}.csv', index_col=[0, 1]).loc[(label, profile)]
    assert len(row) == 9 and 'not run' not in row.tolist()  # object accuracy, MG3 to MG5 on both lists, things found, FID
    assert 'iou_0.3' in (out/'figures'/dict(sd14='grounding.md', sd21='table3_grounding.md')[profile]).read_text()
    shown = {'frozen': weights/profile, **{m: runs/profile/'train'/run_name(m)/'pipeline' for m in ('tokencompose', *OTHERS[profile]) if m in rows('figure4')}}
    for method, model in shown.items():
        step('nbs/evaluate.ipynb', metric='examples', method=method, model=model, data_images=coco/'val2017', out_dir=runs/profile/'results', **redrawn | dict(inversions=out/'inversions'/run_name(method)))
    step('paper_figures/figure4.ipynb', runs=runs, out_dir=out/'figures')
    assert {path.parent.name for path in (out/'inversions').glob('*/*.safetensors')} == {run_name(m) for m in ('frozen', 'tokencompose', *OTHERS[profile]) if m in rows('figure4')}, 'all models of the figure draw'
    assert (out/'figures'/'figure4.png').is_file() and made.items() <= {path: path.stat().st_mtime_ns for path in (out/'inversions').glob('*/*.safetensors')}.items(), 'the figure uses the inversions of the table'


def test_sd14(files, tmp_path, monkeypatch): dry_run('sd14', files, tmp_path, monkeypatch)
