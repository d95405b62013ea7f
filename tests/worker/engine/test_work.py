"""Ranks agree without talking: every block once, equal shares, whatever is done already."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.engine.work import cost, share
from merge_worker.errors import UsageError
from merge_worker.planning.step import Piece
from merge_worker.system.ranks import Rank, from_environment, rank_of
from support.recipes import step

PAIRS = [
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("BEAKER_REPLICA_RANK", "BEAKER_REPLICA_COUNT"),
]


@pytest.mark.parametrize(("number", "world"), PAIRS)
def test_launchers(number: str, world: str) -> None:
    assert from_environment({number: "2", world: "5"}) == Rank(2, 5)
    assert from_environment({number: "2"}) == Rank(0, 1), "half a pair is none"
    assert from_environment({number: "", world: ""}) == Rank(0, 1)
    for wrong in ("5", "-1", "x", "1.0"):
        with pytest.raises(UsageError, match=f"{number}={wrong} with {world}=5 is not a rank"):
            from_environment({number: wrong, world: "5"})


def test_the_first_launcher_counts() -> None:
    environment = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "RANK": "3", "WORLD_SIZE": "4"}
    assert from_environment(environment) == Rank(3, 4)
    assert from_environment({}) == Rank(0, 1)


@pytest.mark.parametrize(("number", "world"), PAIRS)
def test_ranks_are_asked_for(number: str, world: str, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {number: "2", world: "5"}
    assert rank_of("auto", environment) == Rank(2, 5)
    assert capsys.readouterr().err == ""
    assert rank_of(None, environment) == Rank()
    note = f"note: {number}=2 and {world}=5 are ignored, this process makes the whole merge"
    assert capsys.readouterr().err.startswith(note)
    assert rank_of(None, {number: "0", world: "1"}) == Rank()
    assert capsys.readouterr().err == "", "a job of one process"


counts = st.integers(0, 5000)
all_steps = st.lists(
    st.builds(step, counts, st.integers(1, 700), st.sampled_from([("F32",), ("BF16", "BF16")])),
    max_size=6,
)


@given(all_steps, st.integers(1, 9), st.data())
def test_every_block_that_is_left_is_done_once(
    steps: list[object], world: int, data: st.DataObject
) -> None:
    done: dict[int, list[Piece]] = {}
    left = set()
    for number, drawn in enumerate(steps):
        blocks = drawn.grid.blocks  # type: ignore[attr-defined]
        firsts = data.draw(st.sets(st.integers(0, max(0, blocks - 1)), max_size=3))
        if blocks:
            done[number] = [Piece(first, 1) for first in sorted(firsts)]
        left |= {(number, b) for b in range(blocks) if b not in firsts}
    handed_out = [
        (work.number, piece.first + i)
        for number in range(world)
        for work in share(steps, Rank(number, world), done)  # type: ignore[arg-type]
        for piece in work.todo
        for i in range(piece.blocks)
    ]
    assert len(handed_out) == len(set(handed_out))
    assert set(handed_out) == left


@pytest.mark.parametrize("world", [2, 7, 64])
def test_shares_are_balanced(world: int) -> None:
    # A model's mixture: many layers of a few shapes, an embedding as large as a share, norms.
    steps = [step(300_000_000, 1 << 17, ("BF16",) * 3)]
    for _ in range(60):
        steps += [step(count, 1 << 17, ("BF16",) * 3) for count in (16_777_216, 4096, 45_000_000)]
    costs = []
    for number in range(world):
        works = share(steps, Rank(number, world), {})
        costs.append(
            sum(cost(w.step) * p.blocks / w.step.grid.blocks for w in works for p in w.todo)
        )
    assert max(costs) <= 1.05 * sum(costs) / world


def test_more_ranks_than_blocks() -> None:
    steps = [step(10, 100, ("F32",))]
    assert sum(len(share(steps, Rank(n, 50), {})) for n in range(50)) == 1


def test_several_reads_cost_more() -> None:
    once, thrice = step(1000, 10, ("F32",)), step(1000, 10, ("F32",), reads=3)
    assert cost(once) == 8000 and cost(thrice) == 16_000
