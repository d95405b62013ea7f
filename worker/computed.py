"""Buffers that old versions of transformers stored beside the weights. No torch.

Frequencies of positions and causal masks: models compute them, and new versions store none.
"""

from __future__ import annotations

import re

_ALWAYS = re.compile(r"(^|\.)(rotary\w*\.(inv_freq|\w+_cached)|(attn|attention)\.masked_bias)$")
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")


def is_computed(name: str, shape: tuple[int, ...]) -> bool:
    return bool(_ALWAYS.search(name) or (len(shape) == 4 and _MASK.search(name)))
