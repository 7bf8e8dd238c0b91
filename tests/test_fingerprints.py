"""The numbers of the miniature, held: whoever moves them, on purpose or not, learns of it here.

A small world goes the whole way at profile `mini`: captions, nouns and masks by the zoo's models, ten updates of four images, eight pictures of ten steps. The expected values are in fingerprints.json. Rounding
differs between processors, so values are compared within a tolerance far below any real change. After a change that is meant, `python tests/test_fingerprints.py` writes them again."""
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import pytest
import torch

from tokencompose.core import read_jsonl, write_text
from tokencompose.data.boxes import load_grounder
from tokencompose.data.build import build_automatic
from tokencompose.data.captions import load_clip, select_captions
from tokencompose.data.coco import read_coco
from tokencompose.data.dataset import read_rows
from tokencompose.data.masks import load_mask
from tokencompose.data.sam import load_segmenter
from tokencompose.data.segment import make_masks
from tokencompose.data.tagging import load_tagger, NOUN_RULES, read_captions, tag_captions
from tokencompose.data.world_files import write_world
from tokencompose.methods import METHODS
from tokencompose.metrics.multigen import draw_prompts
from tokencompose.models import load_pipeline
from tokencompose.profiles import get_profile
from tokencompose.rivals.inputs import all_inputs
from tokencompose.rivals.rivals import new_rival
from tokencompose.run_config import config_for
from tokencompose.sampling import sample
from tokencompose.training import train

FILE = Path(__file__).with_name('fingerprints.json')
LOSSES = ('denoise_loss', 'token_loss', 'pixel_loss')
MINI = get_profile('mini')


def prepare(folder):
    "The training folder of a few scenes, as data_prep makes it."
    write_world(folder, train=24, val=1)
    coco = read_coco(folder, 'train2017', 'vsr/train.jsonl')
    select_captions(folder/'captions', coco, *load_clip(MINI.clip, 'cpu'))
    nouns = tag_captions(folder/'nouns', read_captions(folder/'captions')[0], load_tagger(MINI.tagger), **NOUN_RULES[MINI.noun_rule])
    make_masks(folder/'masks', nouns, coco.folder, load_grounder(MINI.grounder, device='cpu'), load_segmenter(MINI.segmenter, 'cpu'), {})
    build_automatic(folder/'tokencompose', folder/'masks', coco.folder)


def in_double(pipe):
    "U-Net and text encoder in double precision; the encoder makes its causal mask in torch's default precision."
    encode = pipe.encode_prompt
    def encode_prompt(*args, **kwargs):
        torch.set_default_dtype(torch.float64)
        try: return encode(*args, **kwargs)
        finally: torch.set_default_dtype(torch.float32)
    for part in (pipe.unet, pipe.text_encoder): part.double()
    pipe.encode_prompt = encode_prompt


def pictures(pipe, trained):
    "Eight of them: two by the base model, two by the trained one, one by each rival; all of the first two prompts and the same noise."
    rows = draw_prompts(MINI.coco_classes, 2, seed=0)
    recipe = dict(inference_steps=10, guidance_scale=MINI.guidance_scale)
    drawn = {name: sample(model, rows, **recipe)[:, 0] for name, model in dict(frozen=pipe, tokencompose=trained).items()}
    in_double(pipe)  # Attend-and-Excite makes much of a rounding
    for name in (name for name, method in METHODS.items() if method.kind == 'rival'):
        drawn[name] = sample(pipe, rows[:1], call=new_rival(name, pipe, all_inputs(rows[:1], pipe.tokenizer)), **recipe)[:, 0]
    return drawn


def fingerprint(folder):
    prepare(folder)
    rows = read_rows(folder/'tokencompose')
    config = config_for(MINI, data=str(folder/'tokencompose'), images=str(folder/'train2017'), out_dir=str(folder/'run'), steps=10, batch_size=4, log_every=1, sample_every=0)
    train(config)
    drawn = pictures(load_pipeline(MINI.model, device='cpu'), load_pipeline(str(folder/'run'/'pipeline'), device='cpu'))
    coarse = {name: torch.nn.functional.adaptive_avg_pool2d(p, 4).flatten(1) for name, p in drawn.items()}
    return dict(captions=[row.text for row in rows], nouns=[row.nouns for row in rows],
                mask_pixels=[[int(load_mask(folder/'tokencompose'/m).sum()) if m else 0 for m in row.masks] for row in rows],
                losses={name: [round(line[name], 6) for line in read_jsonl(folder/'run'/'metrics.jsonl')] for name in LOSSES},
                pictures={name: [[round(v, 3) for v in row] for row in p.tolist()] for name, p in coarse.items()})


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    return fingerprint(tmp_path_factory.mktemp('fingerprint')), json.loads(FILE.read_text(encoding='utf-8'))


def test_the_data_is_the_same(both):
    found, expected = both
    assert (found['captions'], found['nouns']) == (expected['captions'], expected['nouns'])
    for mine, theirs in zip(found['mask_pixels'], expected['mask_pixels'], strict=True): assert mine == pytest.approx(theirs, abs=2)


@pytest.mark.parametrize('name', LOSSES)
def test_ten_updates_have_the_same_losses(both, name):
    found, expected = both
    assert found['losses'][name] == pytest.approx(expected['losses'][name], rel=2e-3)


@pytest.mark.parametrize('name', ['frozen', 'tokencompose', *(name for name, method in METHODS.items() if method.kind == 'rival')])
def test_the_pictures_are_the_same(both, name):
    found, expected = both
    for mine, theirs in zip(found['pictures'][name], expected['pictures'][name], strict=True): assert mine == pytest.approx(theirs, abs=.02)


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as place: found = fingerprint(Path(place))
    lines = [f' {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}' for key, value in found.items()]
    write_text(FILE, '{\n' + ',\n'.join(lines) + '\n}\n')
    print(f'written: {FILE.name}', file=sys.stderr)
