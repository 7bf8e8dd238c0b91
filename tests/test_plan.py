"""What a run of the graph would take, before anything is there."""
import pytest
from conftest import ROOT
from processes import run_python, SNAKEMAKE

from tokencompose.plan import drawn, graph_jobs, GraphJob, job_flops, parsed_jobs, plan_table
from tokencompose.profiles import get_profile


def test_a_row_of_the_authors_weights_is_planned_without_data():
    "`make plan PROFILE=sd14 FIGURES=table1 ROW=released_a` in a fresh clone: fetched, drawn and judged, nothing trained."
    jobs = graph_jobs('sd14', 'table1', everything=True, row='released_a')
    drawn_for = sorted(job['benchmark'] for job in jobs if job.rule == 'sample')
    assert drawn_for == ['coco_captions', 'flickr30k', 'multigen_ade20k', 'multigen_coco', 'visor'] and {job['run'] for job in jobs if job.rule == 'sample'} == {'released_a'}
    assert {job.rule for job in jobs} == {'pictures', 'sample', 'evaluate'}


@pytest.mark.parametrize('there', [True, False])
def test_without_flickr30k_its_column_alone_is_left_out(there):
    "Nobody may fetch it for others; as if it were there, the graph has it."
    asked = ['profile=sd14', 'figures=table1', 'row=released_a', *(['flickr30k=1'] if there else [])]
    code, said = run_python(SNAKEMAKE, 'row', '-n', '-p', '--forceall', '--nolock', '--cores', '1', '--config', *asked)
    assert code == 0 and ('flickr30k' in said.replace('flickr30k=1', '')) == there and 'multigen_coco+multigen_ade20k+visor+coco_captions' in said


def test_hours_and_money_of_jobs():
    mini = get_profile('mini')
    jobs = [GraphJob('sample', (('run', 'frozen'), ('benchmark', 'multigen_coco'))), GraphJob('sample', (('run', 'token-seed0'), ('benchmark', 'multigen_coco'))), GraphJob('train', (('method', 'token'), ('seed', '0')))]
    table = plan_table(mini, jobs, bf16=1., float32=.5, price=4.)
    flops = [job_flops(mini, job)[0] for job in jobs]
    assert flops[0] == flops[1] > 0
    assert table.hours['sample', 'multigen_coco'] == pytest.approx(2*flops[0]/.5e12/3600) and table.hours['together', ''] == pytest.approx(sum(flops)/.5e12/3600)
    assert table.money['together', ''] == pytest.approx(4*table.hours['together', '']) and table.jobs['together', ''] == 3


def test_the_graph_in_commands_is_the_graph():
    code, said = run_python(SNAKEMAKE, '--rulegraph', 'mermaid-js', '--nolock', '--cores', '1', '--config', 'profile=sd14')
    assert code == 0 and drawn(said) in (ROOT/'COMMANDS.md').read_text(), 'python -m tokencompose.plan --profile sd14 --graph'


def test_nothing_is_planned_where_nothing_is_said(): assert parsed_jobs('nothing') == [] and drawn('') == 'graph LR'
