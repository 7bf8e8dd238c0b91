"""A stage of the data pipeline: stopped, shared, repaired and refused, always with the same bytes."""
import pytest
from PIL import Image

from tokencompose.core import write_json
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'ids.json', 'settings.json', 'squares.jsonl']


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
    with pytest.raises(ValueError, match='items'): run(tmp_path, Square(), dict(n0=0), settings=dict(power=2))
    with pytest.raises(ValueError, match='nothing to do'): run(tmp_path, Square(), {})


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
