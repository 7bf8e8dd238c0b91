"""What a person gets wrong when calling a papermill notebook, and the one sentence that answers it."""
import json
import re

import papermill as pm
import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output
from papermill.engines import Engine, papermill_engines
from PIL import Image
from traitlets.config import Config

from tokencompose.core import read_json, write_json
from tokencompose.data.world_files import write_world


class HereEngine(Engine):
    "Runs the cells in an IPython shell of this process: papermill as always, without a kernel to start for each case."
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        shell = InteractiveShell(config=Config(HistoryManager=dict(hist_file=':memory:')))
        for index, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != 'code': continue
            nb_man.cell_start(cell, index)
            done = shell.run_cell(cell.source, store_history=True)
            done.raise_error()
            shown = shell.display_formatter.format(done.result, include={'text/html'})[0] if done.result is not None else {}
            if shown: cell.outputs = [new_output('execute_result', shown)]
            nb_man.cell_complete(cell, cell_index=index)


papermill_engines.register('here', HereEngine)
SCENES, BUILD = 'data_prep/00_scenes.ipynb', 'data_prep/04_build_dataset.ipynb'
SMALL = dict(train_images=3, val_images=1)


def run(name, tmp_path, engine='here', **params):
    params = dict(out_dir=str(tmp_path/'out')) | (dict(masks='exact') if name == BUILD else {}) | params
    return pm.execute_notebook(str(ROOT/name), str(tmp_path/'executed.ipynb'), params, cwd=str(ROOT), progress_bar=False, engine_name=engine)


@pytest.fixture
def scenes(tmp_path):
    write_world(tmp_path/'scenes', train=3, val=1)
    return tmp_path/'scenes'


def rewrite(path, **changes):
    write_json(path, read_json(path) | changes)


# ---- parameters

def test_an_unknown_parameter_stops_a_real_kernel(tmp_path):
    with pytest.raises(pm.PapermillExecutionError, match="Unknown parameter 'spilt', did you mean 'split'"):
        run(BUILD, tmp_path, engine=None, spilt='val')
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('name', [SCENES, BUILD])
@pytest.mark.parametrize('params, error, sentence', [
    (dict(profil='quick'), ValueError, "Unknown parameter 'profil', did you mean 'profile'"),
    (dict(profile='midi'), ValueError, "Unknown profile 'midi': choose mini, quick, mini_v, sd14, sd21."),
    (dict(profile=1), TypeError, 'Parameter profile: expected str, got 1 '),
    (dict(seed='3'), TypeError, "Parameter seed: expected int, got '3'."),
    (dict(seed=True), TypeError, 'Parameter seed: expected int, got True.'),
    (dict(out_dir=None), TypeError, 'Parameter out_dir: expected str, got None')])
def test_parameters(name, params, error, sentence, tmp_path):
    with pytest.raises(error, match=re.escape(sentence)): run(name, tmp_path, **params)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('params, error, sentence', [
    (dict(crowds='false'), TypeError, "Parameter crowds: expected bool, got 'false' (papermill takes -p crowds True or False)."),
    (dict(split='test'), ValueError, "Parameter split: 'test' is not one of train, val."),
    (dict(caption_rule='best'), ValueError, "Parameter caption_rule: 'best' is not one of most, first, random.")])
def test_parameters_of_the_build(params, error, sentence, tmp_path):
    with pytest.raises(error, match=re.escape(sentence)): run(BUILD, tmp_path, **params)


def test_every_declared_parameter_passes_the_check(tmp_path, scenes):
    "What papermill says the parameters are can all be passed, with their own values."
    known = pm.inspect_notebook(str(ROOT/BUILD))
    run(BUILD, tmp_path, **{name: eval(p['default']) for name, p in known.items()} | dict(masks='exact', source=str(scenes), out_dir=str(tmp_path/'out')))
    assert (tmp_path/'out'/'metadata.jsonl').is_file()


# ---- folders that are not what the step needs

def test_scenes_keep_out_of_foreign_folders(tmp_path):
    "Real annotations must never be overwritten by drawn ones."
    mine = tmp_path/'out'/'annotations'/'captions_train2017.json'
    write_json(mine, dict(images=[]))
    with pytest.raises(ValueError, match='holds files of another origin'): run(SCENES, tmp_path, **SMALL)
    assert read_json(mine) == dict(images=[])


def test_scenes_of_another_seed_are_not_mixed(tmp_path):
    run(SCENES, tmp_path, **SMALL)
    with pytest.raises(ValueError, match='made with other settings .seed: 0 there, 1 now.: delete the folder'): run(SCENES, tmp_path, seed=1, **SMALL)
    run(SCENES, tmp_path, **SMALL)


@pytest.mark.parametrize('profile', ['sd14', 'sd21'])
def test_no_scenes_are_drawn_where_photos_belong(profile, tmp_path):
    with pytest.raises(ValueError, match=f'the data of {profile} are photos, which data_prep/00_fetch.ipynb makes: run that one, or choose mini or quick or mini_v here'): run(SCENES, tmp_path, profile=profile, **SMALL)
    assert not (tmp_path/'out').exists()


def test_no_scenes(tmp_path):
    with pytest.raises(ValueError, match='names no image of train2017'): run(SCENES, tmp_path, train_images=0, val_images=1)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='captions_train2017.json: draw the scenes with data_prep/00_scenes.ipynb'): run(BUILD, tmp_path, source=str(tmp_path/'nowhere'))


def test_missing_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match='masks.jsonl: run data_prep/03_segment.ipynb'): run(BUILD, tmp_path, masks='automatic', stage=str(tmp_path/'nowhere'))
    assert not (tmp_path/'out').exists()


def test_missing_pictures(tmp_path, scenes):
    (scenes/'train2017').rename(scenes/'elsewhere')
    with pytest.raises(FileNotFoundError, match='no folder of images .*train2017'): run(BUILD, tmp_path, source=str(scenes))


def test_missing_image_list(tmp_path, scenes):
    with pytest.raises(FileNotFoundError, match='no image list .*no.jsonl'): run(BUILD, tmp_path, source=str(scenes), image_list='no.jsonl')


@pytest.mark.parametrize('content, sentence', [(b'', 'cannot be read'), (b'\x89PNG\r\n\x1a\nrubbish', 'cannot be read'), (None, 'There is no image')])
def test_broken_picture(content, sentence, tmp_path, scenes):
    path = scenes/'train2017'/'000000000001.png'
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught: run(BUILD, tmp_path, source=str(scenes))
    assert path.name in str(caught.value) and not (tmp_path/'out'/'metadata.jsonl').exists()


def test_truncated_picture(tmp_path, scenes):
    path = scenes/'train2017'/'000000000001.png'
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match='000000000001.png cannot be read'): run(BUILD, tmp_path, source=str(scenes))


def test_picture_of_another_size(tmp_path, scenes):
    Image.new('RGB', (32, 64)).save(scenes/'train2017'/'000000000001.png')
    with pytest.raises(ValueError, match='32x64 pixels, its annotation says 64x64'): run(BUILD, tmp_path, source=str(scenes))


def test_broken_json(tmp_path, scenes):
    path = scenes/'annotations'/'instances_train2017.json'
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match='instances_train2017.json is not valid JSON'): run(BUILD, tmp_path, source=str(scenes))


def test_empty_data_set(tmp_path, scenes):
    rewrite(scenes/'annotations'/'captions_train2017.json', images=[], annotations=[])
    with pytest.raises(ValueError, match='holds no images: give a file'): run(BUILD, tmp_path, source=str(scenes))


def test_nothing_with_a_mask(tmp_path, scenes):
    rewrite(scenes/'annotations'/'instances_train2017.json', annotations=[])
    with pytest.raises(ValueError, match='None of the 3 images has a noun with a mask'): run(BUILD, tmp_path, source=str(scenes))


# ---- stopped and called again

def test_a_build_that_was_stopped_goes_on_to_the_same_result(tmp_path, scenes):
    path = scenes/'train2017'/'000000000002.png'
    picture = path.read_bytes()
    path.write_bytes(b'')
    with pytest.raises(ValueError): run(BUILD, tmp_path, source=str(scenes))
    path.write_bytes(picture)
    run(BUILD, tmp_path, source=str(scenes))
    run(BUILD, tmp_path, source=str(scenes), out_dir=str(tmp_path/'fresh'))
    one, other = ({p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob('*') if p.is_file() and p.name != 'provenance.json'} for f in (tmp_path/'out', tmp_path/'fresh'))
    assert one == other and len(one) > 4
    assert json.loads((tmp_path/'out'/'provenance.json').read_text())['counts']['rows'] == 3
