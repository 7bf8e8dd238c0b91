"Tables as files, and executed notebooks for the repository."
import io

import pandas as pd
import pytest

from tokencompose.core import read_json, repo_root, write_json
from tokencompose.reporting.publish import caption_of, publish, save_table, to_csv, to_markdown, to_style
from tokencompose.reporting.results import toy_result
from tokencompose.reporting.tables import table2_frame

frozen, control = toy_result('frozen', ((1, 2), (1, 1))), toy_result('denoise', ((1, 2), (1, 1)))


@pytest.fixture
def frame():
    runs = [toy_result('token', ((3, 2), (2, 1)), seed=s) for s in (0, 1)]
    columns = [('multigen_coco', 'MG2'), ('multigen_coco', 'MG3')]
    return table2_frame([frozen, *runs], columns, ['frozen', 'denoise', 'pixel', 'token', 'tokencompose'])


def test_markdown_has_two_lines_a_method(frame):
    text = to_markdown(frame, 'Invented numbers.').splitlines()
    assert [part.strip() for part in text[0].split('|')[1:-1]] == ['method', 'numbers', 'COCO<br>MG2 ↑', 'COCO<br>MG3 ↑']
    ours, paper = ([part.strip() for part in line.split('|')[1:-1]] for line in text[4:6])
    assert ours == ['(ii) denoising loss only', 'mini', 'not run', 'not run'] and paper == ['', 'paper', 'not reported', '63.21']
    assert text[-1] == 'Invented numbers.'


def test_csv_reads_back(frame):
    again = pd.read_csv(io.StringIO(to_csv(frame)), index_col=[0, 1])
    assert again.values.tolist() == frame.values.tolist() and again.index.tolist() == frame.index.tolist()
    assert again.columns[0] == 'COCO | MG2 ↑'


def test_the_styled_table_says_all_in_its_text(frame):
    html = to_style(frame, 'toy').to_html()
    assert 'toy' in html and html.count('not run') == frame.isin(['not run']).values.sum()


def test_saved_with_its_caption(frame, tmp_path):
    save_table(frame, tmp_path/'table2')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['table2.csv', 'table2.md']
    assert 'Judged by toy judge.' in (tmp_path/'table2.md').read_text()
    assert 'paper (SD 1.4, 512 px): Table 2 as printed' in caption_of(frame)


def test_a_published_notebook_is_without_errors_timings_and_places(tmp_path):
    said = [dict(output_type='stream', name=name, text=[text])
            for name, text in (('stdout', f'{repo_root()}/runs/x'), ('stderr', 'a warning'))]
    cells = [dict(cell_type='code', source=['1'], metadata=dict(tags=['parameters'], papermill=dict(duration=3)), outputs=said, execution_count=7),
             dict(cell_type='markdown', source=['#'], metadata={})]
    made = dict(kernelspec={}, papermill=dict(output_path=str(tmp_path)))
    write_json(tmp_path/'a.ipynb', dict(cells=cells, metadata=made, nbformat=4, nbformat_minor=5))
    publish(tmp_path/'a.ipynb', tmp_path/'out'/'b.ipynb')
    assert read_json(tmp_path/'out'/'b.ipynb')['metadata'] == dict(kernelspec={})
    copy = read_json(tmp_path/'out'/'b.ipynb')['cells'][0]
    assert copy['metadata'] == dict(tags=['parameters']) and copy['execution_count'] is None
    assert [output['text'] for output in copy['outputs']] == [['runs/x']]


def test_links_of_a_published_notebook_lead_from_its_new_place(tmp_path):
    for name in ('README.md', 'figures/b.ipynb', 'figures/done/b.ipynb'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    text = '[up](../README.md#top) [here](b.ipynb) [web](https://a.org/x) [below](#cost) [nowhere](../lost.md)\nand [up](../README.md).'
    write_json(tmp_path/'figures'/'a.ipynb', dict(cells=[dict(cell_type='markdown', source=text, metadata={})], metadata={}, nbformat=4, nbformat_minor=5))
    publish(tmp_path/'figures'/'a.ipynb', tmp_path/'figures'/'done'/'a.ipynb')
    moved = ''.join(read_json(tmp_path/'figures'/'done'/'a.ipynb')['cells'][0]['source'])
    assert moved == text.replace('../README.md', '../../README.md')
