"The paper's printed numbers, against each other and against its text."
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from tokencompose.methods import METHODS, rows
from tokencompose.reporting.paper import PAPER_LABELS, paper_numbers


@pytest.fixture(scope='module')
def paper(): return paper_numbers()


def printed(paper, table, method, metric, name):
    found = paper.query('table == @table and method == @method and metric == @metric and name == @name')
    return found['value'].item()


def test_the_file_holds_every_printed_number(paper):
    assert paper.groupby('table').size().tolist() == [6*12 - 3, 8*8, 3*8, 3, 3*6]
    assert not paper.duplicated(['table', 'method', 'metric', 'name']).any()
    assert set(paper.table) == set(PAPER_LABELS)


def test_columns_and_types(paper):
    assert paper.columns.tolist() == ['table', 'method', 'metric', 'name', 'value', 'std', 'digits', 'source']
    assert [paper[c].dtype for c in ('table', 'value', 'std', 'digits')] == [np.int64, np.float64, np.float64, np.int64]
    assert paper.source[0] == 'TokenCompose (CVPR 2024), Table 1'


def test_values_are_kept_as_printed(paper):
    "A trailing zero is a printed digit."
    with (resources.files('tokencompose.reporting')/'paper.csv').open() as file: texts = pd.read_csv(file, dtype=str)
    assert texts.value.str.split('.').str[1].str.len().tolist() == paper.digits.tolist()
    assert '65.10' in texts.value.tolist() and [f'{v:.{d}f}' for v, d in zip(paper.value, paper.digits)] == texts.value.tolist()


def test_rows_are_methods_of_the_table_of_methods(paper):
    assert set(paper.method) <= set(METHODS)
    for table in (3, 4, 5): assert paper.query('table == @table').method.drop_duplicates().tolist() == rows(f'table{table}')
    assert set(paper.query('table == 2').method) == set(rows('table2')) - {'frozen'}   # which Table 1 prints
    assert set(paper.query('table == 1').method) == set(rows('table1')) - {'denoise'}  # which Table 2 prints


def test_showing_more_things_is_rarer(paper):
    listed = paper[paper.metric.str.startswith('multigen')].sort_values('name')
    falls = listed.groupby(['table', 'method', 'metric'])['value'].apply(lambda values: values.is_monotonic_decreasing)
    assert falls.all() and len(falls) == 2*(6 + 8 + 3)


def test_the_full_model_is_the_same_in_tables_1_and_2(paper):
    both = paper[paper.method == 'tokencompose'].pivot_table(index=['metric', 'name'], columns='table', values='value')
    both = both[[1, 2]].dropna()
    assert len(both) == 8 and both[1].tolist() == both[2].tolist()


def test_facts_of_the_text(paper):
    slow = printed(paper, 1, 'attend_excite', 'latency', 'seconds')/printed(paper, 1, 'frozen', 'latency', 'seconds')
    assert slow == pytest.approx(3.37, abs=.005)
    wins = [printed(paper, 1, method, 'multigen_coco', 'MG5') for method in ('attend_excite', 'tokencompose')]
    assert wins[0] > wins[1], 'the one cell that the paper loses'
    assert printed(paper, 1, 'frozen', 'visor', 'OA') == 29.86 and printed(paper, 2, 'denoise', 'visor', 'OA') == 38.02


def test_three_rivals_have_no_distance_to_coco(paper):
    assert paper.query('table == 1 and metric == "fid_coco"')['method'].tolist() == ['frozen', 'structured', 'tokencompose']
