"""Random numbers by counting: a function of seed, tensor name, model number and element index.

Nothing is drawn in an order, so blocks, threads, ranks, resumption and devices cannot change a
mask: all steps are integer operations on 32 bits.

The index of an element is a run of 2^13 and a place in it. Places have fixed odd words, a run has
an odd word of its own, and the number is their product: a multiplicative hash, of which the upper
bits are as good as those of a full one, at one operation per element instead of six.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, shake_128
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..method import Block


RUN = 1 << 13
"""Small enough for the words of its places to stay in a core's own cache."""

GROUP = 1024
"""Runs whose words are made together."""

_places: dict[torch.device, Tensor] = {}


@dataclass(frozen=True)
class Stream:
    """The numbers of one tensor of one model."""

    key: bytes
    _factors: dict[tuple[int, int, torch.device], Sequence[Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def of(seed: int, tensor: str, model: int) -> Stream:
        return Stream(blake2b(f"{seed}\0{model}\0{tensor}".encode(), digest_size=16).digest())

    def words(self, block: Block) -> Tensor:
        """Whole numbers from -2^31 to 2^31, uniform and odd: int32 in scratch, one per element."""
        import torch

        count = block.tensors[0].numel()
        words = block.scratch.take("words", count, "int32")
        places = _places_on(words.device)
        group, first = divmod(block.start, GROUP * RUN)
        if first % RUN == 0 and count % RUN == 0 and first + count <= GROUP * RUN:
            factors = self._factors_of(group, count // RUN, places.device)
            if first % count == 0:
                torch.mul(places, factors[first // count], out=words.view(-1, RUN))
                return words
        done = 0
        while done < count:
            run, place = divmod(block.start + done, RUN)
            here = min(count - done, RUN - place)
            factor = self._factors_of(run // GROUP, 1, places.device)[run % GROUP][0]
            torch.mul(places[place : place + here], factor, out=words[done : done + here])
            done += here
        return words

    def _factors_of(self, group: int, runs: int, device: torch.device) -> Sequence[Tensor]:
        """The words of its runs, so many at a time, as columns on the device."""
        found = self._factors.get((group, runs, device))
        if found is None:
            words = _odd_words(self.key + group.to_bytes(8, "little"), GROUP)[:, None].to(device)
            found = self._factors[group, runs, device] = words.split(runs)  # type: ignore[no-untyped-call]
        return found


def least(probability: float) -> int:
    """A word is at least this with the probability, to 2^-31."""
    return min(2**31 - 1, 2**31 - round(probability * 2**32))


def _odd_words(key: bytes, count: int) -> Tensor:
    """32-bit words, uniform among the odd ones."""
    import torch

    raw = bytearray(shake_128(key).digest(4 * count))
    return torch.frombuffer(raw, dtype=torch.int32).bitwise_or_(1)


def _places_on(device: torch.device) -> Tensor:
    """One fixed word per place, on the device; made once per process."""
    found = _places.get(device)
    if found is None:
        found = _places[device] = _odd_words(b"places", RUN).to(device)
    return found
