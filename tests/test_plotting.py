"""What figures hold: their texts, colours, outlines and points, and what is refused."""
import itertools
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image

from tokencompose.plotting import (attention_grid, draw_outline, heat_map, image_grid, loss_curves, loss_panels,
                                   overlay_attention, point_intervals, save_figure, smoothed, themed, to_uint8)

SCENE = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(48, 48, dtype=torch.bool)
MASK[10:20, 10:20] = True
FRAME = pd.DataFrame([('frozen', 48, 44, 52), ('denoising only', 51, 47, 55), ('both', 62, np.nan, np.nan)],
                     columns=['method', 'mean', 'low', 'high'])
LOG = [dict(step=s, loss=3. - s, token_by_group=dict(mid_8=.5/s, up_16=.7/s), pixel_by_group=dict(up_16=.1, mid_8=.2),
            note='x') for s in (1, 2)]


# ---- theme

def test_a_theme_does_not_leak():
    before = dict(plt.rcParams)
    draw = themed(lambda: plt.rcParams['grid.color'])
    assert draw() == '.9' and dict(plt.rcParams) == before


# ---- images

def test_any_image_as_bytes():
    tensor = torch.tensor([[[0., 1.]], [[.5, 0]], [[0, 0]]])
    expected = [[[0, 128, 0], [255, 0, 0]]]
    assert to_uint8(tensor).tolist() == to_uint8(tensor.half()).tolist() == expected
    assert to_uint8(tensor*2 - 1, (-1, 1)).tolist() == expected
    assert to_uint8(tensor.permute(1, 2, 0).numpy()).tolist() == expected
    assert to_uint8(Image.fromarray(to_uint8(tensor))).tolist() == expected
    assert to_uint8(np.array([[True, False]])).tolist() == [[[255]*3, [0]*3]]


@pytest.mark.parametrize('image, message', [
    (torch.full((3, 2, 2), -1.), 'pass value_range'),
    (torch.zeros(4, 5, 6), 'shape'),
    (np.array([[np.nan]]), 'not finite'),
    (np.array([[3]]), 'type int64'),
])
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message): to_uint8(image)


def test_a_grid_holds_its_pictures_and_gaps():
    figure = image_grid([[SCENE, SCENE], [SCENE, None]])
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    assert (figure.axes[0].images[0].get_array().data == to_uint8(SCENE)).all()
    assert [t.get_text() for t in figure.axes[3].texts] == ['not run']


def test_a_column_title_stands_once():
    figure = image_grid([[SCENE, SCENE]]*3, col_titles=['frozen', 'ours'])
    assert [ax.get_title() for ax in figure.axes] == ['frozen', 'ours', '', '', '', '']


@pytest.mark.parametrize('titles, message', [
    (dict(col_titles=['a']), 'col_titles: 1 given, the grid needs 2'),
    (dict(row_titles=['a', 'b']), 'row_titles: 2 given, the grid needs 1'),
    (dict(captions=[]), 'captions: 0 given'),
])
def test_titles_that_do_not_fit(titles, message):
    with pytest.raises(ValueError, match=message): image_grid([[SCENE, SCENE]], **titles)


def test_ragged_rows():
    with pytest.raises(ValueError, match='equal length'): image_grid([[SCENE], [SCENE, SCENE]])


# ---- attention

def test_a_map_is_stretched():
    assert_allclose(heat_map(torch.tensor([[0., 2.], [2., 4.]]), (2, 2)), [[0, .5], [.5, 1]])
    assert_allclose(heat_map(torch.tensor([[0., 1.]]), (1, 4)), [[0, .25, .75, 1]])  # bilinear at pixel centres


def test_a_small_map_is_not_a_constant_one():
    assert heat_map(torch.full((4, 4), 1/77), (8, 8)).unique().tolist() == [0]
    assert_allclose(heat_map(torch.rand(4, 4, generator=torch.Generator().manual_seed(0))*1e-9, (4, 4)).max(), 1)


@pytest.mark.parametrize('attn_map, message', [
    (torch.zeros(2, 4, 4), 'average heads'),
    (torch.full((2, 2), np.nan), 'not finite'),
])
def test_what_is_no_map(attn_map, message):
    with pytest.raises(ValueError, match=message): heat_map(attn_map, (8, 8))


def test_an_overlay_is_map_or_grey_picture():
    alone = overlay_attention(torch.zeros(3, 2, 2), torch.eye(2), alpha=1., cmap='gray')[..., 0]
    assert (alone == torch.eye(2).numpy()*255).all()
    grey = np.asarray(Image.fromarray(to_uint8(SCENE)).convert('L'))
    assert (overlay_attention(SCENE, torch.eye(2), alpha=0.)[..., 0] == grey).all()


def test_a_grid_shows_the_map_alone():
    "A map means the same colours on a bright and on a dark picture."
    maps = [{'cat': torch.eye(4)}]
    bright, dark = (attention_grid([torch.full((3, 8, 8), v)], maps).axes[1].images[0].get_array() for v in (1., 0.))
    assert (bright == dark).all()


def test_outlines_stand_where_a_mask_is():
    figure = attention_grid([SCENE], [{'disc': torch.eye(4), 'kite': torch.eye(4)}], [{'disc': MASK}])
    assert [len(ax.collections) for ax in figure.axes] == [0, 1, 0]


@pytest.mark.parametrize('mask', [torch.zeros(8, 8, dtype=torch.bool), torch.ones(8, 8)])
def test_an_empty_or_full_mask_has_no_outline(mask):
    figure, ax = plt.subplots()
    draw_outline(ax, mask)
    assert not ax.collections
    plt.close(figure)


def test_words_stand_on_top_once_or_below_their_maps():
    a, b = torch.eye(4), torch.eye(4)
    alike = attention_grid([SCENE]*2, [{'cat': a, 'dog': b}]*2).axes
    assert [ax.get_title() for ax in alike] == ['', 'cat', 'dog', '', '', '']
    assert not any(ax.get_xlabel() for ax in alike)
    unlike = attention_grid([SCENE]*2, [{'cat': a}, {'cat': a, 'dog': b}]).axes
    assert [ax.get_xlabel() for ax in unlike] == ['', 'cat', '', '', 'cat', 'dog']
    assert not any(ax.get_title() for ax in unlike)


def test_maps_for_every_image():
    with pytest.raises(ValueError, match='1 images but 2'): attention_grid([SCENE], [{}, {}])


# ---- loss curves

def test_smoothed():
    assert_allclose(smoothed([1, 2, 3], 0), [1, 2, 3])
    assert_allclose(smoothed([4, 4, 4], .9), [4, 4, 4])
    assert_allclose(smoothed([0, 1], .5), [0, 1/1.5])


def test_panels():
    panels = loss_panels(LOG)
    assert list(panels) == ['loss', 'token_by_group', 'pixel_by_group']  # text is not drawn
    assert panels['token_by_group']['up_16'].to_dict() == {1: .7, 2: .35}
    assert list(loss_panels(LOG, keys=['loss'])) == ['loss']


@pytest.mark.parametrize('rows, kwargs, message', [
    ([], {}, 'give those of log.jsonl'),
    (LOG, dict(x='epoch'), "no 'epoch'"),
    (LOG, dict(keys=['pixel']), 'no pixel: choose from loss, token_by_group, pixel_by_group'),
])
def test_what_is_no_log(rows, kwargs, message):
    with pytest.raises(ValueError, match=message): loss_panels(rows, **kwargs)


def test_curves():
    figure = loss_curves(LOG)
    loss, token, pixel = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ['loss', 'token by group', 'pixel by group']
    assert [len(ax.lines) for ax in figure.axes] == [2, 4, 4]
    colour = lambda ax: {line.get_label(): line.get_color() for line in ax.lines if line.get_label()[0] != '_'}
    assert colour(token) == colour(pixel) and list(colour(token)) != list(colour(pixel))  # whatever the order
    assert_allclose(token.lines[0].get_ydata(), [.5, .25])


# ---- means with intervals

def markers(figure, ax):
    "Centres of all markers in points."
    figure.draw_without_rendering()
    found = [ax.transData.transform(line.get_xydata()) for line in ax.lines if line.get_marker() == 'o']
    return np.concatenate(found)/figure.dpi*72


def test_points_intervals_and_reference():
    ax = point_intervals(FRAME, reference='frozen').axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(FRAME.method)
    assert (ax.lines[0].get_xdata() == FRAME['mean']).all()
    assert [s[:, 0].tolist() for s in ax.collections[0].get_segments()] == [[44, 52], [47, 55]]
    assert list(ax.lines[1].get_xdata()) == [48, 48]


@pytest.mark.parametrize('levels', range(1, 9))
def test_no_marker_hides_another(levels):
    "Whatever is equal: values of two levels, or two points of one row and one level."
    frame = pd.concat([FRAME.assign(run=f'run {i}') for i in range(levels)])
    for table, hue in ((frame, 'run'), (frame, None), (pd.concat([frame, frame]), 'run')):
        figure = point_intervals(table, hue=hue)
        centres = markers(figure, figure.axes[0])
        assert len(centres) == len(table)
        gaps = [np.hypot(*(a - b)) for a, b in itertools.combinations(centres, 2)]
        assert min(gaps) > 6  # a marker of 5 points with its rim


def test_a_names_points_stay_in_its_row():
    frame = pd.concat([FRAME.assign(run=f'run {i}') for i in range(8)])
    rows = np.concatenate([line.get_ydata() for line in point_intervals(frame, hue='run').axes[0].lines])
    assert (abs(rows - rows.round()) < .4).all()


def test_colours_of_the_levels():
    frame = pd.concat([FRAME.assign(run=name) for name in ('a', 'b')])
    lines = point_intervals(frame, hue='run', colours=dict(a='black', other='red')).axes[0].lines
    assert lines[0].get_color() == 'black' and lines[1].get_color() != 'black'


def test_a_long_legend_takes_no_room_from_the_axis():
    def axis_inches(frame):
        figure = point_intervals(frame, hue='classes')
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().width/figure.dpi
    both = pd.concat([FRAME.assign(classes='COCO'), FRAME.assign(classes='ADE20K')])
    long = both.assign(classes=both.classes + ', a name that takes much room')
    assert_allclose(axis_inches(long), axis_inches(both), atol=.5)


@pytest.mark.filterwarnings('ignore:Attempting to set identical')
def test_an_empty_table_is_an_empty_plot():
    assert not point_intervals(FRAME[:0]).axes[0].get_yticks().size


def test_columns_and_rows_that_are_not_there():
    with pytest.raises(ValueError, match='no column error'): point_intervals(FRAME, low='error')
    with pytest.raises(ValueError, match="'frosen' is not a row"): point_intervals(FRAME, reference='frosen')


# ---- saving

@pytest.fixture
def noise():
    return image_grid([list(np.random.default_rng(0).integers(0, 255, (2, 120, 120, 3), dtype=np.uint8))], size=1.5)


def test_a_large_plot_gets_a_palette(tmp_path):
    log = [dict(step=s, **{f'loss {i}': np.sin(s*i) for i in range(6)}) for s in range(200)]
    plain = save_figure(loss_curves(log), tmp_path/'figures'/'curves.png', max_kb=1e6)
    with Image.open(tmp_path/'figures'/'curves.png') as picture: assert picture.mode != 'P'
    small = save_figure(loss_curves(log), tmp_path/'figures'/'curves.png', max_kb=plain - 1)
    with Image.open(tmp_path/'figures'/'curves.png') as picture: assert picture.mode == 'P'
    assert small < plain
    assert_allclose((tmp_path/'figures'/'curves.png').stat().st_size/1000, small)
    assert [p.name for p in (tmp_path/'figures').iterdir()] == ['curves.png']


def test_pictures_keep_their_colours(tmp_path, noise):
    save_figure(noise, tmp_path/'grid.png', max_kb=1)
    with Image.open(tmp_path/'grid.png') as picture: assert picture.mode != 'P'


def test_a_figure_that_is_too_large_is_reported(tmp_path, noise):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        kb = save_figure(noise, tmp_path/'grid.png')
    with pytest.warns(UserWarning, match='fewer or smaller'): save_figure(noise, tmp_path/'grid.png', warn_kb=kb - 1)


def test_other_kinds_are_written_as_they_are(tmp_path):
    save_figure(loss_curves(LOG), tmp_path/'curves.svg', max_kb=.001)
    assert (tmp_path/'curves.svg').read_text().startswith('<?xml')
