"The committed records of a run make its committed table again."
import re

import papermill as pm
import pytest
from conftest import ROOT

from tokencompose.core import read_json
from tokencompose.methods import METHODS, rows

RECORDS = ROOT/'paper_figures/records'
WHOLE = [('mini', 'table2'), ('mini_v', 'table3'), ('mini', 'table4')]  # profile and a table that its records hold wholly


def numbers(text): return re.findall(r'-?\d+\.\d+', text)


def agree(a, b):
    "Two printed numbers, up to one in the last digit: another processor may round the other way."
    digits = len(b.split('.')[1])
    return len(a.split('.')[1]) == digits and abs(float(a) - float(b)) < 1.5*10**-digits


def styled_table(notebook):
    "HTML of the table with the paper's numbers, which alone is styled, in an executed notebook."
    outputs = [output for cell in notebook['cells'] if cell['cell_type'] == 'code' for output in cell['outputs']]
    shown = (''.join(output['data']['text/html']) for output in outputs if 'text/html' in output.get('data', {}))
    return next(html for html in shown if '<table id="T_' in html)


def styled_cells(notebook): return re.findall(r'<td[^>]*>(.*?)</td>', styled_table(notebook))


@pytest.mark.parametrize('profile,table', WHOLE)
def test_records_make_the_committed_table(profile, table, tmp_path):
    params = dict(profile=profile, runs='paper_figures/records', out_dir=str(tmp_path))
    notebook, executed = tmp_path/'again.ipynb', ROOT/f'paper_figures/executed/{table}.ipynb'
    pm.execute_notebook(ROOT/f'paper_figures/{table}.ipynb', notebook, params, cwd=ROOT, progress_bar=False)
    again, committed = (styled_cells(read_json(path)) for path in (notebook, executed))
    assert len(again) == len(committed) and not any('not run' in cell for cell in committed)
    pairs = [pair for cells in zip(again, committed) for pair in zip(*map(numbers, cells), strict=True)]
    assert len(pairs) > 50 and not [pair for pair in pairs if not agree(*pair)]


@pytest.mark.parametrize('table', [table for _, table in WHOLE])
def test_committed_rows_are_called_as_the_table_of_methods_says(table):
    html = styled_table(read_json(ROOT/f'paper_figures/executed/{table}.ipynb'))
    label = 'numbered' if table == 'table2' else 'label'
    assert re.findall(r'<th[^>]*row_heading level0[^>]*>(.*?)</th>', html) == [getattr(METHODS[m], label) for m in rows(table)]


def test_records_are_small_and_name_no_machine():
    files = [path for path in RECORDS.rglob('*') if path.is_file()]
    assert files
    for path in files:
        assert path.stat().st_size < 250_000, path
    for path in [*files, *(ROOT/'tokencompose/zoo').rglob('config.json')]:
        if path.suffix == '.json': assert not re.search(r'"/(?!/)', path.read_text()), f'{path} names a place on somebody\'s machine'
