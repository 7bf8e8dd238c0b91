"The judge's records as MultiGen reads them, against the library's own post-processing, and through interruptions."
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Owlv2ImageProcessor, Owlv2Processor
from tokencompose.core import read_jsonl
from tokencompose.metrics import detection
from tokencompose.metrics.detection import detect, load_judge, QUERY, read_detections
from tokencompose.metrics.multigen import draw_prompts, found_array, mg_table, prompt_classes
from tokencompose.models import build_tokenizer
from tokencompose.metrics.detection import new_owlv2
from tokencompose.core import image_name
from tokencompose.sampling import work_list

NAMES = ['cat', 'dog', 'pizza', 'teddy bear', 'hot dog']
PROMPTS = draw_prompts(NAMES, 3, seed=0, objects=3) + [{**draw_prompts(NAMES, 1, seed=1, objects=2)[0], 'unique_id': 7}]


def save_judge(folder, seed=0, size=64, tokenizer=None):
    tokenizer = tokenizer or build_tokenizer([QUERY.format(name) for name in NAMES]*2, 30, 16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = new_owlv2(tokenizer, width=32, layers=1)
        for head in (net.class_head.logit_shift, net.class_head.logit_scale):
            torch.nn.init.normal_(head.weight, std=.3)
            torch.nn.init.constant_(head.bias, -.5)
        for parameter in net.owlv2.text_model.parameters(): parameter.data *= 4
    net.save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size=dict(height=size, width=size)), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def judge(tmp_path_factory): return load_judge(str(save_judge(tmp_path_factory.mktemp('judge'))), device='cpu')


@pytest.fixture
def images(tmp_path):
    "Pictures of several shapes for every prompt and two rounds."
    folder, rng = tmp_path/'images', np.random.default_rng(0)
    folder.mkdir()
    for i, item in enumerate(work_list(PROMPTS, 2)):
        coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize([(64, 64), (80, 50), (40, 64)][i % 3], Image.Resampling.BICUBIC).save(folder/image_name(*item))
    return folder


def stock_found(judge, path, names, threshold):
    "Classes that the library's own pipeline detects."
    inputs = judge.processor(text=[[QUERY.format(n) for n in names]], images=Image.open(path), return_tensors='pt', max_length=16)
    with torch.no_grad(): output = judge.model(**inputs)
    found = judge.processor.post_process_grounded_object_detection(output, threshold, text_labels=[names])[0]['text_labels']
    return [name in found for name in names]


def test_multigen_from_records_is_multigen_from_the_library(judge, images, tmp_path):
    records, shares = detect(judge, images, PROMPTS, 2, tmp_path/'verdicts', batch=3), []
    for threshold in (.05, .3, .6, .8, .9, .95):
        found = found_array(records, PROMPTS, threshold, 2)
        expected = np.zeros_like(found)
        for i, row in enumerate(PROMPTS):
            names = prompt_classes(row)
            for r in range(2): expected[i, r, :len(names)] = stock_found(judge, images/image_name(row['unique_id'], r), names, threshold)
        assert (found == expected).all()
        shares.append(found.mean())
    assert len(set(shares)) >= 3, 'the comparison should not be one of constants'
    assert mg_table(records, PROMPTS, .9, 2).loc[1, 'images'] == 8


def test_a_stopped_run_goes_on(judge, images, tmp_path, monkeypatch):
    whole = detect(judge, images, PROMPTS, 2, tmp_path/'whole', batch=8)
    write, written = detection.write_jsonl, []
    def failing(path, rows):
        if len(written) == 2: raise OSError('No space left on device')
        written.append(path)
        write(path, rows)
    with monkeypatch.context() as patch:
        patch.setattr(detection, 'write_jsonl', failing)
        with pytest.raises(OSError, match='No space'): detect(judge, images, PROMPTS, 2, tmp_path/'part', batch=1, part=2)
    assert len(read_detections(tmp_path/'part')) == 4
    again = detect(judge, images, PROMPTS, 2, tmp_path/'part', batch=4)
    assert len(read_detections(tmp_path/'part')) == 8
    for a, b in zip(again, whole):
        assert (a['prompt_id'], a['round'], a['image']) == (b['prompt_id'], b['round'], b['image'])
        np.testing.assert_allclose(a['scores'], b['scores'], atol=1e-5)


def test_pictures_that_changed_are_judged_again(judge, images, tmp_path):
    before = detect(judge, images, PROMPTS, 2, tmp_path/'verdicts')
    Image.new('RGB', (64, 64), 'red').save(images/'7_1.png')
    after = detect(judge, images, PROMPTS, 2, tmp_path/'verdicts')
    assert [a == b for a, b in zip(before, after)] == [(r['prompt_id'], r['round']) != (7, 1) for r in before]
    assert len(read_detections(tmp_path/'verdicts')) == 9  # the old verdict is kept, not used


def test_records_are_plain_json(judge, images, tmp_path):
    detect(judge, images, PROMPTS, 2, tmp_path/'verdicts', keep_boxes=True)
    for path in (tmp_path/'verdicts').glob('part-*.jsonl'):
        for record in read_jsonl(path):
            assert set(record) == {'prompt_id', 'round', 'image', 'scores', 'boxes'} and len(record['scores']) == len(record['boxes'])
            assert all(max(row) >= .01 for row in record['scores']) and json.loads(json.dumps(record)) == record


def test_bad_input_is_named(judge, images, tmp_path):
    with pytest.raises(FileNotFoundError, match='4 of 12 pictures are missing'): detect(judge, images, PROMPTS, 3, tmp_path/'verdicts')
    (images/'2_1.png').write_bytes(b'\x89PNG broken')
    with pytest.raises(ValueError, match='2_1.png'): detect(judge, images, PROMPTS, 2, tmp_path/'verdicts')
    with pytest.raises(ValueError, match='96x96 pixels, the model takes 64x64'): load_judge(str(save_judge(tmp_path/'other', size=96)), device='cpu')
