"""Greedy soups and experts of categories, by hand."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.search.soups import (
    Expert,
    Members,
    category_experts,
    correlation,
    expert_models,
    greedy_candidates,
    greedy_soup,
    ranked,
    task_groups,
)

Score = Callable[[Members], float | None]


def run(singles: list[float | None], score: Score) -> tuple[tuple[int, ...], float, int]:
    """Run a greedy soup to its end; return members, score, and how many averages were scored."""
    scores: dict[Members, float | None] = {}
    while (soup := greedy_soup(singles, scores)) is not None and soup.candidate is not None:
        assert soup.candidate not in scores
        scores[soup.candidate] = score(soup.candidate)
    assert soup is not None
    return soup.members, soup.score, len(scores)


def test_models_are_added_while_the_score_rises() -> None:
    table = {frozenset({1, 2}): 0.8, frozenset({0, 1, 2}): 0.7, frozenset({1, 2, 3}): 0.9}
    # Order: 1 (0.7), 2 (0.6), 0 (0.5), 3 (0.4). 0 is rejected, 3 is kept.
    assert run([0.5, 0.7, 0.6, 0.4], table.__getitem__) == ((1, 2, 3), 0.9, 3)


def test_the_best_single_model_stays_if_nothing_helps() -> None:
    assert run([0.5, 0.7, 0.6], lambda members: 0.69) == ((1,), 0.7, 2)
    assert run([0.5, 0.7, 0.6], lambda members: 0.7) == ((1,), 0.7, 2)  # equal is no rise


def test_failures_keep_a_model_out() -> None:
    table = {frozenset({0, 1}): None, frozenset({0, 2}): 2.0}
    assert run([1.0, 0.9, 0.8, None, math.nan], table.__getitem__) == ((0, 2), 2.0, 2)
    assert run([1.0, 0.9], lambda members: math.nan) == ((0,), 1.0, 1)
    assert greedy_soup([None, math.nan], {}) is None and greedy_soup([], {}) is None
    assert run([0.3], lambda members: 1.0) == ((0,), 0.3, 0)


def test_equal_scores_keep_the_given_order() -> None:
    assert ranked([0.5, 0.7, 0.7, 0.5]) == [1, 2, 0, 3]


scores_of_four = st.dictionaries(
    st.frozensets(st.integers(0, 3), min_size=2), st.floats(-1, 1) | st.none(), min_size=0
)
four = st.lists(st.floats(-1, 1), min_size=4, max_size=4)


@given(four, scores_of_four)
def test_never_worse_than_the_best_single_model(
    singles: list[float], table: dict[Members, float | None]
) -> None:
    members, score, count = run(list(singles), lambda wanted: table.get(wanted))
    assert score >= max(singles) and count == 3
    alone = {frozenset({i}): s for i, s in enumerate(singles)}
    assert score == {**table, **alone}[frozenset(members)]


@given(four, scores_of_four, st.integers(1, 8))
def test_workers_that_try_ahead_change_nothing(
    singles: list[float], table: dict[Members, float | None], workers: int
) -> None:
    expected = run(list(singles), lambda wanted: table.get(wanted))
    scores: dict[Members, float | None] = {}
    rounds = 0
    while candidates := greedy_candidates(list(singles), scores, workers):
        soup = greedy_soup(list(singles), scores)
        assert soup is not None and candidates[0] == soup.candidate
        assert len(candidates) <= workers and not set(candidates) & set(scores)
        scores |= {wanted: table.get(wanted) for wanted in candidates}
        rounds += 1
    soup = greedy_soup(list(singles), scores)
    assert soup is not None and (soup.members, soup.score) == expected[:2]
    assert rounds <= 3 and (workers < 7 or rounds == 1)  # 1 + 2 + 4 averages are all there are


def test_correlation() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 2, 3], [0.1, 0.1, 0.1]) == 0
    assert correlation([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0)
    # By hand: centered (-1, 0, 1) and (-1, 1, 0): 1 / 2.
    assert correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)


# Tasks: algebra and geometry rise together, code falls with them, chat is constant.
TABLE = [[0.9, 80, 0.1, 5], [0.5, 50, 0.4, 5], [0.2, 30, 0.9, 5]]


def test_groups_of_tasks() -> None:
    assert task_groups(TABLE) == [(0, 1), (2,), (3,)]
    assert task_groups(TABLE, 1.1) == [(0,), (1,), (2,), (3,)]
    assert task_groups(TABLE, -1) == [(0, 1, 2, 3)]


def test_groups_join_through_a_third_task() -> None:
    # Correlations: 0 and 1: 0.5, 1 and 2: 0.5, 0 and 2: -0.5.
    table = [[1, 1, 2], [2, 3, 3], [3, 2, 1]]
    assert task_groups(table, 0.49) == [(0, 1, 2)]


def test_experts() -> None:
    experts = category_experts(TABLE)
    assert experts == [Expert(0, (0, 1)), Expert(2, (2,)), Expert(0, (3,))]
    assert list(expert_models(experts)) == [0, 2]


def test_no_task_counts_more_for_its_scale() -> None:
    # Both tasks rise over the models; the first would win by the raw sum (0.2 + 100).
    table = [[0.2, 100], [0.9, 99], [0.1, 10]]
    assert task_groups(table, 0) == [(0, 1)]
    assert category_experts(table, 0)[0].model == 1


columns = st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=2, max_size=5)


@given(columns, st.floats(-1, 1))
def test_groups_are_a_partition_of_weakly_correlated_parts(
    table: list[list[float]], threshold: float
) -> None:
    groups = task_groups(table, threshold)
    assert sorted(task for group in groups for task in group) == [0, 1, 2]
    by_task = list(zip(*table, strict=True))
    for one in groups:
        for other in groups:
            if one != other:
                pairs = [(by_task[i], by_task[j]) for i in one for j in other]
                assert all(correlation(a, b) < threshold for a, b in pairs)
