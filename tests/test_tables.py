"Tables, differences and claims from result files."
import math
import textwrap

import pytest
from PIL import Image

from tokencompose.core import image_name, write_json
from tokencompose.methods import METHODS, rows
from tokencompose.reporting import tables
from tokencompose.reporting.results import toy_result, with_things
from tokencompose.reporting.tables import believed, Claim, claims_frame, compare_frame, costs_frame, difference_frame, difference_points, finding, THINGS
from tokencompose.reporting.tables import TABLE4_COLUMNS, ablation_columns, Difference, format_difference, format_seconds, format_value
from tokencompose.reporting.tables import grounding_frame, method_points, paired_difference, pictures_grid, points_frame
from tokencompose.reporting.tables import run_dots, run_label, seeds_frame, table1_frame, table1_halves, table2_frame
from tokencompose.reporting.tables import table3_frame, table4_frame, terminal_text, text_blocks

MG1, MG2, MG3 = (('multigen_coco', f'MG{k}') for k in (1, 2, 3))
OBJECTIVES = ['frozen', 'denoise', 'pixel', 'token', 'tokencompose']

frozen = toy_result('frozen', ((1, 2), (1, 1)))
runs = [toy_result('token', ((3, 2), (2, 1)), seed=0), toy_result('token', ((3, 3), (1, 1)), seed=1)]
control = toy_result('denoise', ((1, 2), (1, 1)))  # a baseline that was not trained
controls = [control | dict(seed=s) for s in (0, 1)]


def toy_daam(method, score, judge='DAAM, 25 steps'):
    values = {name: score for _, name in TABLE4_COLUMNS}
    return dict(metric='daam', method=method, profile='mini', seed=None, n=dict(images=2), values=values,
                intervals={name: [score - .1, score + .1] for name in values},
                units=dict(ids=['1', '2'], values={name: [score - .1, score + .1] for name in values}),
                cost=dict(seconds=60., peak_memory_mb=None), provenance={}, judge=judge)


# ---- texts

def test_values_as_texts():
    assert format_value(62.5, 50, 75) == '62.5 [50.0, 75.0]'
    assert format_value(98.08, std=.4, digits=2) == '98.08 ± 0.40'
    assert [format_value(math.nan), format_value(None), format_value(.58761, digits=4)] == ['not run', 'not run', '0.5876']


def test_seconds_as_texts():
    given = (.034, 60, 600, 36000, math.nan)
    assert [format_seconds(s) for s in given] == ['0.034 s', '60 s', '10 min', '10 h', 'not run']


def names(frame): return list(dict.fromkeys(frame.index.get_level_values('method')))


def test_rows_are_called_as_the_table_of_methods_says():
    assert run_label('token-seed1') == '+ token loss, seed 1' and run_label('frozen') == METHODS['frozen'].label
    assert run_label('my_own') == 'my_own'
    assert names(compare_frame([], ['my_own'], [MG2], 1, profile='mini')) == ['my_own']
    assert names(compare_frame([], ['token'], [MG2], 1, profile='mini', labels=dict(token='mine'))) == ['mine']


def test_only_table_2_has_numerals():
    two = names(table2_frame([], profile='mini'))
    assert two == [METHODS[m].numbered for m in rows('table2')]
    assert two[:5] == ['(i) frozen base model', '(ii) denoising loss only', '(iii) + pixel loss', '(iv) + token loss',
                       'Ours: TokenCompose (both losses)'] and all(label.startswith('(v) ') for label in two[5:])
    one = table1_frame([], table1_halves()[0], profile='mini')
    for number, frame in ((1, one), (3, table3_frame([], profile='mini')), (4, table4_frame([], profile='mini'))):
        assert names(frame) == [METHODS[m].label for m in rows(f'table{number}')]


# ---- one under the other

def ours(frame): return frame.xs(frame.attrs['profile'], level='numbers')


def paper(frame): return frame.xs('paper', level='numbers')


def test_the_lines_and_their_cells():
    frame = table2_frame([frozen, *runs], [MG2, MG3], OBJECTIVES)
    assert frame.index.tolist()[:3] == [('(i) frozen base model', 'mini'), ('(i) frozen base model', 'paper'), ('(ii) denoising loss only', 'mini')]
    assert frame.columns.tolist() == [('COCO', 'MG2 ↑'), ('COCO', 'MG3 ↑')]
    assert paper(frame).iloc[:, 0].tolist() == ['90.72 ± 1.33', 'not reported', 'not reported', 'not reported', '98.08 ± 0.40']
    assert paper(frame).iloc[:, 1].tolist() == ['50.74 ± 0.89', '63.21', '61.95', '71.61', '76.16']
    assert ours(frame).iloc[:, 0].tolist() == ['25.0 [0.1, 99.0]', 'not run', 'not run', '62.5 [0.4, 99.9]', 'not run']
    assert frame.attrs['judges'] == ['toy judge'] and frame.attrs['paper'] == 'paper (SD 1.4, 512 px)'


def test_no_table_is_wider_than_ten_columns():
    halves = [table1_frame([], half, profile='mini') for extractor in ('clip', 'inception') for half in table1_halves(extractor)]
    for frame in (*halves, table2_frame([], profile='mini'), table3_frame([], profile='mini_v'), table4_frame([], profile='mini')):
        assert frame.shape[1] <= 10


def test_what_cannot_share_a_table_is_refused():
    quick = toy_result('token', ((1, 1), (1, 1)), profile='quick')
    with pytest.raises(ValueError, match='one profile, got mini, quick'): table2_frame([frozen, quick])
    with pytest.raises(ValueError, match='cannot share a column'): table2_frame([frozen, runs[0] | dict(judge='another')])
    with pytest.raises(ValueError, match='give `profile`'): table2_frame([])
    with pytest.raises(ValueError, match='cannot share a column'):
        table4_frame([toy_daam('frozen', .4), toy_daam('tokencompose', .5, 'DAAM, 50 steps')])


def test_table_1_in_halves():
    one, other = (table1_frame([frozen], half, profile='mini') for half in table1_halves('clip'))
    assert [len(half) for half in table1_halves()] == [6, 6] and not set(table1_halves()[0]) & set(table1_halves()[1])
    assert other.columns.tolist()[-2:] == [('COCO Fréchet (CLIP)', 'FD ↓'), ('Flickr30K Fréchet (CLIP)', 'FD ↓')]
    row = paper(one).loc[METHODS['denoise'].label]  # from Table 2, which has no MG2
    assert row[[('VISOR', 'OA ↑'), ('COCO', 'MG3 ↑'), ('COCO', 'MG2 ↑')]].tolist() == ['38.02', '63.21', 'not reported']
    assert paper(one).loc[METHODS['tokencompose'].label].tolist()[:2] == ['52.15', '98.08 ± 0.40']
    assert ours(one)['COCO', 'MG2 ↑'].str.split(' ').str[0].tolist() == ['25.0', *['not']*6]
    assert ours(one)['latency,', 'seconds ↓'].eq('not run').all() and paper(one)['latency,', 'seconds ↓'].iloc[0] == '7.54 ± 0.17'
    with pytest.raises(ValueError, match="'resnet' is not one of inception, clip"): table1_halves('resnet')


def test_another_distance_is_never_taken_for_ours():
    "Where our features are not Inception's, the paper's number says what it is."
    clip, inception = (table2_frame([], ablation_columns(extractor), ['denoise'], profile='mini') for extractor in ('clip', 'inception'))
    assert paper(clip).iloc[0, -1] == 'FID 23.04' and paper(inception).iloc[0, -1] == '23.04'


def test_table_2_whole():
    whole = table2_frame([], profile='mini')
    assert whole.shape == (2*9, 9)
    assert whole.iloc[-1].tolist() == ['49.89', '73.80', '26.28', '2.76', '75.49', '33.47', '5.87', 'not reported', '20.45']
    assert set(ours(whole).values.ravel()) == {'not run'}


def test_the_columns_of_some_benchmarks():
    columns = ablation_columns('clip', ('coco_captions', 'multigen_ade20k'))
    assert columns == [*(('multigen_ade20k', f'MG{k}') for k in (3, 4, 5)), ('frechet_coco', 'FD')]


def test_tables_3_and_5():
    three = table3_frame([], profile='mini_v')
    assert paper(three).iloc[1].tolist() == ['55.09', '76.43', '32.07', '4.73', '77.60', '37.09', '7.78', 'not reported', '20.55']
    assert three.attrs['paper'] == 'paper (SD 2.1, 768 px)'
    five = compare_frame([], rows('table5'), [('compbench', 'color'), ('compbench', 'complex')], 5, profile='mini')
    assert five.iloc[4:].values.tolist() == [['not run', 'not run'], ['0.5055', '0.2937']]


def test_table_4():
    four = table4_frame([toy_daam('frozen', .4), toy_daam('tokencompose', .5)])
    assert four.columns.tolist()[:2] == [('DAAM', 'mIoU ↑'), ('DAAM', 'iou_0.3 ↑')]
    assert four.shape == (2*3, 6) and paper(four).iloc[:, 0].tolist() == ['0.5371', '0.5412', '0.5876']
    assert paper(four).iloc[:, 1].eq('not reported').all()
    assert ours(four)['DAAM', 'mIoU ↑'].str.split(' ').str[0].tolist() == ['0.400', 'not', '0.500']
    assert four.attrs['judges'] == ['DAAM, 25 steps']


# ---- seeds and costs

def test_the_range_of_the_training_seeds():
    frame = seeds_frame([*controls, *runs, frozen], ['frozen', 'denoise', 'token', 'pixel'], [MG2, MG3])
    assert frame.index.tolist() == [METHODS[m].label for m in ('denoise', 'token')]  # one run has no range
    assert frame.loc[METHODS['token'].label].tolist() == ['2', '50.0 to 75.0', '25.0 to 50.0']
    assert seeds_frame([frozen], ['frozen'], [MG2]).shape == (0, 0)


def test_the_range_of_differences():
    frame = seeds_frame([*controls, *runs], ['token', 'pixel'], [MG2, ('visor', 'OA')], 'denoise')
    assert frame.index.name == 'minus denoising loss only' and frame.iloc[0].tolist() == ['2', '+25.0 to +50.0']


def test_seconds_and_memory_of_the_benchmarks():
    heavy = runs[0] | dict(metric='visor', cost=dict(seconds=7300., peak_memory_mb=1234.))
    frame = costs_frame([frozen, *runs, heavy], ['frozen', 'token', 'pixel'], ['multigen_coco', 'visor'])
    assert frame.values.tolist() == [['60 s', 'not run', 'not measured'], ['60 s', '2 h', '1234 MB'], ['not run']*3]


# ---- differences

def cell(results, method='token', **kwargs): return difference_frame(results, [method], [MG2], **kwargs).iloc[0, 0]


def test_a_difference_of_two_runs():
    difference = difference_frame([control, runs[0]], ['token', 'pixel'], [MG2, ('multigen_coco', 'MG1')])
    # prompts 100, 50 against 50, 0: by 50 each; in MG1 all are alike, and two prompts can miss 84 %
    assert difference.iloc[0].tolist() == ['+50.0 [50.0, 50.0]', '+0.0 [-84.2, 84.2]']
    assert difference.iloc[1].tolist() == ['not run', 'not run']
    assert difference.index.name == 'minus denoising loss only'


def test_runs_are_paired_by_seed():
    assert cell([*controls, *runs]) == '+37.5 [-100.0, 100.0]'  # 75 and 50, each minus 25; two prompts tell nothing
    assert cell([controls[0], *runs]) == cell([controls[0], runs[0]])  # seed 1 has no control: what is compared is seed 0
    assert cell([*reversed(controls), *runs]) == cell([*controls, *reversed(runs)]) == cell([*controls, *runs])


def test_one_side_without_seeds_is_subtracted_from_every_run():
    def each(results, method): return paired_difference(results, method, 'denoise', *MG2).each.tolist()
    assert each([control, *runs], 'token') == [50, 25]
    assert each([toy_result('pixel', ((3, 2), (2, 1))), *controls], 'pixel') == [50, 50]


def test_seeds_that_have_nothing_in_common_leave_the_difference_of_means():
    others = [r | dict(seed=s) for r, s in zip(controls, (5, 6))]
    difference = paired_difference([*others, *runs], 'token', 'denoise', *MG2)
    assert len(difference.each) == 1 and difference.mean == 37.5 and difference.low < 37.5 < difference.high


def test_without_scores_of_prompts_there_is_no_interval():
    bare = {k: v for k, v in control.items() if k != 'units'}
    assert cell([bare, runs[0]]) == '+50.0 (no interval)'


def test_what_was_not_run():
    assert difference_frame([], ['token'], [('visor', 'OA')]).iloc[0, 0] == 'not run'
    assert cell([control, *runs], 'layers_mid8_up16', baseline='layers_up16') == 'not run'  # others were
    assert format_difference(None) == 'not run'
    assert format_difference(Difference(.042, .0004, .084, None), 3) == '+0.0420 [0.0004, 0.0840]'  # excludes zero, and says so
    assert format_difference(Difference(.042, -.0004, .084, None), 3) == '+0.042 [-0.000, 0.084]'


def test_a_difference_of_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match='one profile'): cell([control, runs[0] | dict(profile='quick')])
    other = toy_result('token', ((3, 2), (2, 1)), seed=2)
    other['units'] = other['units'] | dict(ids=[0, 7])
    with pytest.raises(ValueError, match='different prompts'): cell([control, other])


# ---- claims

def verdicts(results, *columns, method='token', table=2):
    return claims_frame(results, [Claim('it helps', method, 'denoise', columns)], table, fill_from=(1,)).verdict.tolist()


def test_a_verdict_says_direction_and_whether_it_is_settled():
    assert verdicts([control, runs[0]], MG3) == ['not shown']
    alone = [r | dict(seed=0) for r in (toy_result('denoise', ((2, 2), (2, 1))), toy_result('token', ((3, 3), (3, 3))))]
    assert verdicts(alone, MG3) == ['shown (one seed)']  # another seed may say otherwise
    better = toy_result('token', ((3, 3), (3, 3)))
    assert verdicts([toy_result('denoise', ((2, 2), (2, 1))), better], MG3) == ['shown']
    assert verdicts([toy_result('denoise', ((3, 3), (3, 3))), toy_result('token', ((2, 2), (2, 1)))], MG3) == ['contradicted']
    assert verdicts([toy_result('denoise', ((1, 1), (1, 1))), better], MG2) == ['shown']  # Table 2 has no MG2
    assert verdicts([], MG3) == ['not run']
    bare = {k: v for k, v in control.items() if k != 'units'}
    assert verdicts([bare, runs[0]], MG3) == ['not shown']  # no interval settles nothing


def test_a_distance_is_compared_with_the_papers_own():
    "Less far in FID there, less far in another Fréchet distance here."
    values = [dict(values=dict(FD=v), units=dict(ids=[0, 1], values=dict(FD=[v, v])), intervals={}, std={}) for v in (.09, .08)]
    results = [toy_result(m, ((1, 1), (1, 1)), metric='frechet_coco', **v) for m, v in zip(('denoise', 'token'), values)]
    frame = claims_frame(results, [Claim('as real', 'token', 'denoise', (('frechet_coco', 'FD'),))], 2)
    assert frame.paper.tolist() == ['-2.44'] and frame.verdict.tolist() == ['shown']


def test_the_papers_differences_are_those_of_its_tables():
    pairs = [('denoise', 'frozen'), ('token', 'denoise'), ('tokencompose', 'token')]
    frame = claims_frame([], [Claim('', *pair, (MG3,)) for pair in pairs], 2, fill_from=(1,))
    assert frame.paper.tolist() == ['+12.47', '+8.40', '+4.55']
    assert frame.index[1] == ('', '+ token loss − denoising loss only')


def test_a_claim_of_no_difference_asks_for_the_interval_alone():
    def verdict(*results): return claims_frame(results, [Claim('alike', 'token', 'denoise', (MG3,), 'difference')], 2).verdict.item()
    assert verdict(control, runs[0]) == 'no difference shown'
    assert verdict(toy_result('denoise', ((2, 2), (2, 1))), toy_result('token', ((3, 3), (3, 3)))) == 'contradicted'
    assert verdict() == 'not run'


@pytest.mark.parametrize('none, said', [('gain', 'contradicted'), ('loss', 'shown'), ('difference', 'contradicted')])
def test_a_claim_of_no_gain_is_kept_by_a_loss(none, said):
    worse, better = toy_result('denoise', ((2, 2), (2, 1))), toy_result('token', ((3, 3), (3, 3)))
    assert claims_frame([worse, better], [Claim('', 'token', 'denoise', (MG3,), none)], 2).verdict.item() == said
    swapped = [worse | dict(method='token'), better | dict(method='denoise')]
    other = {'contradicted': 'shown', 'shown': 'contradicted'}[said] if none != 'difference' else said
    assert claims_frame(swapped, [Claim('', 'token', 'denoise', (MG3,), none)], 2).verdict.item() == other


def test_a_result_of_ones_own_settings_is_no_row():
    with pytest.raises(ValueError, match='token, seed 0 was made with settings of its own, .* and frozen as its profile says'):
        table2_frame([frozen | dict(identity=dict(code=1)), runs[0]])
    mine = [frozen | dict(identity=dict(code=1)), runs[0] | dict(method='mine', seed=None)]  # a method of one's own is compared with the rows
    assert difference_frame(mine, ['mine'], [MG3], 'frozen').shape == (1, 1)


def test_the_differences_to_look_at_are_those_of_the_table():
    both = with_things([r | dict(metric=metric, seed=seed) for seed in (0, 1) for r in (control, runs[0]) for metric in ('multigen_coco', 'multigen_ade20k')])
    points = difference_points(both, ['frozen', 'denoise', 'token'], [MG2, MG3, ('frechet_coco', 'FD'), THINGS]).axes[0]
    assert [label.get_text() for label in points.get_yticklabels()] == ['COCO MG3', 'both lists things of five']  # no distance
    drawn = [float(x) for line in points.lines if line.get_marker() == 'o' for x in line.get_xdata()]
    found = [paired_difference(both, 'token', 'denoise', *column).mean for column in (MG3, THINGS)]
    assert drawn == pytest.approx([found[0], 20*found[1]])
    assert difference_points([], ['token'], [MG3]) is None


# ---- in a terminal

BETTER, WORSE = toy_result('tokencompose', ((3, 3), (3, 3))), toy_result('denoise', ((2, 2), (2, 1)))


@pytest.mark.parametrize('frame', [
    table2_frame([frozen, *runs], [(m, f'MG{k}') for m in ('multigen_coco', 'multigen_ade20k') for k in (1, 2, 3)], OBJECTIVES),
    table2_frame([r | dict(metric=m) for r in runs for m in ('visor', 'multigen_coco', 'multigen_ade20k')], [(m, f'MG{k}') for m in ('visor', 'multigen_coco', 'multigen_ade20k') for k in (1, 2, 3)]),
    table4_frame([toy_daam('frozen', .4), toy_daam('tokencompose', .5)])])
def test_a_terminal_of_100_columns_shows_what_was_run(frame):
    text = terminal_text([frame], finding([BETTER, WORSE], [MG2, MG3]))
    assert max(map(len, text.split('\n'))) <= 100 and 'not run' not in text
    for label in names(frame):
        assert (textwrap.wrap(label, 21)[-1] in ''.join(text_blocks(frame))) == ours(frame).loc[label].str.contains(r'\d').any()
    cells = ours(frame).values.ravel()
    assert all(cell in text for cell in cells if cell != 'not run')


def test_blocks_are_as_few_as_fit():
    frame = table2_frame([frozen, *runs], [MG1, MG2, MG3], OBJECTIVES)
    assert [len(text_blocks(frame, width)) for width in (100, 70, 10)] == [1, 2, 3]
    assert '62.5 [0.' in text_blocks(frame)[0] and '(71.61)' in text_blocks(frame)[0]
    assert text_blocks(table2_frame([], profile='mini')) == []
    assert 'Nothing was run yet.' in terminal_text([table2_frame([], profile='mini')], finding([], [MG2]))


def test_the_sentence_says_what_is_settled():
    told = finding([BETTER, WORSE], [MG1, MG2, MG3])
    assert told.startswith('TokenCompose (both losses) is better than denoising loss only in COCO MG3 (+100.0 [')
    assert told.endswith('; no difference is settled in COCO MG1, COCO MG2.')
    turned = finding([BETTER | dict(method='denoise'), WORSE | dict(method='tokencompose')], [MG3])
    assert turned.startswith('TokenCompose (both losses) is worse than denoising loss only in COCO MG3 (-100.0 [') and turned.endswith(']).')


def test_the_sentence_says_what_a_single_seed_is_worth():
    told = finding([BETTER | dict(seed=0), WORSE | dict(seed=0)], [MG3])
    assert told.endswith(' (one training seed: over prompts alone).')


def test_the_sentence_where_nothing_is_settled_or_run():
    level = [r | dict(method='tokencompose') for r in controls]
    assert finding([*controls, *level], [MG2, MG3]) == 'No difference between TokenCompose (both losses) and denoising loss only is settled: none of 2 intervals leaves zero out.'
    assert finding([BETTER], [MG2]) == 'Nothing to compare: of TokenCompose (both losses) and denoising loss only one was not run.'


def test_less_is_better_in_a_distance():
    far = [toy_result(m, ((1, 1), (1, 1)), metric='frechet_coco', values=dict(FD=v), units=dict(ids=[0, 1], values=dict(FD=[v, v])), intervals={}, std={})
           for m, v in (('denoise', .09), ('tokencompose', .08))]
    assert 'is better than denoising loss only in COCO Fréchet (CLIP) FD (-0.0100 ' in finding(far, [('frechet_coco', 'FD')])


# ---- to look at

def test_points_in_the_order_of_the_tables():
    points = points_frame([*runs, frozen, control | dict(metric='grounding')], OBJECTIVES, ['MG2'])
    assert points[['method', 'row', 'value']].values.tolist() == [['frozen', 'COCO MG2', 25.], ['token', 'COCO MG2', 62.5]]
    assert len(points_frame([], OBJECTIVES, ['MG2'])) == 0
    unordered = [frozen | dict(metric=metric) for metric in ('multigen_ade20k', 'multigen_coco', 'visor')]
    assert points_frame(unordered, OBJECTIVES, ['MG2']).row.tolist() == ['VISOR MG2', 'COCO MG2', 'ADE20K MG2']


def test_every_method_keeps_its_colour_and_label():
    from matplotlib.colors import to_hex
    figure = method_points(points_frame([*runs, frozen], OBJECTIVES, ['MG1', 'MG2']))
    assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == [METHODS[m].color for m in ('frozen', 'token')]
    assert [to_hex(bars.get_color()[0]) for bars in figure.axes[0].collections] == [METHODS[m].color for m in ('frozen', 'token')]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [METHODS[m].label for m in ('frozen', 'token')]
    assert method_points(points_frame([], OBJECTIVES, ['MG2'])) is None


def test_a_dot_for_every_run_in_its_methods_colour():
    from matplotlib.colors import to_hex
    figure = run_dots([*controls, *runs, frozen], OBJECTIVES, [MG2, MG3])
    assert [ax.get_title() for ax in figure.axes] == ['COCO MG2', 'COCO MG3']
    lines = figure.axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[25], [25, 25], [75, 50]]
    assert [to_hex(line.get_color()) for line in lines] == [METHODS[m].color for m in ('frozen', 'denoise', 'token')]
    assert run_dots([], OBJECTIVES, [MG2]) is None


def test_grounding_of_the_methods_that_were_probed():
    probed = [r | dict(metric='grounding') for r in (runs[0], frozen)]
    frame = grounding_frame([*runs, *probed], OBJECTIVES)
    assert frame.index.tolist() == [METHODS[m].label for m in ('frozen', 'token')]
    assert frame.MG2.str.split(' ').str[0].tolist() == ['25.000', '75.000']
    assert grounding_frame([], OBJECTIVES).shape == (0, 0)


def test_pictures_of_the_runs_that_drew(tmp_path, capsys):
    assert pictures_grid(tmp_path, ['frozen']) is None
    for run, grey in (('frozen', 60), ('token-seed0', 200)):
        place = tmp_path/run/'multigen_coco'
        place.mkdir(parents=True)
        write_json(place/'prompts.json', [dict(unique_id=7, text='a photo of a cat.'), dict(unique_id=8, text='a photo of a dog.')])
        for i in (7, 8): Image.new('L', (8, 8), grey).save(place/image_name(i, 0))
    grid = pictures_grid(tmp_path, ['frozen', 'pixel-seed0', 'token-seed0'], columns=1)
    assert [round(float(ax.images[0].get_array().mean())) for ax in grid.axes] == [60, 200]
    assert [ax.get_title() for ax in grid.axes] == ['a cat', '']
    assert 'not run: pixel-seed0' in capsys.readouterr().out


def test_tables_come_without_torch_of_their_own():
    "Numbers and pandas are enough to make a table from records."
    import ast
    import inspect
    body = ast.parse(inspect.getsource(tables)).body
    imported = {getattr(node, 'module', None) or node.names[0].name for node in body if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert not imported & {'torch', 'diffusers', 'transformers', 'plotting', 'models'}


# ---- what must not share a column

def kept(method, seed=None, prompts='p', **identity):
    return toy_result(method, ((1, 2), (2, 2)), seed=seed, identity=dict(code=1, asked='a', judge='j', base='b', data='d', training='t' if seed is not None else '') | identity, prompts=dict(count=2, digest=prompts, published=False))


@pytest.mark.parametrize('part', ['code', 'asked', 'judge', 'base', 'prompts'])
def test_a_column_has_one_of_each(part):
    compare_frame([kept('frozen'), kept('layout'), kept('token', 0)], ['frozen', 'layout', 'token'], [('multigen_coco', 'MG2')], 1)
    with pytest.raises(ValueError, match=f'multigen_coco: frozen and layout were made with different {part}'):
        compare_frame([kept('frozen'), kept('layout', **{part: 'other'})], ['frozen', 'layout'], [('multigen_coco', 'MG2')], 1)


def test_seeds_of_a_method_were_trained_alike_and_on_the_same_data():
    columns = [('multigen_coco', 'MG2')]
    compare_frame([kept('token', 0), kept('pixel', 0, training='u'), kept('exact', 0, data='e')], ['token', 'pixel', 'exact'], columns, 2)
    with pytest.raises(ValueError, match='token, seed 0 and token, seed 1 were made with different training'):
        compare_frame([kept('token', 0), kept('token', 1, training='u')], ['token'], columns, 2)
    with pytest.raises(ValueError, match='token, seed 0 and pixel, seed 0 were made with different data'):
        compare_frame([kept('token', 0), kept('pixel', 0, data='e')], ['token', 'pixel'], columns, 2)


def test_the_papers_profile_shows_the_papers_prompts_only():
    columns, own = [('multigen_coco', 'MG2')], kept('frozen') | dict(profile='sd14')
    with pytest.raises(ValueError, match='is of other prompts than its authors published'): compare_frame([own], ['frozen'], columns, 1)
    compare_frame([own | dict(prompts=dict(count=2, digest='p', published=True))], ['frozen'], columns, 1)
    compare_frame([kept('frozen')], ['frozen'], columns, 1)  # the miniature says by its name what it is


def test_settled_differences_that_hold_when_all_are_asked_at_once():
    "By hand: of five, .049 is the fourth, which is too far from .04 for the fourth; .029 is the third, below .03."
    def at(p): return lambda level: (1., 1. if 1 - level > p else -1., 2.)
    def difference(p): return Difference(*at(p)(.95), None, interval_at=at(p))
    assert believed([difference(p) for p in (.001, .012, .029, .049, .9)]) == 'Of 4 settled differences 3 hold at a false discovery rate of 5 % over all 5.'
    assert believed([difference(p) for p in (.04, .9, .9)]) == 'Of 1 settled differences 0 hold at a false discovery rate of 5 % over all 3.'
    assert believed([None, difference(.3), Difference(1., math.nan, math.nan, None)]) == ''
