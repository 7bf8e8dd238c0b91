"Prompts, numbers and references of each benchmark."
import pytest
from make_real_files import write_prompt_lists
from tokencompose.data.world_files import write_world
from tokencompose.metrics.benchmarks import benchmark_of, benchmark_prompts, BENCHMARKS, for_benchmark, held_out_sets
from tokencompose.metrics.benchmarks import first_prompts, GROUPS, noise_of, read_benchmark, reference_folder, result_key
from tokencompose.metrics.multigen import draw_prompts, save_prompts
from tokencompose.profiles import get_profile

MINI, SD14 = get_profile('mini'), get_profile('sd14')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world')
    write_world(folder, 1, 8)
    return write_prompt_lists(folder)


@pytest.mark.parametrize('metric', ['grounding', 'daam'])
def test_metrics_that_need_no_pictures(metric):
    assert benchmark_of(metric) == ''
    with pytest.raises(ValueError, match=f'{metric} scores a model, no pictures'): benchmark_of(metric, 'visor')


def test_names_of_result_folders():
    keys = [result_key('fid', b, e) for e in ('inception', 'clip') for b in ('coco_captions', 'flickr30k')]
    assert keys == ['fid_coco', 'fid_flickr', 'frechet_coco', 'frechet_flickr30k']
    assert result_key('multigen', 'multigen_ade20k') == 'multigen_ade20k'
    assert (result_key('visor', 'visor'), result_key('grounding', '')) == ('visor', 'grounding')


def test_numbers_may_be_given():
    own = for_benchmark(MINI, 'visor', 7)
    assert (own.prompts, own.rounds) == (7, MINI.visor_rounds)
    with pytest.raises(ValueError, match='expected 1 or more'): for_benchmark(MINI, 'visor', 0)


@pytest.mark.parametrize('name', BENCHMARKS)
def test_prompts_are_the_same_every_time(name, world, tmp_path):
    rows = benchmark_prompts(name, for_benchmark(MINI, name, 6), world)
    assert len(rows) == dict(compbench=18, geneval=18).get(name, 6) and rows == benchmark_prompts(name, for_benchmark(MINI, name, 6), world)
    save_prompts(tmp_path/'prompts.json', rows)
    assert read_benchmark(name, tmp_path/'prompts.json') == rows


def test_multigen_is_drawn_from_the_profiles_classes(world):
    rows = benchmark_prompts('multigen_ade20k', for_benchmark(MINI, 'multigen_ade20k', 6), world)
    assert rows == draw_prompts(list(MINI.ade_classes), 6, seed=MINI.prompt_seed)


@pytest.mark.parametrize('name', ['coco_captions', 'flickr30k'])
def test_references_must_be_there(name, tmp_path):
    write_world(tmp_path, 1, 8)
    rows = benchmark_prompts(name, for_benchmark(MINI, name, 8), tmp_path)
    (reference_folder(name, tmp_path)/rows[0]['image']).unlink()
    with pytest.raises(FileNotFoundError, match=f'in {reference_folder(name, tmp_path)}, the first is {rows[0]["image"]}'):
        benchmark_prompts(name, for_benchmark(MINI, name, 8), tmp_path)


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='val.txt'): benchmark_prompts('flickr30k', for_benchmark(MINI, 'flickr30k', 8), tmp_path/'nowhere')


def test_what_is_held_out(world, tmp_path):
    pairs = held_out_sets(MINI, world)
    assert {len(pair) for pair in pairs} == {2} and len(pairs) > 20
    assert held_out_sets(MINI, tmp_path) == [] and len(held_out_sets(SD14, tmp_path)) == 23


@pytest.mark.parametrize('name', GROUPS)
def test_prompts_are_counted_by_group(name, world):
    rows = benchmark_prompts(name, for_benchmark(MINI, name, 2), world)
    groups = [row[GROUPS[name]] for row in rows]
    assert len(set(groups)) == 6 and all(groups.count(group) == 2 for group in groups)
    assert rows == first_prompts(name, benchmark_prompts(name, for_benchmark(MINI, name, 3), world), 2)


def test_a_published_list_alone_is_a_benchmark_of_one_category(world):
    rows = benchmark_prompts('compbench', for_benchmark(SD14, 'compbench'), 'nowhere', str(world/'compbench'/'texture_val.txt'))
    assert {row['category'] for row in rows} == {'texture'} and rows == [row for row in read_benchmark('compbench', world/'compbench') if row['category'] == 'texture']


def test_the_published_noise():
    assert noise_of('compbench', SD14) == dict(seed=42, shared_noise=True) and noise_of('compbench', SD14, 7)['seed'] == 7
    assert noise_of('compbench', MINI) == noise_of('visor', SD14) == dict(seed=0, shared_noise=False)
