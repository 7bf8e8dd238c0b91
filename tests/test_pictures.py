"Pictures inside notebooks: small files, as wide as a page, none without colours of its own."
import base64
import io
import json

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_hygiene import NOTEBOOKS

from tokencompose.core import read_json, write_json
from tokencompose.plotting import compact_notebook, compact_picture, image_grid, loss_curves

WIDEST = 880  # pixels that a code host shows without shrinking
LARGEST = 8*2**20  # bytes of all notebooks together


def pictures(name):
    "(kind, picture) of a notebook's outputs."
    for cell in read_json(ROOT/name)['cells']:
        for output in cell.get('outputs', []):
            found = {kind: ''.join(data) for kind, data in output.get('data', {}).items() if kind.startswith('image/')}
            assert len(found) < 2, 'a picture is stored once'
            for kind, data in found.items(): yield kind, Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_pictures_are_compact_and_fit_a_page(name):
    shown = list(pictures(name))
    assert not [picture for _, picture in shown if picture.mode == 'RGBA'], 'run tokencompose.plotting.compact_notebook on it'
    wide = [picture.size for _, picture in shown if picture.width > WIDEST]
    assert not wide, f'{wide}: letters are too small where the code host shrinks it'


def test_notebooks_are_small_together():
    assert sum((ROOT/name).stat().st_size for name in NOTEBOOKS) < LARGEST, 'show fewer or smaller pictures'


# ---- how a picture is stored

def png_of(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue()


@pytest.fixture(scope='module')
def curves(): return png_of(loss_curves([dict(step=s, **{f'loss {i}': np.sin(s*i) for i in range(6)}) for s in range(100)]))


@pytest.fixture(scope='module')
def scenes():
    "Soft colours, many of them, as in a picture of a scene."
    y, x = np.mgrid[0:1:96j, 0:1:96j]
    blend = np.stack([y, x, (1 + np.sin(9*x*y))/2], 2)
    return png_of(image_grid([[blend, blend[::-1], blend.transpose(1, 0, 2)]]))


def pixels(data): return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'), int)


def difference(a, b): return abs(pixels(a) - pixels(b))


def test_a_plot_gets_a_palette_that_nobody_sees(curves):
    kind, small = compact_picture(curves)
    assert kind == 'png' and Image.open(io.BytesIO(small)).mode == 'P' and len(small) < .6*len(curves)
    assert (difference(curves, small).max(2) > 16).mean() < .001


def test_a_picture_of_a_scene_never_gets_one(scenes):
    kind, small = compact_picture(scenes)
    assert kind == 'jpeg' and len(small) < .6*len(scenes) and difference(scenes, small).mean() < 3


def test_noise_stays_as_it_is_where_jpeg_is_no_smaller():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 40, 3), dtype=np.uint8)*np.uint8(90))
    buffer = io.BytesIO()
    picture.convert('RGBA').save(buffer, 'png')
    kind, small = compact_picture(buffer.getvalue())
    assert kind == 'png' and (pixels(small) == np.asarray(picture)).all()


def test_what_is_clear_becomes_white():
    buffer = io.BytesIO()
    Image.new('RGBA', (4, 4), (255, 0, 0, 0)).save(buffer, 'png')
    assert (pixels(compact_picture(buffer.getvalue())[1]) == 255).all()


def notebook(path, *outputs):
    cells = [dict(cell_type='markdown', metadata={}, source=['é']), dict(cell_type='code', metadata={}, source=['1'], outputs=list(outputs), execution_count=None)]
    write_json(path, dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
    return path


def test_a_notebook_is_rewritten_once(tmp_path, curves, scenes):
    texts = [dict(data={'image/png': base64.b64encode(data).decode() + '\n', 'text/plain': ['<Figure>']}, metadata={}, output_type='display_data') for data in (curves, scenes)]
    texts[1]['data']['image/jpeg'] = 'the same once more'
    path = notebook(tmp_path/'a.ipynb', *texts, dict(name='stdout', output_type='stream', text=['x']))
    before = path.stat().st_size
    assert compact_notebook(path) == before - path.stat().st_size > 0
    outputs = json.loads(path.read_text())['cells'][1]['outputs']
    assert [list(o.get('data', {})) for o in outputs] == [['image/png', 'text/plain'], ['image/jpeg', 'text/plain'], []]
    again = path.read_bytes()
    assert compact_notebook(path) == 0 and path.read_bytes() == again


def test_a_large_table_is_kept_once(tmp_path):
    tables = [dict(data={'text/html': ['<table>'], 'text/plain': [text]}, metadata={}, output_type='display_data') for text in ('few', 'many'*300)]
    write_json(tmp_path/'a.ipynb', dict(cells=[dict(cell_type='code', outputs=tables)]))
    compact_notebook(tmp_path/'a.ipynb')
    assert [list(o['data']) for o in read_json(tmp_path/'a.ipynb')['cells'][0]['outputs']] == [['text/html', 'text/plain'], ['text/html']]
