"""Counter-based random numbers: a function of seed, tensor name, model number and element index.

Numbers are not drawn in sequence, so blocks, threads, ranks, resuming and devices cannot change a
mask: all steps are integer operations on 32 bits.

The index of an element is a run of 2^13 elements and a place in it. Each place has a fixed odd
word, each run an odd word of its own, and the number is their product: a multiplicative hash,
whose upper bits are as good as those of a full one, at one operation per element instead of six.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b, shake_128
from typing import TYPE_CHECKING

from ..method import Block, Tensor

if TYPE_CHECKING:
    import torch

RUN = 1 << 13
"""Elements per run: few enough for the words of its places to stay in a core's own cache."""

GROUP = 1024  # runs whose words are made together


@dataclass(frozen=True)
class RandomStream:
    """The random numbers of one tensor of one model."""

    key: bytes
    _words: dict[tuple[int, torch.device], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def of(seed: int, tensor: str, model: int) -> RandomStream:
        key = f"{seed}\0{model}\0{tensor}".encode()
        return RandomStream(blake2b(key, digest_size=16).digest())

    def words(self, block: Block) -> Tensor:
        """Return one odd number per element, uniform in −2^31 … 2^31: int32 in scratch memory."""
        import torch

        count = block.tensors[0].numel()
        words = block.scratch.take("words", count, "int32")
        places = _place_words(words.device)
        group, first = divmod(block.start, GROUP * RUN)
        if first % RUN == 0 and count % RUN == 0 and first + count <= GROUP * RUN:
            factors = self._run_words(group, places.device)[first // RUN : (first + count) // RUN]
            torch.mul(places, factors, out=words.view(-1, RUN))
            return words
        done = 0
        while done < count:
            run, place = divmod(block.start + done, RUN)
            length = min(count - done, RUN - place)
            factor = self._run_words(run // GROUP, places.device)[run % GROUP]
            torch.mul(places[place : place + length], factor, out=words[done : done + length])
            done += length
        return words

    def _run_words(self, group: int, device: torch.device) -> Tensor:
        """Return the words of a group's runs as a column on the device."""
        words = self._words.get((group, device))
        if words is None:
            words = _odd_words(self.key + group.to_bytes(8, "little"), GROUP)[:, None].to(device)
            self._words[group, device] = words
        return words


def stream_bytes(count: int) -> int:
    """Return the bytes that the numbers of `count` elements leave in memory."""
    return 2 * 4 * GROUP * (count // (GROUP * RUN) + 1)


def keep_bound(probability: float) -> int:
    """Return the bound that a word reaches or exceeds with the probability, to 2^-31."""
    return min(2**31 - 1, 2**31 - round(probability * 2**32))


def _odd_words(key: bytes, count: int) -> Tensor:
    """Return 32-bit words, uniform among the odd ones."""
    import torch

    raw = bytearray(shake_128(key).digest(4 * count))
    return torch.frombuffer(raw, dtype=torch.int32).bitwise_or_(1)


@cache
def _place_words(device: torch.device) -> Tensor:
    """Return the fixed word of every place, on the device."""
    return _odd_words(b"places", RUN).to(device)
