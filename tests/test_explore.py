"""The page in a real browser: JupyterLab on this machine, a prompt typed, pictures and maps seen, mistakes said. And what it is made of, without one."""
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
import torch
from browser import Browser, CHROMIUM
from conftest import ROOT
from PIL import Image

from tokencompose.data.masks import save_mask
from tokencompose.data.world import draw_scene, enumerate_words, Mixture, render
from tokencompose.explore.drawing import draw_watched, layer_choices, words_in
from tokencompose.explore.page import data_uri, judged_html, lit, Models, Page, row_html, sentence, trained_folders
from tokencompose.models import loud_pipeline, tiny_pipeline
from tokencompose.plotting import to_uint8
from tokencompose.profiles import get_profile
from tokencompose.rivals.rivals import RIVALS
from tokencompose.sampling import Recipe, sample

PROMPT = 'a photo of a cat, a dog and a teddy bear.'
RECIPE = Recipe(seed=1, inference_steps=4, guidance_scale=4.)


@pytest.fixture(scope='module')
def pipe(): return loud_pipeline([PROMPT]*3)


@pytest.fixture(scope='module')
def words(pipe): return words_in(PROMPT, pipe.tokenizer, named=['cat', 'dog', 'teddy bear'])


# ---- watching changes nothing

@pytest.mark.parametrize('method', ['frozen', *RIVALS])
def test_a_watched_picture_is_the_picture(pipe, words, method):
    from tokencompose.rivals.inputs import make_inputs
    from tokencompose.rivals.rivals import new_rival
    call = None
    if method != 'frozen': call = new_rival(method, pipe, {PROMPT: make_inputs(PROMPT, [w.noun for w in words], pipe.tokenizer, 'explore', 1)})
    plain = sample(pipe, [dict(unique_id='explore', text=PROMPT)], call=call, **RECIPE.to_dict())[0, 0]
    drawing = draw_watched(pipe, PROMPT, words, method, RECIPE)
    assert (drawing.picture() - plain).abs().max() < (.1 if method == 'attend_excite' else 1e-3)  # whose gradients make rounding larger, step by step
    assert len(drawing.steps) == 4 and list(drawing.maps()) == ['cat', 'dog', 'teddy bear']
    for group, own in drawing.steps[1].maps['cat'].items():
        assert own.shape == (int(group.split('_')[1]),)*2 and 0 <= own.min() and own.max() <= 1


@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
def test_the_expected_picture_sharpens_towards_the_last_one(kind):
    pipe = tiny_pipeline([PROMPT]*3, prediction_type=kind)
    drawing = draw_watched(pipe, PROMPT, words_in(PROMPT, pipe.tokenizer, named=['cat']), recipe=Recipe(inference_steps=12))
    away = [(step.latents - drawing.steps[-1].latents).abs().mean().item() for step in drawing.steps]
    assert away[-2] < away[5] < away[0]


def test_a_map_is_the_mean_over_layers(pipe, words):
    drawing = draw_watched(pipe, PROMPT, words, recipe=RECIPE)
    own = drawing.steps[-1].maps['cat']
    assert torch.equal(drawing.maps(-1, ['up_16'])['cat'], own['up_16'])
    both = (drawing.groups['up_16']*own['up_16'] + drawing.groups['down_16']*own['down_16'])/(drawing.groups['up_16'] + drawing.groups['down_16'])
    torch.testing.assert_close(drawing.maps(-1, ['up_16', 'down_16'])['cat'], both)
    assert set(layer_choices(list(drawing.groups))['middle and up (supervised in the paper)']) == {'mid_4', 'up_8', 'up_16'}


# ---- HTML

def test_nothing_that_is_typed_becomes_html(pipe):
    prompt = '<script>a cat</script>'
    found = words_in(prompt, pipe.tokenizer, named=['cat'])
    assert '<script' not in lit(prompt, found) and '<mark' in lit(prompt, found)
    drawing = draw_watched(pipe, prompt, found, recipe=RECIPE)
    assert '<script' not in row_html('<script>', drawing) and '<script' not in judged_html('<script>', to_uint8(drawing.picture()), {'<script>': None})


def test_small_pictures_are_png_and_large_ones_jpeg():
    assert data_uri(to_uint8(Image.new('RGB', (64, 64)))).startswith('data:image/png') and data_uri(to_uint8(Image.new('RGB', (512, 512)))).startswith('data:image/jpeg')


# ---- the page without a browser

@pytest.fixture
def page(tmp_path, pipe):
    pipe.save_pretrained(tmp_path/'sd')
    page = Page('mini', PROMPT, words='cat, dog', model=str(tmp_path/'sd'), trained=str(tmp_path/'sd'), device='cpu', inference_steps=2)
    page.ready = True
    yield page
    page.close()


def told(page, **values):
    for name, value in values.items(): getattr(page, name).value = value
    if begun := page.start(): begun.result(60)
    return page.said.value


def test_two_rows_from_the_same_noise(page):
    assert '2 of 2 drawn' in told(page)
    assert page.pictures.value.count('<img') == 6 and page.step.max == 2
    frozen, trained = (drawing.picture() for drawing in page.drawings.values())
    assert torch.equal(frozen, trained)
    assert page.layers.label == 'middle and up (supervised in the paper)'
    before = page.pictures.value
    page.layers.value = dict(page.layers.options)['up 16']
    page.step.value = 2
    assert page.pictures.value != before and page.pictures.value.count('step 2') == 4


@pytest.mark.parametrize('changes, said', [
    (dict(prompt=' '), 'The prompt is empty'), (dict(prompt='cat '*99), 'make it shorter'), (dict(words='zebra'), 'not in the caption'),
    (dict(model='nbs'), 'holds no pipeline'), (dict(model='nowhere/at-all'), 'hf download'), (dict(model=''), 'No model is named'),
    (dict(trained='README.md'), 'is one file'), (dict(trained=''), 'No trained model was found')])
def test_a_mistake_is_a_sentence_and_it_goes_on(page, changes, said):
    before = {name: getattr(page, name).value for name in changes}
    assert told(page, **changes).count(said) == 1
    assert '2 of 2 drawn' in told(page, **before)


def test_stop_stops(page):
    page.steps.value = 500
    begun = page.start()
    while not page.drawings:
        assert not begun.done(), page.said.value
        time.sleep(.01)
    page.halt()
    begun.result(60)
    assert 'Stopped.' in page.said.value and page.stop.disabled
    assert '2 of 2 drawn' in told(page, steps=2)


def test_weights_that_were_trained_on_are_loaded_again(tmp_path):
    folder = tmp_path/'train'
    tiny_pipeline().save_pretrained(folder)
    models = Models(get_profile('mini'), 'cpu')
    first = models.pipeline(str(folder))
    assert models.pipeline(str(folder)) is first
    os.utime(folder/'unet'/'config.json', ns=(0, time.time_ns() + 10**9))
    assert models.pipeline(str(folder)) is not first


def test_the_newest_training_comes_first(tmp_path):
    for age, name in enumerate(('old', 'new')):
        file = tmp_path/'mini'/'train'/name/'pipeline'/'model_index.json'
        file.parent.mkdir(parents=True)
        file.write_text('{}')
        os.utime(file, (age, age))
    assert [folder.split('/')[-2] for folder in trained_folders(tmp_path)] == ['new', 'old']


def test_an_unforeseen_error_names_its_kind(): assert sentence(KeyError('x')) == "KeyError: 'x'."


# ---- the page in JupyterLab

SHOTS = os.environ.get('SCREENSHOTS')  # a folder for pictures of the page, which then draws with more steps and trains longer
PICTURES, SIDE, UPDATES, STEPS = (20, 192, 100, 25) if SHOTS else (8, 64, 3, 6)
MODEL = os.environ.get('SCREENSHOTS_MODEL', 'tokencompose/zoo/sd')  # the trained model that the first picture of the page shows
SLOW = 300  # seconds that a busy machine may take for anything
PANEL = '[...window.jupyterapp.shell.widgets("main")].find(w => w.sessionContext)'
FIRST = 'a photo of a cat, a clock, a donut, and a pizza.'
PROMPT_FIELD = '.widget-text input'
NOUNS = '[...document.querySelectorAll(".tc-lit mark")].map(m => m.innerText).join()'


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    "A folder with captioned pictures of the world, and masks of two or more things each in another one; for screenshots below runs/, where no machine's path shows."
    place = ROOT/'runs' if SHOTS else tmp_path_factory.mktemp('mine')
    for n in range(PICTURES):
        scene = draw_scene((0, 'mine', n), Mixture((0., .8, .2), together=.4), SIDE)
        image, masks = render(scene)
        (place/'my_folder').mkdir(exist_ok=True)
        Image.fromarray(image).save(place/'my_folder'/f'{n}.png')
        (place/'my_folder'/f'{n}.txt').write_text(f'a photo of {enumerate_words([thing.phrase() for thing in scene.things])}.')
        for thing, mask in zip(scene.things, masks): save_mask(place/'my_masks'/str(n)/f'{thing.name}.png', torch.from_numpy(mask))
    yield place
    for name in ('my_folder', 'my_masks', 'explore'): shutil.rmtree(place/name, ignore_errors=True)


@pytest.fixture(scope='module')
def lab(mine, tmp_path_factory):
    "JupyterLab with a copy of the page whose first picture is quick; yields its address. The kernel is there before the page is."
    folder, notebook = tmp_path_factory.mktemp('lab'), nbformat.read(ROOT/'nbs/explore.ipynb', 4)
    place = next(i for i, cell in enumerate(notebook.cells) if 'parameters' in cell.metadata.get('tags', []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(f'prompt = {FIRST!r}; rows = ["frozen", "trained"]; trained = {MODEL!r}; device = "cpu"\n'
                                                               f'inference_steps = {STEPS}; out_dir = {str(mine/"explore")!r}'))
    nbformat.write(notebook, folder/'explore.ipynb')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    own = {f'JUPYTER_{kind}_DIR': str(folder/kind) for kind in ('CONFIG', 'DATA', 'RUNTIME')}
    settings = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--IdentityProvider.token=', '--ServerApp.disable_check_xsrf=True', f'--ServerApp.root_dir={folder}',
                '--LabApp.expose_app_in_browser=True', '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.extension_manager=readonly']
    with open(folder/'lab.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *settings], env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        last = time.monotonic() + SLOW
        while not _answers(f'http://127.0.0.1:{port}/api'):
            assert server.poll() is None and time.monotonic() < last, (folder/'lab.log').read_text()[-2000:]
            time.sleep(.1)
        session = dict(path='explore.ipynb', name='explore.ipynb', type='notebook', kernel=dict(name='python3'))
        _answers(urllib.request.Request(f'http://127.0.0.1:{port}/api/sessions', json.dumps(session).encode(), {'Content-Type': 'application/json'}), SLOW)
        yield f'http://127.0.0.1:{port}'
    finally:
        server.terminate()
        server.wait(60)


def _answers(url, seconds=5):
    try: return bool(urllib.request.urlopen(url, timeout=seconds).read())
    except OSError: return False


@pytest.fixture(scope='module')
def shown(lab):
    "A browser in which the page has drawn its first prompt."
    with Browser(1400, 1100) as browser:
        browser.open(f'{lab}/lab/tree/explore.ipynb?reset', SLOW, f'window.jupyterapp && {PANEL}?.sessionContext.kernelDisplayStatus == "idle"')
        browser.run(f'window.jupyterapp.shell.activateById({PANEL}.id); window.jupyterapp.commands.execute("application:toggle-left-area"); window.jupyterapp.commands.execute("notebook:run-all-cells"); 1')
        browser.wait(f'{NOUNS} == "cat,clock,donut,pizza"', SLOW)                                    # the nouns light up
        browser.wait('document.body.innerText.includes("2 of 2 drawn")', SLOW)
        yield browser


def called(browser, text):
    "A selector of the button of that name, the heading, or the field beside that label."
    found = ('[...document.querySelectorAll("button, .widget-label, .jupyter-widget-Collapse-header")].reverse().find(e => e.innerText.trim() == %s)' % json.dumps(text))
    browser.wait(f'(e => {{ if (!e) return false; if (e.matches(".widget-label")) e = e.parentElement.querySelector("input, textarea"); e.dataset.called = {json.dumps(text)}; return true }})({found})', 60)
    return f'[data-called="{text}"]'


def shot(browser, name, top):
    "A picture that begins at an element, small enough to be kept, where somebody wants to look at them."
    if not SHOTS: return
    browser.run(f'document.querySelectorAll(".Toastify").forEach(e => e.remove()); document.querySelector({json.dumps(top)}).scrollIntoView()')
    time.sleep(1)
    browser.screenshot(f'{SHOTS}/{name}.png')
    left, top, right, bottom = browser.run('((view, page) => [page.left - 8, view.top, page.right + 8, Math.min(view.bottom, page.bottom + 8)])('
                                           'document.querySelector(".jp-WindowedPanel-outer").getBoundingClientRect(), '
                                           'document.querySelector(".tc-lit").closest(".jp-OutputArea-output").getBoundingClientRect())')
    picture = Image.open(f'{SHOTS}/{name}.png').convert('RGB').crop((left, top, right, bottom))
    picture.thumbnail((1100, 1100), Image.LANCZOS)
    picture.save(f'{SHOTS}/{name}.webp', quality=60, method=6)


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='no Chromium on this machine: apt-get install chromium')


@needs_chromium
def test_the_page_in_jupyterlab(shown):
    browser = shown
    assert browser.run('document.querySelectorAll(".tc-row img").length') == 10                  # two pictures, four maps each
    assert browser.run('[...document.querySelectorAll(".tc-row img")].every(i => i.complete && i.naturalWidth > 3)')
    assert browser.run('document.querySelectorAll(".tc-row svg rect").length') > 0               # the judge's boxes
    assert browser.run('(layers => [layers.selectedIndex, layers.value])(document.querySelector(".widget-dropdown select"))') == [0, 'middle and up (supervised in the paper)']
    assert browser.run('(r => 0 < r.bottom && r.top < innerHeight)(document.querySelector(".tc-lit").getBoundingClientRect())'), 'after Run All the page is out of sight'
    shot(browser, 'explore', PROMPT_FIELD)

    browser.type(PROMPT_FIELD, 'a photo of a banana and a car.', enter=True)
    browser.wait(f'{NOUNS} == "banana,car"', SLOW)
    browser.wait('document.querySelectorAll(".tc-row img").length == 6 && document.body.innerText.includes("2 of 2 drawn")', SLOW)
    drawn = browser.run('[...document.querySelectorAll(".tc-row img")].map(i => i.alt)')
    assert drawn.count('attention of banana') == 2 and drawn[0] == f'frozen base model, step {STEPS}'

    before = browser.run('document.querySelector(".tc-row img").src')                            # another step, nothing drawn
    browser.run('document.querySelector(".widget-slider .noUi-handle").focus(); 1')
    for _ in range(3): browser.press('ArrowLeft')
    browser.wait(f'document.querySelector(".tc-row img").src != {json.dumps(before)}', SLOW)

    for typed, said in (('', 'The prompt is empty'), ('cat '*60, 'make it shorter'), ('a zebra', 'spells')):
        browser.type(PROMPT_FIELD, typed)
        browser.wait(f'document.querySelector(".tc-wrong")?.innerText.includes({json.dumps(said)})', SLOW)
    browser.type(PROMPT_FIELD, 'a photo of a cat.')
    browser.click(called(browser, 'words, models, numbers'))
    for model, said in (('nbs', ('holds no pipeline', '1 of 2 drawn')), ('tokencompose/zoo/sd', ('2 of 2 drawn',))):  # and it goes on
        browser.type(called(browser, 'frozen'), model)
        time.sleep(.5)                                                                               # what was typed is held back while the kernel is busy, a click is not
        browser.wait(f'{PANEL}.sessionContext.kernelDisplayStatus == "idle"', SLOW)
        browser.click(called(browser, 'Draw'))
        browser.wait(f'{json.dumps(said)}.every(said => document.querySelector(".tc-say").parentElement.innerText.includes(said))', SLOW)
    browser.wait('document.querySelectorAll(".tc-row img").length == 4', SLOW)
    browser.click(called(browser, 'words, models, numbers'))


@needs_chromium
def test_own_pictures_in_jupyterlab(shown, mine):
    browser, typed = shown, str(mine.relative_to(ROOT)) if mine.is_relative_to(ROOT) else str(mine)
    browser.type(PROMPT_FIELD, FIRST)
    browser.click(called(browser, 'your own pictures: look, train'))
    for folder, said in (('', 'No folder is named'), (f'{typed}/nowhere', 'There is no folder of images')):
        browser.type(called(browser, 'pictures'), folder)
        browser.click(called(browser, 'Look'))
        browser.wait(f'document.body.innerText.includes({json.dumps(said)})', SLOW)
    for name, value in (('pictures', f'{typed}/my_folder'), ('masks', f'{typed}/my_masks'), ('updates', UPDATES), ('LoRA rank', 0 if SHOTS else 2)):
        browser.type(called(browser, name), str(value))
    browser.click(called(browser, 'Look'))
    nouns = len(list((mine/'my_masks').rglob('*.png')))
    browser.wait(f'document.body.innerText.includes("{PICTURES} pictures to train on; {nouns} of {nouns} nouns have a mask")', SLOW)
    assert browser.run('document.querySelector(".tc-own img").naturalWidth') > 400
    shot(browser, 'look', '[data-called="your own pictures: look, train"]')
    browser.click(called(browser, 'Train'))
    browser.wait('document.querySelectorAll(".tc-previews img").length > 0', SLOW)                # while it runs
    browser.wait('document.body.innerText.includes("Trained: ") && document.body.innerText.includes("2 of 2 drawn")', SLOW)
    assert [browser.run(f'document.body.innerText.includes("{said}")') for said in ('Losses', 'attention on the object', 'From the same noise each time')] == [True]*3
    assert browser.run('[...document.querySelectorAll(".tc-own img")].every(i => i.complete && i.naturalWidth > 60)')
    shot(browser, 'train', '[data-called=Train]')
    assert (mine/'explore'/'train'/'my_folder'/'report.html').is_file() and not list((mine/'my_folder').glob('*.json*'))
    browser.wait('document.querySelectorAll(".tc-row img").length == 10', SLOW)                   # the trained model beside the frozen one
    first, second = browser.run('[...document.querySelectorAll(".tc-row img")].filter(i => i.alt.includes("step")).map(i => i.src)')
    assert first != second


@needs_chromium
def test_a_stopped_kernel_is_seen_in_jupyterlab(shown, lab):
    browser = shown
    assert browser.run('getComputedStyle(document.querySelector(".tc-alive")).visibility') == 'hidden'
    kernel = browser.run(f'{PANEL}.sessionContext.session.kernel.id')
    urllib.request.urlopen(urllib.request.Request(f'{lab}/api/kernels/{kernel}', method='DELETE'))
    browser.run('document.head.insertAdjacentHTML("beforeend", "<style>.tc-alive {animation-delay: 6s !important}</style>"), 1')
    browser.wait('getComputedStyle(document.querySelector(".tc-alive")).visibility == "visible"', SLOW)
    assert 'Run All Cells' in browser.run('document.querySelector(".tc-alive").innerText')
    assert not browser.errors, browser.errors
    assert not [url for url in browser.requests if not url.startswith((lab, 'data:', 'blob:', lab.replace('http', 'ws')))], 'a request left the machine'
