"""What each stage of the paper's profiles needs, counted from shapes, against the promises that the profiles make."""
import pytest
import torch

from tokencompose.memory import batch_of, detector_stage, memory_table, Peak, peak_of, PeakMemory, read_table, STAGES, training_table
from tokencompose.profiles import get_profile

PROMISED = dict(sd14=24, sd21=48)  # GB, 04_profiles


@pytest.mark.parametrize('profile', PROMISED)
def test_every_stage_fits_the_card_that_the_profile_promises(profile):
    "The committed table: all stages, at the profile's own batches."
    settings, table = get_profile(profile), read_table(profile)
    assert list(table.index) == list(STAGES)
    for name, (_, _, batch) in STAGES.items(): assert table.batch[name] == batch_of(settings, batch), f'{name}: make the table again, python -m tokencompose.memory --profile {profile}'
    assert set(table[f'fits {PROMISED[profile]}']) == {'yes'}, table.GiB
    training = read_table(profile, training=True)
    own = dict(no='float32', bf16='bf16')[settings.mixed_precision], settings.gradient_checkpointing, '1 x 4', False
    assert training.GiB[own] == pytest.approx(table.GiB['train'], abs=.01), 'both tables tell of the same update'
    assert training.fits[own] in {f'{card} GB' for card in (12, 16, 24, 48) if card <= PROMISED[profile]}
    by_option = training.GiB
    assert (by_option.xs(True, level='average') > by_option.xs(False, level='average')).all()
    assert (by_option.xs(True, level='checkpointing') <= by_option.xs(False, level='checkpointing')).all()


def test_the_judge_as_the_library_has_it():
    "The numbers that were found with tables of all pairs of patches: 4.4 GiB for one picture, 14.4 for 4, 54.3 for 16."
    peak = peak_of(detector_stage, get_profile('sd14').replace(judge_precision='no'), 4, blocks=False)
    assert [peak.at(batch) for batch in (1, 4, 16)] == pytest.approx([4.4, 14.4, 54.3], abs=.8)
    assert not peak.fits(8, 24) and peak.most(24) < 8


def test_the_committed_table_is_what_the_code_counts():
    table = memory_table(get_profile('sd14'), ['judge: MultiGen', 'judge: VISOR'])
    for name in table.index: assert table.GiB[name] == pytest.approx(read_table('sd14').GiB[name], abs=.01)


def test_small_batches_say_nothing_about_large_ones():
    "Weights, gradients and moments are the peak of one picture, what the way back needs that of many: a line through one and two would err."
    peak = Peak({1: 10, 2: 10, 8: 34})
    assert peak.each == 4 and peak.at(16)*2**30 == pytest.approx(66) and peak.at(5)*2**30 == pytest.approx(22)


def test_what_nobody_holds_is_free_again_and_views_are_not_counted_twice():
    with PeakMemory() as memory:
        kept = torch.zeros(1000)
        for _ in range(3): torch.zeros(5000).view(50, 100).t()
        torch.cat([kept, kept])
        assert memory.live == 4000
    assert memory.peak == 4000 + 20_000


def test_options_of_a_small_training():
    table = training_table(get_profile('mini'), cards=(1, 24)).GiB
    assert table['float32', False, '1 x 4', False] > table['float32', False, '4 x 1', False], 'four pictures one by one need less at once'
    assert (table.xs(True, level='checkpointing') < table.xs(False, level='checkpointing')).any()
