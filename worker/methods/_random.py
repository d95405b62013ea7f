"""Random numbers by counting: a function of seed, tensor name, model number and element index.

Nothing is drawn in an order, so blocks, threads, ranks, resumption and devices cannot change a
mask: all steps are integer operations on 32 bits, and one rounding to float32 that IEEE fixes.

The index of an element is a run of 2^15 and a place in it. The places have fixed, well mixed words;
a run has two words of its own from a 64-bit mixer, one to xor in and an odd one to multiply with.
Two operations per element instead of the six of a full hash, whose upper 24 bits are as good.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ._define import Block

RUN = 1 << 15
"""Small enough for the words of its places to stay in a core's own cache."""

GROUP = 64
"""Runs whose words are made together."""

_WORD = (1 << 64) - 1

_places: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Stream:
    """The numbers of one tensor of one model."""

    key: int
    _words: dict[int, list[tuple[Tensor, Tensor]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def of(seed: int, tensor: str, model: int) -> Stream:
        digest = blake2b(f"{seed}\0{model}\0{tensor}".encode(), digest_size=8).digest()
        return Stream(int.from_bytes(digest, "little"))

    def fill(self, block: Block, out: Tensor) -> Tensor:
        """`out` (flat, float32) = uniform numbers in [-2^31, 2^31], one per element of `block`."""
        import torch

        count, done = out.numel(), 0
        words = block.scratch.take("words", count, "int32")
        places = _words_of_places(str(out.device))
        while done < count:
            run, place = divmod(block.start + done, RUN)
            here = min(count - done, RUN - place)
            xor, factor = self._words_of_run(run)
            part = words[done : done + here]
            torch.bitwise_xor(places[place : place + here], xor, out=part)
            part.mul_(factor)
            done += here
        return out.copy_(words)

    def _words_of_run(self, run: int) -> tuple[Tensor, Tensor]:
        """Two 32-bit words, the second odd; of several runs at a time, and kept."""
        import torch

        group, number = divmod(run, GROUP)
        found = self._words.get(group)
        if found is None:
            mixed = [
                _mix((self.key + own * 0x9E3779B97F4A7C15) & _WORD)
                for own in range(group * GROUP, (group + 1) * GROUP)
            ]
            words = [(_signed(m & 0xFFFFFFFF), _signed(m >> 32 | 1)) for m in mixed]
            xors, factors = torch.tensor(words, dtype=torch.int32).unbind(1)
            found = list(zip(xors.unbind(), factors.unbind(), strict=True))
            self._words[group] = found
        return found[number]


def above(probability: float) -> float:
    """A number of `Stream.fill` is larger than this with the probability, to 2^-24."""
    # Of float32, so that comparisons in float32 and in float64 agree.
    (bound,) = struct.unpack("<f", struct.pack("<f", 2.0**31 * (1.0 - 2.0 * probability)))
    return float(bound)


def _mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _WORD
    return x ^ x >> 31


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _words_of_places(device: str) -> Tensor:
    """One fixed 32-bit word per place, on the device; made once per process."""
    import torch

    found = _places.get(device)
    if found is None:
        word = torch.arange(1, RUN + 1, dtype=torch.int64)
        # In 64 bits, so that no product overflows: 31-bit factors on 32-bit words.
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            word = ((word ^ word >> shift) * factor) & 0xFFFFFFFF
        word = word ^ word >> 15
        signed = torch.where(word >> 31 == 1, word - (1 << 32), word)
        found = _places[device] = signed.to(torch.int32).to(device)
    return found
