"MultiGen scores as properties that hold for any detections, checked against a plain re-count."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokencompose.metrics.multigen import best_scores, draw_prompts, found_array, mg_result, mg_table, prompt_classes
from tokencompose.metrics.multigen import prompt_row, prompt_text, records_of, split_prompts

NAMES = [f'class {i}' for i in range(7)]
levels = st.sampled_from([0., .05, .1, .10001, .3, .5, .9, 1.])  # with the threshold itself and plenty of ties
quick = settings(max_examples=40, deadline=None)


@st.composite
def benchmarks(draw, sizes=st.integers(1, 5)):
    "Prompts of any sizes and one record of raw boxes for each (prompt, round)."
    objects = draw(st.lists(sizes, min_size=1, max_size=4))
    prompts = [prompt_row(i, NAMES[:n]) for i, n in enumerate(objects)]
    rounds = draw(st.integers(1, 3))
    def boxes(n): return draw(st.lists(st.lists(levels, min_size=n, max_size=n), max_size=4))
    records = [dict(prompt_id=i, round=r, scores=boxes(n)) for i, n in enumerate(objects) for r in range(rounds)]
    return prompts, records, rounds


def recount(prompts, records, threshold, k):
    "MG_k straight from its definition, box by box."
    hits = images = 0
    for record in records:
        n = prompts[record['prompt_id']]['num_objects']
        if n < k: continue
        seen = set()
        for box in record['scores']:
            label = max(range(n), key=lambda c: (box[c], -c))
            if box[label] > threshold: seen.add(label)
        images += 1
        hits += len(seen) >= k
    return 100*hits/images


@quick
@given(benchmarks(), st.sampled_from([0., .1, .3, .5]))
def test_table_is_the_plain_count(benchmark, threshold):
    prompts, records, rounds = benchmark
    table = mg_table(records, prompts, threshold, rounds, draws=20)
    for k in table.index: assert table.loc[k, 'mean'] == pytest.approx(recount(prompts, records, threshold, k))


@quick
@given(benchmarks(sizes=st.just(4)))
def test_mg_falls_with_k_and_with_the_threshold(benchmark):
    prompts, records, rounds = benchmark
    curves = np.array([mg_table(records, prompts, t, rounds, draws=20)['mean'] for t in (0., .1, .3, .5, .95)])
    assert (np.diff(curves, axis=0) <= 0).all() and (np.diff(curves, axis=1) <= 0).all()


@quick
@given(benchmarks(), st.randoms(use_true_random=False))
def test_order_of_records_and_prompts_does_not_matter(benchmark, random):
    prompts, records, rounds = benchmark
    expected = mg_result(records, prompts, rounds=rounds, draws=20)
    mixed, asked = list(records), list(prompts)
    random.shuffle(mixed); random.shuffle(asked)
    assert mg_result(mixed, asked, rounds=rounds, draws=20) == expected


@quick
@given(benchmarks())
def test_compact_records_score_the_same(benchmark):
    prompts, records, rounds = benchmark
    compact = [dict(prompt_id=r['prompt_id'], round=r['round'], best=best_scores(r['scores'], prompts[r['prompt_id']]['num_objects'])) for r in records]
    for threshold in (0., .1, .3): assert (found_array(compact, prompts, threshold, rounds) == found_array(records, prompts, threshold, rounds)).all()


@quick
@given(benchmarks())
def test_another_box_never_loses_a_class(benchmark):
    prompts, records, rounds = benchmark
    more = [r | dict(scores=r['scores'] + [[.4]*prompts[r['prompt_id']]['num_objects']]) for r in records]
    assert (found_array(more, prompts, .1, rounds) >= found_array(records, prompts, .1, rounds)).all()


@quick
@given(benchmarks(), st.data())
def test_an_incomplete_or_padded_set_is_refused(benchmark, data):
    prompts, records, rounds = benchmark
    i = data.draw(st.integers(0, len(records) - 1))
    with pytest.raises(ValueError, match='1 missing'): mg_table(records[:i] + records[i + 1:], prompts, rounds=rounds)
    with pytest.raises(ValueError, match='1 repeated'): mg_table(records + [records[i]], prompts, rounds=rounds)
    with pytest.raises(ValueError, match='1 surplus'): mg_table(records + [records[i] | dict(round=rounds)], prompts, rounds=rounds)


@quick
@given(benchmarks())
def test_std_is_over_rounds_and_rounds_average_to_the_mean(benchmark):
    prompts, records, rounds = benchmark
    table = mg_table(records, prompts, .1, rounds, draws=20)
    for k in table.index:
        by_round = [recount(prompts, [r for r in records if r['round'] == j], .1, k) for j in range(rounds)]
        assert table.loc[k, 'mean'] == pytest.approx(np.mean(by_round))
        assert table.loc[k, 'std'] == pytest.approx(np.sqrt(np.mean((np.array(by_round) - np.mean(by_round))**2)))


@quick
@given(st.integers(1, 7), st.integers(0, 5), st.integers(1, 7), st.sets(st.sampled_from(NAMES), min_size=2, max_size=2))
def test_drawn_prompts(objects, seed, count, pair):
    full = draw_prompts(NAMES, 1, seed, objects)
    allowed = [frozenset(prompt_classes(r)) for r in full]
    try: rows = draw_prompts(NAMES, count, seed, objects, exclude=[pair])
    except ValueError as error:  # seven classes with a banned pair: no set of 7, two of 6
        assert 'distinct sets exist' in str(error) and (objects == 7 or objects == 6 and count > 2)
        return
    sets = [frozenset(prompt_classes(r)) for r in rows]
    assert len(set(sets)) == count and all(len(s) == objects for s in sets + allowed)
    assert not any(pair <= s for s in sets)
    for row in rows: assert row['text'] == prompt_text(prompt_classes(row)) and row['text'].count('a class') == objects


@quick
@given(benchmarks(), st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=2), max_size=3))
def test_split_parts_add_up(benchmark, held_out):
    prompts, records, rounds = benchmark
    parts = split_prompts(prompts, held_out)
    assert sorted(r['unique_id'] for part in parts for r in part) == list(range(len(prompts)))
    total = sum(mg_table(records_of(records, p), p, rounds=rounds, ks=[1], draws=20).loc[1, 'mean']*len(p) for p in parts if p)
    assert total/len(prompts) == pytest.approx(mg_table(records, prompts, rounds=rounds, ks=[1], draws=20).loc[1, 'mean'])
