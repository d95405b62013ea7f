import itertools
import math
import random

import pytest
import torch

from merge_worker.algorithms.tree_sum import TreeSum
from merge_worker.engine.buffers import Pool
from merge_worker.method import Block

SCRATCH = Pool(torch.device("cpu"))


def block(number: int, count: int, size: int) -> Block:
    elements = min(size, count - number * size)
    return Block([torch.zeros(elements)], number * size, SCRATCH)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 8, 13, 100])
@pytest.mark.parametrize("last", [1, 4])
def test_the_order_of_arrival_changes_no_bit(blocks: int, last: int) -> None:
    count = (blocks - 1) * 4 + last
    parts = [torch.randn(3, 3, dtype=torch.float64) for _ in range(blocks)]
    sums = []
    for seed in range(5):
        total, order = TreeSum(count), list(range(blocks))
        random.Random(seed).shuffle(order)
        for number in (*order, *order[: seed % 2]):  # a block that is repeated counts once
            total.add(block(number, count, 4), parts[number].clone())
        sums.append(total.total())
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(sums))  # type: ignore[arg-type]
    assert torch.allclose(sums[0], torch.stack(parts).sum(0))  # type: ignore[arg-type]


def test_few_parts_wait() -> None:
    blocks, lanes = 4096, 4
    total, most = TreeSum(4 * blocks), 0
    runs = [iter(range(i * blocks // lanes, (i + 1) * blocks // lanes)) for i in range(lanes)]
    for numbers in zip(*runs, strict=True):
        for number in numbers:
            total.add(block(number, 4 * blocks, 4), torch.ones(()))
        most = max(most, len(total._waiting))
    assert most <= lanes * math.log2(blocks)
    assert total.total() == blocks


def test_no_blocks_have_no_sum() -> None:
    assert TreeSum(0).total() is None
