"""What reads records, counts and prints tables starts in a second: the libraries of models are not imported for it."""
import subprocess
import sys

import pytest
from conftest import ROOT

HEAVY = ('torch', 'torchvision', 'diffusers', 'transformers', 'datasets', 'accelerate', 'spacy', 'flair', 'sklearn', 'pycocotools')
FIGURES = ('matplotlib', 'seaborn', 'scipy')  # only for those who draw
LIGHT = ['core', 'params', 'data.classes', 'data.world', 'methods', 'profiles', 'stats', 'model_files', 'run_config', 'simulation',
         *(f'metrics.{name}' for name in ('multigen', 'visor', 'frechet', 'compbench', 'geneval', 'benchmarks')),
         *sorted(f'reporting.{path.stem}' for path in (ROOT/'tokencompose/reporting').glob('[!_]*.py') if path.stem != 'judged')]


def loaded(modules, libraries):
    "Which libraries a fresh process has imported after some modules of the package."
    names = ', '.join(f'tokencompose.{module}' for module in modules)
    code = f'import {names}, sys; print(*[name for name in {libraries!r} if name in sys.modules])'
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize('modules, libraries', [(LIGHT, HEAVY + FIGURES), (['plotting', 'reporting.judged'], HEAVY)], ids=['tables', 'figures'])
def test_tables_do_not_wait_for_models(modules, libraries):
    found = loaded(modules, libraries)
    if found: found = {module: loaded([module], libraries) for module in modules}  # says which module it is
    assert not found, found
