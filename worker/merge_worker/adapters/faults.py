"""The tensors of an adapter that cannot be applied to a base, and the reason of each. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..conversion.in_memory import InMemory
from ..errors import InputError
from ..messages import counted, first_names, printable
from ..tensors.source import StoredTensor

_WITH_PEFT = "merge it with PEFT: model.merge_and_unload().save_pretrained(…)"


@dataclass
class Faults:
    """The faults of an adapter: tensors without a place, copies of what is shared, shapes."""

    adapter: Path
    base: Path
    memory: InMemory
    unmatched: list[StoredTensor] = field(default_factory=list)
    apart: list[StoredTensor] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def mismatch(self, name: str, base: tuple[int, ...], adapter: tuple[int, ...]) -> None:
        shapes = f"{list(base)} in the base, {list(adapter)} in the adapter"
        self.mismatched.append(f"{printable(name)} is {shapes}")

    def refuse(self, short: Sequence[str], rows: int, more: int) -> None:
        """Raise InputError for all that was found; `short` tensors keep `rows` rows, not `more`."""
        changed = [t for t in self.unmatched if self.memory.is_changed(_module(t))]
        shared = [t for t in self.unmatched if self.memory.is_shared(_module(t))]
        known = {tensor.name for tensor in (*changed, *shared)}
        unknown = [tensor for tensor in self.unmatched if tensor.name not in known]
        begin, faults = f"{self.adapter}: ", []
        if unknown:
            fault = counted(len(unknown), "tensors of the adapter match nothing")
            faults.append(
                f"{begin}{fault} in {self.base}: {_names(unknown)}\n"
                f"  it was trained on another model, or on modules that the files hold otherwise, "
                f"or that share the weights of others; in the latter cases merge with PEFT: "
                f"model.merge_and_unload().save_pretrained(…)"
            )
        if changed:
            faults.append(
                f"{begin}adapts modules that the files of {self.base} hold in another order of "
                f"elements: {_names(changed)}\n  {_WITH_PEFT}"
            )
        if apart := [*self.apart, *shared]:
            faults.append(
                f"{begin}trains apart what modules of {self.base} share: {_names(apart)}\n"
                f"  one model cannot hold both, and PEFT's merge adds them up; load it with PEFT"
            )
        if self.mismatched:
            faults.append(f"{begin}does not fit {self.base}: {'; '.join(self.mismatched[:3])}")
        if short:
            faults.append(
                f"{begin}has {more} rows of tokens, but none for {first_names(short)} of "
                f"{self.base}, which has {rows}\n"
                f"  save the adapter with its head: save_embedding_layers=True"
            )
        if faults:
            raise InputError("\n".join(faults))


def _names(tensors: Sequence[StoredTensor]) -> str:
    return first_names([tensor.name for tensor in tensors])


def _module(tensor: StoredTensor) -> str:
    name = tensor.name.removeprefix("base_model.model.")
    return re.sub(r"(\.base_layer)*\.(lora_\w+(\..*)?|weight|bias)$", "", name)
