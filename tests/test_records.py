"The committed records of a run make its committed table again."
import re

import papermill as pm
import pytest
from conftest import ROOT

from tokencompose.core import read_json

RECORDS = ROOT/'paper_figures/records'
WHOLE = [('mini', 'table2'), ('mini_v', 'table3'), ('mini', 'table4')]  # profile and a table that its records hold wholly


def numbers(text): return re.findall(r'-?\d+\.\d+', text)


def agree(a, b):
    "Two printed numbers, up to one in the last digit: another processor may round the other way."
    digits = len(b.split('.')[1])
    return len(a.split('.')[1]) == digits and abs(float(a) - float(b)) < 1.5*10**-digits


def styled_cells(notebook):
    "The cells of the table beside the paper's numbers, which alone is styled, in an executed notebook."
    shown = (''.join(o['data']['text/html']) for cell in notebook['cells'] if cell['cell_type'] == 'code' for o in cell['outputs'] if 'text/html' in o.get('data', {}))
    return re.findall(r'<td[^>]*>(.*?)</td>', next(html for html in shown if '<table id="T_' in html))


@pytest.mark.parametrize('profile,table', WHOLE)
def test_records_make_the_committed_table(profile, table, tmp_path):
    pm.execute_notebook(ROOT/f'paper_figures/{table}.ipynb', tmp_path/'again.ipynb', dict(profile=profile, runs='paper_figures/records', out_dir=str(tmp_path)), cwd=ROOT, progress_bar=False)
    again, committed = (styled_cells(read_json(path)) for path in (tmp_path/'again.ipynb', ROOT/f'paper_figures/executed/{table}.ipynb'))
    assert len(again) == len(committed) and not any('not run' in cell for cell in committed)
    pairs = [pair for cells in zip(again, committed) for pair in zip(*map(numbers, cells), strict=True)]
    assert len(pairs) > 50 and not [pair for pair in pairs if not agree(*pair)]


def test_records_are_small_and_name_no_machine():
    files = [path for path in RECORDS.rglob('*') if path.is_file()]
    assert files
    for path in files:
        assert path.stat().st_size < 250_000, path
    for path in [*files, *(ROOT/'tokencompose/zoo').rglob('config.json')]:
        if path.suffix == '.json': assert not re.search(r'"/(?!/)', path.read_text()), f'{path} names a place on somebody\'s machine'
