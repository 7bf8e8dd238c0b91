"""A stage of the data pipeline: stopped, shared, repaired and refused, always with the same bytes."""
import pytest
from PIL import Image

from tokencompose.core import write_json, write_jsonl
from tokencompose.data.stages import batches, picture_or_reason, read_stage, run_stage

NUMBERS = {f'n{x}': x for x in range(5)}
SQUARES = [dict(value=x*x) for x in range(5)]


class Square:
    "Squares numbers and remembers its calls; numbers that are broken have an error, at others it is interrupted."
    def __init__(self, broken=(), stops=()): self.calls, self.broken, self.stops = [], set(broken), set(stops)

    def __call__(self, items):
        if self.stops & set(items): raise KeyboardInterrupt
        self.calls.append(items)
        return [dict(error='it is broken') if x in self.broken else dict(value=x*x) for x in items]


def run(folder, work, items=NUMBERS, settings=None, batch=2, **options): return run_stage(folder, 'squares', items, work, settings or {}, batch, **options)


@pytest.fixture
def whole(tmp_path):
    run(tmp_path/'whole', Square())
    return (tmp_path/'whole'/'squares.jsonl').read_bytes()


def test_batches_by_position():
    assert batches([7, 8, 9], 2) == [[7, 8], [9]] and batches([], 2) == []
    with pytest.raises(ValueError, match='batch: expected at least 1, got 0'): batches([1], 0)


def test_nothing_is_done_twice(tmp_path):
    work = Square()
    assert run(tmp_path, work) == SQUARES and work.calls == [[0, 1], [2, 3], [4]]
    assert run(tmp_path, work) == SQUARES and len(work.calls) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', '.working-0.lock', 'keys.json', 'settings.json', 'squares.jsonl']


@pytest.mark.parametrize('stop, done', [(1, []), (3, ['n0', 'n1']), (4, ['n0', 'n1', 'n2', 'n3'])])
def test_stopped_it_takes_up_there(tmp_path, whole, stop, done):
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'out', Square(stops=[stop]))
    assert sorted(p.stem for p in (tmp_path/'out'/'.records').glob('*.json')) == done
    work = Square()
    run(tmp_path/'out', work)
    assert work.calls == [[0, 1], [2, 3], [4]][len(done)//2:] and (tmp_path/'out'/'squares.jsonl').read_bytes() == whole


def test_a_batch_with_a_lost_record_is_done_again_whole(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'out', Square(stops=[4]))
    (tmp_path/'out'/'.records'/'n1.json').unlink()
    work = Square()
    run(tmp_path/'out', work)
    assert work.calls == [[0, 1], [4]] and (tmp_path/'out'/'squares.jsonl').read_bytes() == whole


@pytest.mark.parametrize('ranks', [(0, 1), (1, 0)])
def test_the_last_process_joins(tmp_path, whole, ranks):
    first = run(tmp_path/'out', Square(), share=(ranks[0], 2))
    assert [r['value'] for r in first] == ([0, 1, 16], [4, 9])[ranks[0]] and not (tmp_path/'out'/'squares.jsonl').exists()
    assert run(tmp_path/'out', Square(), share=(ranks[1], 2)) == SQUARES
    assert (tmp_path/'out'/'squares.jsonl').read_bytes() == whole


def test_the_share_comes_from_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    work = Square()
    run(tmp_path, work)
    assert work.calls == [[2, 3]]


def test_an_error_is_tried_again_and_nothing_else(tmp_path, whole):
    assert run(tmp_path/'out', Square(broken=[3]))[3] == dict(error='it is broken') and (tmp_path/'out'/'squares.jsonl').exists()
    work = Square()
    assert run(tmp_path/'out', work) == SQUARES and work.calls == [[2, 3]]
    assert (tmp_path/'out'/'squares.jsonl').read_bytes() == whole and not (tmp_path/'out'/'.records').exists()


def test_other_settings_other_items_and_no_items_are_refused(tmp_path):
    run(tmp_path, Square(), settings=dict(power=2))
    with pytest.raises(ValueError, match=r'other settings \(power: 2 there, 3 now\)'): run(tmp_path, Square(), settings=dict(power=3))
    with pytest.raises(ValueError, match='made of other images: none of the 5 is still the same'): run(tmp_path, Square(), dict(m0=0), settings=dict(power=2))
    with pytest.raises(ValueError, match='nothing to do'): run(tmp_path, Square(), {})


def test_only_what_is_new_or_changed_is_done_again(tmp_path, capsys):
    run(tmp_path, Square(), inputs=NUMBERS, batch=1)
    capsys.readouterr()
    changed, work = {'n0': 0, 'n7': 7, 'n1': 11, 'n2': 2, 'n3': 3}, Square()
    assert run(tmp_path, work, changed, inputs=changed, batch=1) == [dict(value=v*v) for v in changed.values()] and work.calls == [[7], [11]]
    assert 'squares: 1 changed (n1); 1 new (n7); 1 no longer asked for (n4). The others are kept.' in capsys.readouterr().out
    again = Square()
    assert run(tmp_path, again, NUMBERS, inputs=NUMBERS, batch=1) == SQUARES and again.calls == [[1]], 'what was not asked for is still there'
    assert run(tmp_path, again, dict(list(NUMBERS.items())[:2]), inputs=NUMBERS, batch=1) == SQUARES[:2] and len(again.calls) == 1
    assert run(tmp_path, again, NUMBERS, inputs=NUMBERS, batch=1) == SQUARES and len(again.calls) == 1


def test_a_list_that_changed_is_not_read_before_it_is_done(tmp_path):
    run(tmp_path, Square(), inputs=NUMBERS, batch=1)
    with pytest.raises(KeyboardInterrupt): run(tmp_path, Square(stops=[9]), NUMBERS | dict(n9=9), inputs=NUMBERS | dict(n9=9), batch=1)
    with pytest.raises(FileNotFoundError, match='run it again'): read_stage(tmp_path, 'squares', 'it')


def test_names_of_any_kind_are_ids(tmp_path):
    odd = {'10_cat/photo 0.png': 2, '..': 3, 'é': 4, 'a'*300: 5}
    assert run(tmp_path, Square(), odd, batch=3) == [dict(value=v*v) for v in odd.values()]
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'cut', Square(stops=[5]), odd, batch=3)
    assert len(list((tmp_path/'cut'/'.records').iterdir())) == 3 and run(tmp_path/'cut', Square(), odd, batch=3)[3] == dict(value=25)


def test_a_folder_of_an_earlier_version_is_taken_as_it_is(tmp_path, capsys):
    write_json(tmp_path/'settings.json', dict(items='5 with digest 1'))
    write_json(tmp_path/'ids.json', list(NUMBERS))
    write_jsonl(tmp_path/'squares.jsonl', SQUARES)
    work = Square()
    assert run(tmp_path, work, inputs=NUMBERS) == SQUARES and not work.calls
    write_json(tmp_path/'.records'/'n1.json', dict(value=100))                     # half of a run, as it was then
    assert run(tmp_path, work, inputs=NUMBERS)[1] == dict(value=100) and not work.calls


def test_a_process_that_shares_says_so(tmp_path, capsys):
    run(tmp_path, Square(), share=(0, 2))
    assert 'process 0 of 2 has done its part, 3 of 5 images are done' in capsys.readouterr().out


def test_too_few_records_are_noticed(tmp_path):
    with pytest.raises(ValueError): run(tmp_path, lambda items: [dict(value=1)])


def test_reading_a_stage(tmp_path):
    run(tmp_path, Square())
    assert read_stage(tmp_path, 'squares', 'the squares') == SQUARES
    with pytest.raises(FileNotFoundError, match=r'nouns.jsonl: run data_prep/02_tag_nouns.ipynb\.'): read_stage(tmp_path, 'nouns', 'data_prep/02_tag_nouns.ipynb')
    write_json(tmp_path/'begun'/'.records'/'1.json', {})
    with pytest.raises(FileNotFoundError, match=r'nouns.jsonl \(1 images are done\): run it again, it goes on where it stopped\.'): read_stage(tmp_path/'begun', 'nouns', 'it')


def test_a_picture_or_the_reason(tmp_path):
    Image.new('L', (3, 2)).save(tmp_path/'good.png')
    (tmp_path/'torn.png').write_bytes(b'no picture')
    image, reason = picture_or_reason(tmp_path, 'good.png')
    assert (image.mode, image.size, reason) == ('RGB', (3, 2), '')
    for name in ('torn.png', 'lost.png'):
        image, reason = picture_or_reason(tmp_path, name)
        assert image is None and name in reason and str(tmp_path) not in reason
