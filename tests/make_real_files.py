"""A few small files in the true formats of COCO 2017, VSR and the authors' data set, and a local server for them.

`write_coco_like(folder, n)` writes, below `folder`:
    train2017/<12 digits>.jpg, val2017/<12 digits>.jpg     JPEG, sizes differ, landscape and portrait
    annotations/{captions,instances}_{train,val}2017.json   five captions an image; polygons, and a crowd as run lengths
    annotations/annotations_trainval2017.zip                the same files as COCO packs them, with key points as a file nobody wants
    vsr/{train,dev,test}.jsonl                              statements; the training list names images of both splits
    authors/metadata.jsonl, authors/seg/                    rows and masks as the authors published them
    compbench/, geneval/, multigen/                         prompts, see `write_prompt_lists`
`write_flickr_like(folder, n)` writes Flickr30K Entities, which no server gives out.
`write_prompt_lists(folder, n)` writes, below `folder`, prompts in the published forms of T2I-CompBench and GenEval:
    compbench/<category>_val.txt, compbench/complex_val_{spatial,action}.txt, geneval/evaluation_metadata.jsonl
    multigen/{coco,ade20k}_obj_comp_5_1k.json, invented: `accept_multigen` lets their checksums pass for the published ones
So a server of this folder stands for COCO's (`coco_url` is its address) and for VSR's (`vsr_url` is its address + "/vsr"), and
the folder itself is one that `read_coco` reads.
"""
import json
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tokencompose.core import file_sha256, write_json, write_jsonl
from tokencompose.data.classes import ADE20K_100, COCO_80, MULTIGEN_SHA256
from tokencompose.data.dataset import write_dataset
from tokencompose.data.masks import load_mask
from tokencompose.metrics.multigen import draw_prompts, save_prompts

SIZES = [(160, 120), (96, 144), (128, 128), (200, 112), (112, 176)]  # (width, height)
UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # COCO numbers its 80 classes from 1 to 90
CATEGORY_IDS = dict(zip(COCO_80, (i for i in range(1, 91) if i not in UNUSED_IDS)))
LICENCES = [dict(id=1, name='Attribution-NonCommercial-ShareAlike License', url='http://creativecommons.org/licenses/by-nc-sa/2.0/'),
            dict(id=4, name='Attribution License', url='http://creativecommons.org/licenses/by/2.0/')]
PAIRS = [('cat', 'dog'), ('horse', 'car'), ('pizza', 'cup'), ('teddy bear', 'chair'), ('bus', 'stop sign'), ('banana', 'clock')]
HOST = 'http://images.cocodataset.org'


def points(kind, width, height):
    "Corners of the left (0) and right (1) object of a picture."
    x0, x1 = [(.08, .46), (.54, .93)][kind]
    y0, y1 = [(.3, .85), (.2, .7)][kind]
    if kind: return [(round(x*width, 2), round(y*height, 2)) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
    angles = np.linspace(0, 2*np.pi, 12, endpoint=False)
    return [(round(float((x0 + x1)/2*width + (x1 - x0)/2*width*np.cos(a)), 2), round(float((y0 + y1)/2*height + (y1 - y0)/2*height*np.sin(a)), 2)) for a in angles]


def draw(width, height, number):
    "A picture of an ellipse and a rectangle on a gradient with some grain."
    rng = np.random.default_rng(number)
    slope = np.linspace(150, 230, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
    picture = Image.fromarray((slope + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8))
    for kind in (0, 1): ImageDraw.Draw(picture).polygon(points(kind, width, height), fill=tuple(int(v) for v in rng.integers(0, 255, 3)))
    return picture


def runs(mask):
    "Uncompressed run lengths, column by column, beginning with the zeros: how COCO writes a crowd."
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [0]])
    lengths = np.diff([0, *np.flatnonzero(np.diff(flat)), mask.size]).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def image_row(i, split):
    width, height = SIZES[i % len(SIZES)]
    number = 9 + 16*i + (139 if split == 'val2017' else 0)
    return dict(license=[1, 4][i % 2], file_name=f'{number:012d}.jpg', coco_url=f'{HOST}/{split}/{number:012d}.jpg', height=height, width=width,
                date_captured='2013-11-14 17:02:52', flickr_url=f'http://farm1.staticflickr.com/1/{number}_z.jpg', id=number)


def captions(first, second):
    return [f'A {first} next to a {second} in front of a grey wall.', f'There is a {first} here.', f'the {second} is to the right of the {first} ',
            'Two things in a room.', f'A picture of a {first} and a {second}.']


def instances(i, image, next_id):
    "The left object as a polygon, the right one as a polygon or, in every third image, as a crowd."
    for kind, name in enumerate(PAIRS[i % len(PAIRS)]):
        corners = points(kind, image['width'], image['height'])
        polygon = [[v for xy in corners for v in xy]]
        mask = load_mask(polygon, (image['height'], image['width'])).numpy()
        xs, ys = zip(*corners)
        crowd = int(kind == 1 and i % 3 == 0)
        yield dict(segmentation=dict(counts=runs(mask), size=[image['height'], image['width']]) if crowd else polygon, area=float(mask.sum()), iscrowd=crowd,
                   image_id=image['id'], bbox=[min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)], category_id=CATEGORY_IDS[name], id=next_id + kind)


def write_split(folder, split, n):
    "Images and annotation files of one split."
    images = [image_row(i, split) for i in range(n)]
    (folder/split).mkdir(parents=True, exist_ok=True)
    for image in images: draw(image['width'], image['height'], image['id']).save(folder/split/image['file_name'], quality=90)
    head = dict(info=dict(description='COCO 2017 Dataset', url='http://cocodataset.org', version='1.0', year=2017, contributor='COCO Consortium', date_created='2017/09/01'), licenses=LICENCES, images=images)
    texts = [dict(image_id=image['id'], id=1000 + 5*i + k, caption=text) for i, image in enumerate(images) for k, text in enumerate(captions(*PAIRS[i % len(PAIRS)]))]
    things = [thing for i, image in enumerate(images) for thing in instances(i, image, 500 + 2*i)]
    write_json(folder/'annotations'/f'captions_{split}.json', head | dict(annotations=texts))
    write_json(folder/'annotations'/f'instances_{split}.json', head | dict(annotations=things, categories=[dict(supercategory='thing', id=i, name=name) for name, i in CATEGORY_IDS.items()]))
    return images


def statement(i, split, image):
    first, second = PAIRS[i % len(PAIRS)]
    return dict(image=image['file_name'], image_link=f'{HOST}/{split}/{image["file_name"]}', caption=f'The {first} is left of the {second}.', label=1, relation='left of',
                annotator_id=31, vote_true_validator_id='[2, 6]', vote_false_validator_id='[]', reference_frame=None)


def authors_row(i, image):
    first, second = PAIRS[i % len(PAIRS)]
    masks = [load_mask([[v for xy in points(kind, image['width'], image['height']) for v in xy]], (image['height'], image['width'])) for kind in (0, 1)]
    return dict(file_name=image['file_name'], text=captions(first, second)[0], nouns=[(first, masks[0]), (second, masks[1]), ('front', None), ('wall', None)])


def write_coco_like(folder, n=6, val=3, extra=2):
    "Write everything; `extra` more training images are in the annotations and on the server but in no list."
    folder = Path(folder)
    train, held_out = write_split(folder, 'train2017', n + extra), write_split(folder, 'val2017', val)
    lists = dict(train=[(i, 'train2017', train[i]) for i in (*range(n), 0)] + [(0, 'val2017', held_out[0])], dev=[(1, 'train2017', train[1])], test=[(2, 'train2017', train[2])])
    for name, rows in lists.items(): write_jsonl(folder/'vsr'/f'{name}.jsonl', [statement(*row) for row in rows])
    write_dataset(folder/'authors', [authors_row(i, image) for i, image in enumerate(train[:n])])
    write_prompt_lists(folder)
    pack(folder)
    return folder


def write_flickr_like(folder, n=2):
    """Flickr30K Entities and its photos as they are published: flickr30k-images/, Sentences/, Annotations/, val.txt.

    Of every sentence, the first two phrases have a box, the third is the whole scene; the last picture has no box at all.
    """
    folder, names = Path(folder), [1007129816 + i for i in range(n)]
    for part in ('flickr30k-images', 'Sentences', 'Annotations'): (folder/part).mkdir(parents=True, exist_ok=True)
    (folder/'val.txt').write_text(''.join(f'{name}\n' for name in names))
    for i, name in enumerate(names):
        (width, height), (first, second), things = SIZES[i % len(SIZES)], PAIRS[i % len(PAIRS)], ''
        draw(width, height, name).save(folder/'flickr30k-images'/f'{name}.jpg', quality=90)
        (folder/'Sentences'/f'{name}.txt').write_text(f'[/EN#7/animals A {first}] near [/EN#8/other a {second}] in front of [/EN#9/scene a grey wall] .\n'*5)
        for chain, kind in ((7, 0), (8, 1)):
            xs, ys = zip(*((int(x), int(y)) for x, y in points(kind, width, height)))
            box = f'<bndbox><xmin>{min(xs)}</xmin><ymin>{min(ys)}</ymin><xmax>{max(xs)}</xmax><ymax>{max(ys)}</ymax></bndbox>'
            things += f'<object><name>{chain}</name>{box if i < n - 1 else "<scene>0</scene><nobndbox>1</nobndbox>"}</object>'
        (folder/'Annotations'/f'{name}.xml').write_text(f'<annotation><filename>{name}.jpg</filename><size><width>{width}</width><height>{height}</height><depth>3</depth></size>{things}<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>')
    return folder


COMPBENCH = dict(
    color='a {0} cat and a {1} car', shape='a round {0} cat and a square {1} car', texture='a metallic {0} cup and a wooden {1} clock',
    spatial='a cat on the left of a {0} car', non_spatial='A {0} cat is looking at a {1} car.', complex='The {0} cat was on top of the {1} car.')
COLOR_PAIRS = [('red', 'blue'), ('green', 'yellow'), ('brown', 'white'), ('black', 'pink')]


def write_prompt_lists(folder, n=3):
    "The n prompts of each category and task; of the complex ones one is about space, one about an action, the others about both."
    folder = Path(folder)
    for name, text in COMPBENCH.items(): write_lines(folder/'compbench'/f'{name}_val.txt', [text.format(*COLOR_PAIRS[i]) for i in range(n)])
    for i, kind in enumerate(('spatial', 'action')): write_lines(folder/'compbench'/f'complex_val_{kind}.txt', [COMPBENCH['complex'].format(*COLOR_PAIRS[i])])
    write_jsonl(folder/'geneval'/'evaluation_metadata.jsonl', [geneval_row(task, i) for task in GENEVAL for i in range(n)])
    for name, classes in zip(MULTIGEN_SHA256, (COCO_80, ADE20K_100)): save_prompts(folder/'multigen'/name, draw_prompts(list(classes), n, seed=n))
    return folder


def accept_multigen(monkeypatch, folder):
    "Let the invented prompts of MultiGen in a folder be the published ones."
    for name in MULTIGEN_SHA256: monkeypatch.setitem(MULTIGEN_SHA256, name, file_sha256(Path(folder)/'multigen'/name))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines))


GENEVAL = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')


def geneval_row(task, i):
    "A row as the published file has them; JSON turns the tuple into a list."
    (first, second), (color, other) = PAIRS[i], COLOR_PAIRS[i]
    def clause(name, **more): return dict({'class': name, 'count': 1}, **more)
    include = dict(single_object=[clause(first)], two_object=[clause(first), clause(second)], counting=[clause(first, count=2)], colors=[clause(first, color=color)],
                   position=[clause(second), clause(first, position=('left of', 0))], color_attr=[clause(first, color=color), clause(second, color=other)])[task]
    more = dict(exclude=[clause(first, count=3)]) if task == 'counting' else {}
    return dict(tag=task, include=include, **more, prompt=f'a photo of a {first}, {task}, {i}')


def pack(folder, **others):
    "annotations_trainval2017.zip, as COCO packs it."
    with zipfile.ZipFile(folder/'annotations'/'annotations_trainval2017.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder/'annotations').glob('*.json')): archive.write(path, f'annotations/{path.name}')
        archive.writestr('annotations/person_keypoints_val2017.json', json.dumps(dict(images=[], annotations=[])))
        for name, text in others.items(): archive.writestr(name, text)


class FileServer:
    """A folder at `server.url`, with the misfortunes of real servers on request.

    `server.trouble[path]` is a list of what happens to the next requests for a path: a number is an HTTP status, ('cut', n) closes the
    connection after n bytes, ('hang', n) sends n bytes and then nothing until the client goes away, 'wrong range' answers a wish for a range
    with all bytes called a part, bytes are sent instead of the file. `server.headers[status]` are more headers for a status.
    `server.requests` lists (path, Range header or None) of every request, `server.encodings` its Accept-Encoding.
    """
    def __init__(self, folder, ranges=True, tags=True):
        self.folder, self.ranges, self.tags = Path(folder), ranges, tags
        self.trouble, self.requests, self.encodings, self.headers, self.hanging, self.closing = {}, [], [], {}, threading.Event(), threading.Event()

    def __enter__(self):
        self.http = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (Handler,), dict(server_of=self)))
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_port}'
        threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize = -1

    def log_message(self, *_): pass

    def do_GET(self):
        server, path = self.server_of, self.path.lstrip('/')
        server.requests.append((path, self.headers.get('Range')))
        server.encodings.append(self.headers.get('Accept-Encoding'))
        misfortunes = server.trouble.get(path)
        trouble = misfortunes.pop(0) if misfortunes else None
        if isinstance(trouble, int): return self.answer(trouble, b'sorry', server.headers.get(trouble, {}))
        if not (server.folder/path).is_file(): return self.answer(404, b'not here')
        body = trouble if isinstance(trouble, bytes) else (server.folder/path).read_bytes()
        tag = f'"{zlib.crc32(body):08x}"'
        start = 0 if trouble == 'wrong range' else self.wanted(body, tag)
        if start is not None and start >= len(body): return self.answer(416, b'', {'Content-Range': f'bytes */{len(body)}'})
        headers = ({'ETag': tag} if server.tags else {}) | ({} if start is None else {'Content-Range': f'bytes {start}-{len(body) - 1}/{len(body)}'})
        limit = trouble[1] if isinstance(trouble, tuple) else None
        self.answer(200 if start is None else 206, body[start or 0:], headers, limit)
        if limit is not None:
            if trouble[0] == 'hang': server.hanging.set(); server.closing.wait(60)
            self.close_connection = True

    def wanted(self, body, tag):
        "First byte that is asked for, if ranges are served and the file is still the one the client means."
        asked, only_if = self.headers.get('Range'), self.headers.get('If-Range')
        if not asked or not self.server_of.ranges or only_if not in (None, tag): return None
        return int(asked.removeprefix('bytes=').split('-')[0])

    def answer(self, status, body, headers={}, limit=None):
        self.send_response(status)
        for name, value in (headers | {'Content-Length': str(len(body))}).items(): self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:limit])
        self.wfile.flush()
