"Scores of a map against a mask: undefined ones, constant maps, ties, and pairs that do not belong together."
import pytest
import torch

from tokencompose.metrics.overlap import average_precision, best_iou, grounding_table, map_iou, mass_inside

MAPS, LEFT = torch.tensor([[[.6, .2], [.1, .1]]]), torch.zeros(1, 4, 4)
LEFT[:, :, :2] = 1
LINE, MASK = torch.tensor([[[.9, .5, .3, .1]]]), torch.tensor([[[1, 0, 1, 0]]])
QUARTER = torch.zeros(1, 4, 4)
QUARTER[:, :2, :2] = 1


def random_pairs():
    rng = torch.Generator().manual_seed(0)
    return torch.rand(3, 4, 4, generator=rng), torch.rand(3, 12, 20, generator=rng) > .6


@pytest.mark.parametrize('score', [mass_inside, map_iou, best_iou, average_precision])
def test_an_empty_mask_has_no_score(score):
    assert score(MAPS, torch.zeros(1, 4, 4)).isnan().all()


def test_mass_of_a_map_without_attention_is_undefined():
    assert mass_inside(MAPS*0, LEFT).isnan().all()


def test_mass_does_not_depend_on_the_scale():
    torch.testing.assert_close(mass_inside(MAPS*1e-6, LEFT), mass_inside(MAPS, LEFT))


def test_mass_spreads_each_cell_over_its_pixels():
    maps, masks = random_pairs()
    big = maps.repeat_interleave(3, 1).repeat_interleave(5, 2)
    torch.testing.assert_close(mass_inside(maps, masks), (big*masks).sum((1, 2))/big.sum((1, 2)))


def test_pairs_that_do_not_belong_together():
    maps, masks = random_pairs()
    with pytest.raises(ValueError, match='same N'): mass_inside(maps, masks[:2])
    with pytest.raises(ValueError, match='goes down to'): mass_inside(maps - 1, masks)
    with pytest.raises(ValueError, match='1 of 3 maps'): mass_inside(maps.index_fill(0, torch.tensor([1]), torch.nan), masks)


def test_a_constant_map_says_nothing():
    assert map_iou(torch.full((1, 2, 2), .3), torch.ones(1, 8, 8)).tolist() == [[0, 0, 0]]
    flat = torch.full((1, 3, 3), .2)
    for score in (average_precision, best_iou): torch.testing.assert_close(score(flat, QUARTER), torch.tensor([.25]))


def test_equal_values_come_up_together():
    tie = torch.tensor([[[.9, .3, .3, .1]]])
    torch.testing.assert_close(average_precision(tie, MASK), torch.tensor([5/6]))
    torch.testing.assert_close(best_iou(tie, MASK), torch.tensor([2/3]))


def test_a_perfect_map():
    for score in (best_iou, average_precision): torch.testing.assert_close(score(QUARTER, QUARTER), torch.tensor([1.]))


def test_the_order_of_the_pairs_does_not_matter():
    scores = torch.tensor([.2, .4, .9, torch.nan])
    table = grounding_table(dict(mass=scores), ['a', 'a', 'b', 'b'])
    again = grounding_table(dict(mass=scores[[3, 1, 2, 0]]), ['b', 'a', 'b', 'a'])
    assert (table.values == again.values).all()


def test_bad_tables():
    with pytest.raises(ValueError, match='4 scores but 3 image ids'): grounding_table(dict(mass=torch.rand(4)), ['a', 'a', 'b'])
    with pytest.raises(ValueError, match='every mask is empty'): grounding_table(dict(mass=[float('nan')]), ['a'])
