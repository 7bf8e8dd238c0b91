"The judge's records as MultiGen reads them, against the library's own post-processing, and through interruptions."
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from tokencompose.core import read_jsonl
from tokencompose.data.world import draw_scene, render
from tokencompose.metrics import detection
from tokencompose.metrics.detection import class_scores, corners, detect, load_judge, normalize, owlv2_forward, QUERY
from tokencompose.metrics.detection import query_embeddings, query_ids, read_detections, tiny_judge
from tokencompose.metrics.multigen import draw_prompts, found_array, mg_table, prompt_classes
from tokencompose.core import image_name
from tokencompose.sampling import work_list

NAMES = ['cat', 'dog', 'pizza', 'teddy bear', 'hot dog']
PROMPTS = draw_prompts(NAMES, 3, seed=0, objects=3) + [{**draw_prompts(NAMES, 1, seed=1, objects=2)[0], 'unique_id': 7}]


def save_judge(folder, **changes): return tiny_judge(folder, NAMES, **changes)


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


def test_what_is_no_judge(judge, tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no OWLv2'): load_judge(str(tmp_path))
    with pytest.raises(ValueError, match="of the type 'clip'"): load_judge('tokencompose/zoo/clip')
    with pytest.raises(FileNotFoundError, match='hf download'): load_judge('google/no-such-judge')
    with pytest.raises(FileNotFoundError, match='no model folder'): load_judge('nowhere')
    with pytest.raises(ValueError, match='too long'): query_embeddings(judge, ['cat', 'dog '*12])


def test_a_list_of_queries_for_all_pictures_is_the_stock_forward(judge):
    pictures = torch.randint(256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    queries = query_ids(judge.processor.tokenizer, NAMES)
    ours = owlv2_forward(judge.model, normalize(pictures.float()/255), queries)
    with torch.no_grad(): stock = judge.model(input_ids=queries.repeat(3, 1), pixel_values=normalize(pictures.float()/255))
    for name in ('logits', 'objectness_logits', 'pred_boxes'):
        torch.testing.assert_close(getattr(ours, name).detach().flatten(), getattr(stock, name).flatten(), atol=1e-4, rtol=1e-4)
    scores = class_scores(judge.model, pictures, queries, batch=2)
    plain = torch.zeros(3, len(NAMES))
    for picture, boxes in enumerate(stock.logits.sigmoid()):
        for box in boxes: plain[picture, box.argmax()] = max(plain[picture, box.argmax()], box.max())
    torch.testing.assert_close(scores, plain, atol=1e-4, rtol=1e-4)


def test_corners_are_in_the_pictures_own_pixels():
    part = torch.tensor([[.25, .5, .5, 1.]])
    assert corners(part, (40, 20), pads=True).tolist() == [[0, 0, 20, 40]]     # shares of the padded square
    assert corners(part, (40, 20), pads=False).tolist() == [[0, 0, 20, 20]]    # shares of width and of height


def test_processes_share_a_folder(judge, images, tmp_path):
    whole = detect(judge, images, PROMPTS, 2, tmp_path/'whole', batch=3)
    halves = [detect(judge, images, PROMPTS, 2, tmp_path/'halves', batch=1, part=1, share=(rank, 2)) for rank in range(2)]
    assert [len(half) for half in halves] == [4, 8]
    for a, b in zip(halves[1], whole): np.testing.assert_allclose(a['scores'], b['scores'], atol=1e-5)
    sorted((tmp_path/'halves').glob('part-*'))[0].unlink()                     # a part that was never finished
    again = detect(judge, images, PROMPTS, 2, tmp_path/'halves', batch=1)
    assert again == halves[1]


def test_a_folder_belongs_to_one_judge(judge, images, tmp_path):
    detect(judge, images, PROMPTS, 2, tmp_path/'verdicts', keep_boxes=True)
    with pytest.raises(ValueError, match='boxes True there, False now'): detect(judge, images, PROMPTS, 2, tmp_path/'verdicts')
    other = load_judge(str(save_judge(tmp_path/'other', seed=1)), device='cpu')
    with pytest.raises(ValueError, match='judge'): detect(other, images, PROMPTS, 2, tmp_path/'verdicts', keep_boxes=True)


# ---- attention in blocks

@pytest.mark.parametrize('kind', ['owlv2', 'owlvit'])
def test_attention_in_blocks_says_the_same(kind, tmp_path):
    "Of scores, boxes and text, with masks and without; and where somebody wants the tables, they are made."
    judge = load_judge(tiny_judge(tmp_path, kind=kind), device='cpu')
    plain = type(judge.model).from_pretrained(tmp_path).eval()
    shown = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = judge.processor.tokenizer(['a photo of a cat', 'a dog'], padding='max_length', max_length=16, return_tensors='pt')
    with torch.no_grad():
        ours, theirs = (model(pixel_values=shown, input_ids=tokens.input_ids.repeat(2, 1), attention_mask=tokens.attention_mask.repeat(2, 1)) for model in (judge.model, plain))
        for name in ('logits', 'pred_boxes', 'text_embeds', 'image_embeds'): torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=1e-5)
        tower = getattr(judge.model, kind)
        assert len(tower.vision_model(shown, output_attentions=True).attentions) == 1


def test_verdicts_of_the_zoos_judge_are_the_same_either_way():
    "On drawn scenes: every best score within 1e-4, every verdict the same."
    judge, names = load_judge('tokencompose/zoo/owlv2', device='cpu'), ['cat', 'dog', 'pizza', 'car', 'clock']
    plain = type(judge.model).from_pretrained(ROOT/'tokencompose/zoo/owlv2').eval()
    pictures = torch.stack([torch.from_numpy(render(draw_scene((0, 'blocks', i)))[0]).permute(2, 0, 1) for i in range(32)])
    ours, theirs = (class_scores(model, pictures, query_ids(judge.processor.tokenizer, names)) for model in (judge.model, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert ((ours > .94) == (theirs > .94)).all() and (ours > .94).any()
