"""Every notebook that papermill runs, run by papermill with toy values. Each new one gets an entry in TOY and in RESULTS."""
import functools

import papermill as pm
import pytest
from conftest import ROOT

from tokencompose.data.world import write_world

# Parameters; "{name}" stands for a folder that INPUTS makes, and out_dir is always a new temporary folder.
TOY = {
    'data_prep/00_scenes.ipynb': dict(profile='mini', train_images=6, val_images=2),
    'data_prep/04_build_dataset.ipynb': dict(profile='mini', source='{scenes}', max_rows=5),
}
# Files below out_dir that must be there afterwards, not empty.
RESULTS = {
    'data_prep/00_scenes.ipynb': ['provenance.json', 'scenes.png', 'annotations/captions_train2017.json', 'annotations/instances_val2017.json', 'vsr/train.jsonl'],
    'data_prep/04_build_dataset.ipynb': ['provenance.json', 'samples.png', 'metadata.jsonl'],
}
# What a notebook needs from the steps before it: a function that fills a folder.
INPUTS = {
    'scenes': functools.partial(write_world, train=8, val=3),
}


class Inputs(dict):
    "Folders by name, made on first use."
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, name):
        INPUTS[name](self.folder/name)
        self[name] = self.folder/name
        return self[name]


@pytest.fixture(scope='session')
def inputs(tmp_path_factory):
    return Inputs(tmp_path_factory.mktemp('inputs'))


@pytest.mark.parametrize('name', TOY)
def test_toy_run(name, tmp_path, inputs):
    params = {key: value.format_map(inputs) if isinstance(value, str) else value for key, value in TOY[name].items()} | dict(out_dir=str(tmp_path/'out'))
    unknown = set(params) - set(pm.inspect_notebook(str(ROOT/name)))
    assert not unknown, f'{name} has no parameter {sorted(unknown)}'
    pm.execute_notebook(str(ROOT/name), str(tmp_path/'executed.ipynb'), params, cwd=str(ROOT), progress_bar=False, execution_timeout=300)
    for file in RESULTS[name]:
        path = tmp_path/'out'/file
        assert path.is_file() and path.stat().st_size > 0, f'{name} did not write {file}'
