"""Interprets the pickle opcodes that build dicts of tensors, and refuses all others.

Names of Python objects stay names: nothing is imported or called, whatever a pickle asks for. A
`Language` says which names a kind of file may have.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..messages import printable

STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in (
        ("Double", "float64"),
        ("Float", "float32"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("Long", "int64"),
        ("Int", "int32"),
        ("Short", "int16"),
        ("Char", "int8"),
        ("Byte", "uint8"),
        ("Bool", "bool"),
        ("ComplexFloat", "complex64"),
    )
} | {"torch.storage UntypedStorage": ""}
"""Dtypes by the class that stands for them in a pickle."""

MOST_EXTENTS, MOST_ELEMENTS = 64, 1 << 63
MOST_OPERATIONS = 2_000_000
"""Opcodes, and entries that calls copy: a tensor takes about thirty. Keys of dicts and of the memo
are below LARGEST_KEY, so that no two of them have one hash."""

LARGEST_KEY = (1 << 61) - 2


class Refused(Exception):
    """A pickle does what no list of tensors needs; the text says what."""


class Global(NamedTuple):
    """The name of a Python object: module, space, name."""

    name: str


class Storage(NamedTuple):
    """A run of bytes of the file: the member `data/KEY`."""

    dtype: str
    key: str


class Rebuilt(NamedTuple):
    """A tensor: where it begins in its storage (elements), and how it lies there."""

    storage: Storage
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Instance:
    """An object of a class whose name is known, with the state that its pickle gives it."""

    __slots__ = ("name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


class Language(NamedTuple):
    """The words that the pickles of one kind of file may have.

    `calls` are the names that may be called, with what stands for the call; `classes` those that
    may have instances; `most` is the number of opcodes, and of entries that calls copy.
    """

    calls: Mapping[str, Callable[..., Any]]
    classes: frozenset[str]
    most: int


def build(data: bytes, language: Language | None = None) -> Any:
    """Return the value that a pickle describes, in the language of tensors or another.

    Raises Refused.
    """
    machine = _Machine(language or TENSORS)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.count(1)
            machine.do(opcode.name, argument)
            if opcode.name == "STOP":
                break
        return machine.stack[-1]
    except Refused:
        raise
    except Exception:  # any garbage may follow any other
        raise Refused("its pickle is damaged") from None


class _Machine:
    """A stack of values, the places of its marks, and a memo of values used again."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.operations = 0

    def count(self, operations: int) -> None:
        self.operations += operations
        if self.operations > self.language.most:
            raise Refused("its pickle is too large for a list of tensors")

    def do(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(_PUSHED[name]() if argument is None else argument)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                if type(name) is not str or type(module) is not str:
                    raise Refused("its pickle is damaged")
                argument = f"{module} {name}"
            self.stack.append(self.known(str(argument)))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise Refused(f"its pickle has the operation {name}, which no tensor needs")

    def known(self, name: str) -> Global:
        plain = name.startswith("torch ") and name[6:].islower() and name[6:].isalnum()
        dtype = plain or name.startswith("torch float8_")
        own = name in self.language.calls or name in self.language.classes
        if not (dtype or own or name in STORAGES):
            raise Refused(f"its pickle asks for '{printable(name.replace(' ', '.'))}'")
        return Global(name)

    def marked(self) -> list[Any]:
        """Pop and return the values pushed since the last mark."""
        return self.last(len(self.stack) - self.marks.pop())

    def last(self, count: int) -> list[Any]:
        start = max(0, len(self.stack) - count)
        values, self.stack[start:] = self.stack[start:], []
        return values

    def put(self, key: int | None = None) -> None:
        if key is not None and not 0 <= key <= LARGEST_KEY:
            raise Refused("its pickle is damaged")
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        pairs = _pairs(zip(items[::2], items[1::2], strict=True))
        if type(self.stack[-1]) is dict:
            self.stack[-1].update(pairs)

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)

    def storage(self) -> None:
        """Push the storage of a persistent id: ('storage', class, key, device, count)."""
        kind, form, key = self.stack.pop()[:3]
        if kind != "storage" or form.name not in STORAGES or not isinstance(key, str):
            raise Refused("its pickle refers to something other than a tensor storage")
        self.stack.append(Storage(STORAGES[form.name], key))

    def call(self) -> None:
        """Push what a known name makes of its arguments, without calling what it names."""
        function, arguments = self.last(2)
        self.count(sum(len(value) for value in arguments if isinstance(value, list | tuple | dict)))
        self.stack.append(self.language.calls[function.name](*arguments))

    def create(self) -> None:
        """Push an instance of a known class, whatever its arguments are."""
        kind, _ = self.last(2)
        if kind.name not in self.language.classes:
            raise Refused(f"its pickle asks for '{printable(kind.name.replace(' ', '.'))}'")
        self.stack.append(Instance(kind.name))

    def set_state(self) -> None:
        """Give an instance its state; that of a dict, versions of modules, is dropped."""
        (state,) = self.last(1)
        if type(self.stack[-1]) is Instance:
            self.stack[-1].state = state


def _tensor(storage: Storage, first: int, shape: Any, strides: Any, *more: Any) -> Rebuilt:
    typed = len(more) > 2 and type(more[2]) is Global
    dtype = more[2].name.removeprefix("torch ") if typed else storage.dtype
    # A product of many long numbers would take all memory.
    fit = len(shape) == len(strides) <= MOST_EXTENTS and all(
        type(n) is int and 0 <= n < MOST_ELEMENTS for n in (first, *shape, *strides)
    )
    if not fit:
        raise Refused("its pickle has a tensor of impossible shape")
    return Rebuilt(storage, dtype, first, tuple(shape), tuple(strides))


def _pairs(items: Any = ()) -> dict[Any, Any]:
    # Other keys would be hashed: tuples of the same tuples, twenty deep, without an end.
    return {key: value for key, value in items if _is_key(key)}


def _is_key(key: object) -> bool:
    # An instance has the hash of its address.
    known = type(key) in (str, Instance)
    return known or (type(key) is int and 0 <= key <= LARGEST_KEY)


_MADE: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _pairs,
    "torch Size": tuple,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    "torch._utils _rebuild_parameter_with_state": lambda data, *_: data,
}

TENSORS = Language(_MADE, frozenset(), MOST_OPERATIONS)
"""Files of torch.save."""

_PUSHED: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"), int),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"), str),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING", "STRING"), str),
    **dict.fromkeys(("BINFLOAT", "FLOAT"), float),
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}

_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
    "MARK": lambda m, a: m.marks.append(len(m.stack)),
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.marked(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.marked())),
    "TUPLE1": lambda m, a: m.stack.append(tuple(m.last(1))),
    "TUPLE2": lambda m, a: m.stack.append(tuple(m.last(2))),
    "TUPLE3": lambda m, a: m.stack.append(tuple(m.last(3))),
    "LIST": lambda m, a: m.stack.append(m.marked()),
    "DICT": lambda m, a: m.stack.append(_pairs(zip(*[iter(m.marked())] * 2, strict=True))),
    "SETITEM": lambda m, a: m.set_items(m.last(2)),
    "SETITEMS": lambda m, a: m.set_items(m.marked()),
    "APPEND": lambda m, a: m.append(m.last(1)),
    "APPENDS": lambda m, a: m.append(m.marked()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a: m.put(a)),
    "MEMOIZE": lambda m, a: m.put(),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.stack.append(m.memo[a])),
    "BINPERSID": lambda m, a: m.storage(),
    "REDUCE": lambda m, a: m.call(),
    "NEWOBJ": lambda m, a: m.create(),
    "BUILD": lambda m, a: m.set_state(),
}
