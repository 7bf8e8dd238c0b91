"""From nouns to masks.jsonl: one image, unions of boxes, and the stage over many images, stopped, shared and with bad pictures."""
import io
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_sam import picture, random_sam

from tokencompose.core import file_sha256, keyed_rng, read_jsonl
from tokencompose.data.boxes import FoundBoxes, LooseBox, NounBox
from tokencompose.data.coco import ClassWords, read_coco
from tokencompose.data.mask_exam import count_masks, mask_page
from tokencompose.data.masks import encode_rle, load_mask
from tokencompose.data.sam import SamSegmenter
from tokencompose.data.segment import cut_masks, make_masks, model_hashes, noun_mask, nouns_to_ask, segment_images
from tokencompose.data.world_files import write_world


def record_of(image_id, file_name, text, nouns):
    "A record of stage 02; every noun at its first place."
    return dict(image_id=image_id, file_name=file_name, text=text, nouns=[dict(noun=n, start=text.lower().index(n.lower()), end=text.lower().index(n.lower()) + len(n)) for n in nouns], left_out=[])


def five_boxes(images, nouns):
    "A grounder that gives every noun five boxes, which depend on picture and noun alone; without nouns it is never asked."
    assert all(nouns)
    def boxes(image, names):
        draws = [keyed_rng('boxes', int(image.sum()), name).random((5, 4)) for name in names]
        corners = [np.sort(d.reshape(5, 2, 2), 1).reshape(5, 4)*np.tile(image.shape[1::-1], 2) for d in draws]
        return [NounBox(i, tuple(map(float, box)), .5) for i, five in enumerate(corners) for box in five]
    return [FoundBoxes(boxes(image, names)) for image, names in zip(images, nouns)]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A small world and the records that stage 02 would make of it with a perfect tagger."
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, train=10, val=0)
    coco = read_coco(folder)
    finder = ClassWords(coco.classes)
    records = [record_of(i.id, i.file_name, i.captions[0][1], [m.noun for m in finder.find(i.captions[0][1])]) for i in coco.images]
    return folder, coco, records


def run(folder, world, **options):
    source, _, records = world
    options = dict(records=records, images=source/'train2017', grounder=five_boxes, segmenter=SamSegmenter(random_sam(), 'cpu'), settings=dict(models='random'), batch=3) | options
    return make_masks(folder, **options)


def test_masks_are_written_as_coco_reads_them(world, tmp_path):
    "Run lengths decoded by pycocotools are the masks of the boxes in the record, and their union is the noun's."
    run(tmp_path/'masks', world)
    segmenter, records = SamSegmenter(random_sam(), 'cpu'), read_jsonl(tmp_path/'masks'/'masks.jsonl')
    for record in records:
        image = np.array(Image.open(world[0]/'train2017'/record['file_name']).convert('RGB'))
        assert record['size'] == list(image.shape[:2]) and record['prompt'].count('.') == len(record['nouns'])
        for noun in record['nouns']:
            assert record['text'][noun['start']:noun['end']] == noun['noun'] and len(noun['boxes']) == 5
            decoded = [coco_mask.decode(dict(b['rle'], counts=b['rle']['counts'].encode())).astype(bool) for b in noun['boxes']]
            masks, scores = segmenter(image, np.array([b['box'] for b in noun['boxes']]))
            np.testing.assert_array_equal(decoded, masks)
            np.testing.assert_allclose([b['mask_score'] for b in noun['boxes']], scores, atol=1e-4)
            union = noun_mask(record, noun['noun'])
            np.testing.assert_array_equal(np.logical_or.reduce(decoded), np.zeros(image.shape[:2], bool) if union is None else union.numpy())


def test_stopped_and_taken_up_again_the_bytes_are_the_same(world, tmp_path):
    run(tmp_path/'whole', world)
    calls = []
    def stops(images, nouns):
        calls.append(len(images))
        if len(calls) == 3: raise KeyboardInterrupt
        return five_boxes(images, nouns)
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'stopped', world, grounder=stops)
    assert not (tmp_path/'stopped'/'masks.jsonl').exists()
    run(tmp_path/'stopped', world)
    assert (tmp_path/'stopped'/'masks.jsonl').read_bytes() == (tmp_path/'whole'/'masks.jsonl').read_bytes()


def test_two_processes_give_the_bytes_of_one(world, tmp_path):
    run(tmp_path/'one', world)
    assert len(run(tmp_path/'two', world, share=(0, 2))) == 6
    assert len(run(tmp_path/'two', world, share=(1, 2))) == 10
    assert (tmp_path/'two'/'masks.jsonl').read_bytes() == (tmp_path/'one'/'masks.jsonl').read_bytes()
    with pytest.raises(ValueError, match='other settings'): run(tmp_path/'two', world, settings=dict(models='others'))


def bad_pictures(folder):
    "File name -> whether it can be read."
    rgb, jpeg = Image.fromarray(picture(40, 61)), io.BytesIO()
    rgb.save(jpeg, 'jpeg')
    (folder/'torn.jpg').write_bytes(jpeg.getvalue()[:600])
    (folder/'text.png').write_text('no picture')
    rgb.convert('CMYK').save(folder/'cmyk.jpg')
    rgb.convert('P').save(folder/'palette.gif')
    Image.fromarray(picture(40, 61)[..., 0].astype(np.uint16)*257).save(folder/'sixteen.png')
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder/'turned one.jpg', exif=turned)
    return {'torn.jpg': False, 'text.png': False, 'lost.png': False, 'cmyk.jpg': True, 'palette.gif': True, 'sixteen.png': True, 'turned one.jpg': True}


def test_a_bad_picture_stops_nobody(tmp_path):
    (tmp_path/'images').mkdir()
    readable = bad_pictures(tmp_path/'images')
    records = [record_of(i, name, 'a cat and a hat', ['cat', 'hat']) for i, name in enumerate(readable)] + [record_of(99, 'cmyk.jpg', 'blue', [])]
    done = make_masks(tmp_path/'masks', records, tmp_path/'images', five_boxes, SamSegmenter(random_sam(), 'cpu'), {}, batch=4)
    assert [r['file_name'] for r in done] == [r['file_name'] for r in records]
    for record, good in zip(done, readable.values()):
        assert ('error' in record) != good and all(bool(n['boxes']) == good for n in record['nouns'])
        if not good: assert record['file_name'] in record['error'] and str(tmp_path) not in record['error']
    turned = next(r for r in done if r['file_name'] == 'turned one.jpg')
    assert turned['size'] == [61, 40] and turned['nouns'][0]['boxes'][0]['rle']['size'] == [61, 40]  # as the training loader sees it
    counts = count_masks(done)
    assert (counts['images'], counts['unreadable'], counts['images_without_noun'], counts['nouns'], counts['nouns_with_box'], counts['boxes']) == (8, 3, 1, 14, 8, 40)
    assert len(mask_page(done, tmp_path/'images').axes) == 2*4*2  # two rows of four, pictures and captions
    with pytest.raises(ValueError, match='none of the 3 images in .* can be read'): mask_page(done[:3], tmp_path/'images')


def by_mask(image, boxes, table):
    "A segmenter that knows the masks: of each box the one in the table."
    return np.array([table[tuple(box)] for box in boxes.tolist()]).reshape(-1, *image.shape[:2]), np.ones(len(boxes))


def test_the_mask_of_a_noun_is_the_union_over_its_boxes():
    "Two boxes of one noun, apart or overlapping, a noun with one box, one with an empty mask and one without."
    masks = keyed_rng('masks').random((5, 9, 12)) < .3
    masks[3], masks[4] = False, masks[0] | masks[1]
    boxes = [(float(i), 0., float(i) + 1, 5.) for i in range(5)]
    record = record_of(1, 'x.png', 'Two Dogs, a cat, a hat, a wall and a door', ['Dogs', 'cat', 'hat', 'wall', 'door'])
    found = FoundBoxes([NounBox(0, boxes[0], .9), NounBox(1, boxes[2], .8), NounBox(0, boxes[1], .7), NounBox(2, boxes[3], .6), NounBox(4, boxes[4], .5), NounBox(4, boxes[0], .4)])
    cut = json.loads(json.dumps(cut_masks(record, picture(9, 12), found, partial(by_mask, table=dict(zip(boxes, masks))))))
    np.testing.assert_array_equal(noun_mask(cut, 'dogs').numpy(), masks[0] | masks[1])
    np.testing.assert_array_equal(noun_mask(cut, 'cat').numpy(), masks[2])
    np.testing.assert_array_equal(noun_mask(cut, 'door').numpy(), masks[4])
    assert noun_mask(cut, 'hat') is None and noun_mask(cut, 'wall') is None
    assert [len(n['boxes']) for n in cut['nouns']] == [2, 1, 1, 0, 2] and count_masks([cut])['empty_masks'] == 1


def test_a_noun_inside_another_gets_its_own_boxes_only():
    record = record_of(1, 'x.png', 'a woman and a man with hot dogs and a dog', ['woman', 'hot dogs'])
    record['nouns'] += [dict(noun='man', start=14, end=17), dict(noun='dog', start=38, end=41)]
    boxes = [(float(i), 0., float(i) + 1, 5.) for i in range(4)]
    cut = cut_masks(record, picture(9, 12), FoundBoxes([NounBox(i, box, .5) for i, box in enumerate(boxes)]), partial(by_mask, table=dict(zip(boxes, np.ones((4, 9, 12), bool)))))
    assert [[tuple(b['box']) for b in n['boxes']] for n in cut['nouns']] == [[box] for box in boxes]


# ---- one image

@pytest.fixture
def cut():
    "The record of an image in which a noun comes twice, has two boxes, and one box belongs to nobody."
    record = record_of(7, 'x.png', 'man, hot dog and the sky', ['man', 'hot dog', 'sky'])
    record['nouns'].insert(2, dict(record['nouns'][0], noun='Man', start=4, end=7))
    boxes = [NounBox(0, (2.004, 1, 6, 5), .9), NounBox(1, (10, 2, 14, 6), .8), NounBox(0, (4, 3, 9, 8), .5)]
    found = FoundBoxes(boxes, [LooseBox((0, 0, 20.5, 9), .3, 'hot sky')], [(2, 'no token')])
    return cut_masks(record, np.zeros((10, 24, 3), np.uint8), found, fill)


def fill(image, boxes):
    "A segmenter whose masks are the boxes."
    masks = np.zeros((len(boxes), *image.shape[:2]), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, np.round(boxes).astype(int)): mask[y0:y1, x0:x1] = True
    return masks, np.full(len(boxes), .9, np.float32)


def test_what_a_record_holds(cut):
    assert [b['box'] for b in cut['nouns'][0]['boxes']] == [[2, 1, 6, 5], [4, 3, 9, 8]]  # 2.004 is rounded
    assert [len(n['boxes']) for n in cut['nouns']] == [2, 1, 2, 0] and cut['nouns'][0]['boxes'] == cut['nouns'][2]['boxes']
    assert (cut['size'], cut['prompt']) == ([10, 24], 'man . hot dog . sky.')
    assert cut['unassigned'] == [dict(box=[0, 0, 20.5, 9], score=.3, phrase='hot sky')]
    assert cut['left_out'] == [['sky', 'no token']]
    assert json.loads(json.dumps(cut)) == cut


def test_a_caption_without_nouns():
    empty = cut_masks(record_of(1, 'x.png', 'blue', []), np.zeros((10, 24, 3), np.uint8), FoundBoxes(), fill)
    assert nouns_to_ask(empty) == [] and (empty['nouns'], empty['prompt'], empty['size']) == ([], '', [10, 24])


def test_the_union_of_two_that_overlap(cut):
    one, other = (load_mask(b['rle']) for b in cut['nouns'][0]['boxes'])
    assert 0 < (one & other).sum() < one.sum()
    assert (noun_mask(cut, 'man') == (one | other)).all() and (noun_mask(cut, 'Man') == (one | other)).all()


def test_a_noun_with_an_empty_mask_has_none(cut):
    box = dict(cut['nouns'][0]['boxes'][0], rle=encode_rle(np.zeros((10, 24), bool)))
    assert noun_mask(dict(cut, nouns=[dict(cut['nouns'][0], boxes=[box])]), 'man') is None


def test_masks_that_do_not_belong_to_the_record(cut):
    with pytest.raises(ValueError, match='not of the image'): noun_mask(dict(cut, size=[24, 10]), 'man')
    with pytest.raises(ValueError, match="has no noun 'dog'"): noun_mask(cut, 'dog')


# ---- what a stage is made with

def test_what_a_model_is(tmp_path):
    for name in ('config.json', 'bert/vocab.txt', 'README.md', 'sam.pth'): (tmp_path/name).parent.mkdir(exist_ok=True); (tmp_path/name).write_text(name)
    assert list(model_hashes(tmp_path)) == ['bert/vocab.txt', 'config.json', 'sam.pth']
    assert model_hashes(tmp_path)['sam.pth'] == model_hashes(tmp_path/'sam.pth')['sam.pth'] == file_sha256(tmp_path/'sam.pth')
    (tmp_path/'sam.json').write_text('{}')
    assert list(model_hashes(tmp_path/'sam.pth')) == ['sam.pth', 'sam.json']


def test_no_noun_no_question(world):
    source, _, records = world
    assert segment_images([dict(records[0], nouns=[])], source/'train2017', five_boxes, fill)[0]['nouns'] == []


def test_one_batch_or_many(world, tmp_path):
    source, _, records = world
    done = run(tmp_path/'three', world, segmenter=fill)
    assert segment_images(records, source/'train2017', five_boxes, fill) == done


def test_records_that_cannot_be_worked_on(world, tmp_path):
    with pytest.raises(ValueError, match='comes twice'): run(tmp_path/'twice', world, records=world[2][:1]*2)
    with pytest.raises(FileNotFoundError, match='no folder of images'): run(tmp_path/'lost', world, images=world[0]/'val')
