"""The dry run of the paper: profiles sd14 and sd21 from fetched files to judged pictures, every model a tiny random one in the real file layout, every picture one of a few invented ones in COCO's."""
import papermill as pm
import pytest
from accelerate.state import AcceleratorState
from conftest import ROOT
from make_real_files import FileServer, write_coco_like
from make_real_models import write_models
from test_bad_input import HereEngine  # noqa: F401  (registers the engine "here")
from test_detection import save_judge
from test_fetch import given

from tokencompose.core import read_json, read_jsonl
from tokencompose.data.dataset import read_rows


PRECISION = dict(sd14='bf16', sd21='no')  # the profile's own once; on a CPU it is the slow one


@pytest.fixture(scope='module')
def files(tmp_path_factory, clip_files):
    from transformers import CLIPTokenizer, CLIPTokenizerFast
    folder = tmp_path_factory.mktemp('paper')
    pads = dict(sd14='<|endoftext|>', sd21='!')  # id 49407 and id 0, as the two models have them
    write_models(folder/'weights', {kind: CLIPTokenizer(*clip_files, model_max_length=77, pad_token=pad) for kind, pad in pads.items()})
    save_judge(folder/'weights'/'owlv2', tokenizer=CLIPTokenizerFast(*clip_files, model_max_length=16, pad_token='!'))
    write_coco_like(folder/'remote', n=3, val=1, extra=0)
    return folder


def run(name, output, **params):
    pm.execute_notebook(str(ROOT/name), str(output), {key: str(value) if hasattr(value, 'parts') else value for key, value in params.items()}, cwd=str(ROOT), progress_bar=False, engine_name='here')


@pytest.mark.parametrize('profile', ['sd14', 'sd21'])
def test_paper_dry_run(profile, files, tmp_path, monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    AcceleratorState._reset_state(reset_partial_state=True)  # two notebooks in one process, with two precisions
    def step(name, **params): run(name, tmp_path/f'{name.split("/")[-1]}', **dict(profile=profile) | params)
    weights, coco, out = files/'weights', tmp_path/'coco', tmp_path
    with FileServer(files/'remote') as server: step('data_prep/00_fetch.ipynb', **given(server, profile=profile, val_images=1), out_dir=coco)
    step('data_prep/01_select_captions.ipynb', source=coco, clip=weights/'clip', out_dir=out/'captions')
    assert [len(r['candidates']) for r in read_jsonl(out/'captions/captions.jsonl')] == [5, 5, 5]
    step('data_prep/02_tag_nouns.ipynb', captions=out/'captions', tagger=weights/'pos-english'/'pytorch_model.bin', out_dir=out/'nouns')
    step('data_prep/03_segment.ipynb', source=coco, nouns=out/'nouns', grounder=weights/'groundingdino_swint_ogc.pth', bert=weights/'bert', segmenter=weights/'sam_vit_h_4b8939.pth',
         box_threshold=0.0, text_threshold=0.0, out_dir=out/'masks')
    step('data_prep/04_build_dataset.ipynb', stage=out/'masks', images=coco/'train2017', model=weights/profile, keep_empty=True, out_dir=out/'data')
    step('data_prep/04_build_dataset.ipynb', split='val', masks='exact', source=coco, model=weights/profile, out_dir=out/'val')
    assert len(read_rows(out/'data')) == 3 and any(read_rows(out/'val')[0].masks)
    step('nbs/train.ipynb', model=weights/profile, data=out/'data', images=coco/'train2017', val_data=out/'val', val_images=coco/'val2017', steps=2, batch_size=1, sample_every=2, inference_steps=1, mixed_precision=PRECISION[profile], out_dir=out/'train')
    assert read_json(out/'train/result.json')['result']['seconds'] > 0
    step('nbs/sample.ipynb', model=out/'train'/'pipeline', prompts=1, rounds=1, inference_steps=1, out_dir=out/'images')
    step('nbs/evaluate.ipynb', images=out/'images', judge=weights/'owlv2', rounds=1, out_dir=out/'results')
    assert read_json(out/'results'/'multigen_coco'/'frozen.json')['n']['images'] == 1
