"""Files of text as pieces of token ids, by the tokenizer of the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..inference.texts import encode, read_samples, read_tokenizer
from ..tokenizer.files import SideFiles
from .pieces import Data, split


def read_data(folder: Path, files: Sequence[str], length: int, remote: bool) -> Data:
    """Return the texts of files in pieces of at most `length` tokens. Raises InputError.

    Of a prompt with a completion, only tokens of the completion count.
    """
    samples = [sample for file in files for sample in read_samples(Path(file).expanduser())]
    tokenizer = read_tokenizer(SideFiles(folder), str(folder), remote)
    encoded = (encode(sample, tokenizer) for sample in samples)
    names = tuple(Path(file).name for file in files)
    pairs = ((sample.ids, sample.counted) for sample in encoded)
    return replace(split(pairs, length, ", ".join(names)), files=names)
