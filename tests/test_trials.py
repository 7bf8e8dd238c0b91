"A trial is drawn by the recipe that its identity names."
import pytest

from tokencompose import trials
from tokencompose.profiles import get_profile
from tokencompose.reporting.records import recipe_of


@pytest.mark.parametrize('profile', ['mini', 'sd14'])
def test_pictures_are_drawn_by_the_recipe_of_the_identity(profile, monkeypatch, tmp_path):
    settings, given = get_profile(profile), {}
    monkeypatch.setattr(trials, 'sample_images', lambda *things, seed, **recipe: given.update(recipe))
    monkeypatch.setattr(trials, 'detect', lambda *things: None)
    monkeypatch.setattr(trials, 'found_array', lambda *things: None)
    trials.found_things(None, settings, dict(coco=[]), 1, tmp_path, None)
    assert given == dict(precision='no') | recipe_of(settings)
