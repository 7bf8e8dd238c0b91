"""What the check of parameters accepts, converts and refuses."""
import subprocess
import sys

import pytest

from tokencompose.params import check_params, injected_names

CELL = 'steps: int = 24000\nlr: float = 5e-6\nresume: bool = True\nsplit: str = "train"\nlayers: list = [8, 16]'


def notebook(passed, cell=CELL):
    namespace = {'In': ['', cell, '# Parameters\n' + passed]}
    for source in namespace['In']: exec(source, namespace)
    return namespace


def test_defaults_are_kept():
    assert check_params(notebook('')) == dict(steps=24000, lr=5e-6, resume=True, split='train', layers=[8, 16])


def test_a_whole_number_becomes_a_float():
    assert type(check_params(notebook('lr = 1'))['lr']) is float


@pytest.mark.parametrize('passed, error, message', [
    ('stepps = 3', ValueError, "Unknown parameter 'stepps', did you mean 'steps'\\?"),
    ('zzz = 3', ValueError, 'this notebook has steps, lr, resume, split, layers'),
    ('steps = "3"', TypeError, "steps: expected int, got '3'"),
    ('steps = True', TypeError, 'steps: expected int, got True'),
    ('lr = "1"', TypeError, "lr: expected float, got '1'"),
    ('resume = "false"', TypeError, '-p resume True or False'),
    ('layers = 8', TypeError, "-y 'layers: \\[1, 2\\]'"),
    ('split = 3', TypeError, '-r split VALUE'),
])
def test_what_is_refused(passed, error, message):
    with pytest.raises(error, match=message): check_params(notebook(passed))


def test_a_dict_is_asked_for_as_papermill_takes_it():
    with pytest.raises(TypeError, match="-y 'scales: {key: 1}'"):
        check_params(notebook('scales = 3', 'scales: dict = {}'))


def test_choices():
    assert check_params(notebook('split = "val"'), split=('train', 'val'))['split'] == 'val'
    with pytest.raises(ValueError, match="'test' is not one of train, val"):
        check_params(notebook('split = "test"'), split=('train', 'val'))


def test_a_notebook_without_parameters_is_told_what_to_do():
    with pytest.raises(ValueError, match='declares no parameters'): check_params({'In': ['']})


def test_an_annotation_that_cannot_be_checked():
    with pytest.raises(TypeError, match='annotate it with one of'):
        check_params(notebook('', 'steps: "int | None" = 3'))


def test_only_papermills_cells_are_read():
    history = ['', 'x = 1', '# Parameters\na = b = 1\na, c = 1, 2\nd.e = 3\na = 4\n', '\n# Parameters\nf = 1']
    assert injected_names(history) == ['a', 'b', 'f']


def test_nothing_heavy_is_imported():
    code = 'import sys, tokencompose.params; print([m for m in ("torch", "numpy", "pandas") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
