"""Declaration of merge methods, and the protocol between methods and engine. Imports no torch.

A method is a short function in a file of its name. Its keyword-only parameters are the schema of
the recipe: `list[float]` is one value per model in recipe order, a scalar is shared by all models.
Its positional parameters are supplied by its algorithm (see the module of the algorithm).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .errors import UsageError, WorkerError
from .messages import counted

if TYPE_CHECKING:
    from torch import Tensor as Tensor  # for the modules of methods, which import no torch either

    from .dtypes import DType
else:
    Tensor = Any

T = TypeVar("T")


class BaseRole(Enum):
    """The role of `base_model`."""

    IGNORED = "ignored"  # a base named in the recipe is merged like the models
    OPTIONAL = "optional"
    REQUIRED = "required"


class Granularity(Enum):
    """The smallest unit of a tensor that can be merged on its own."""

    ELEMENT = "element"
    ROW = "row"  # a row: all elements with one index on the first axis
    MATRIX = "matrix"  # see matrix_shape; tensors without matrices are split by element
    TENSOR = "tensor"


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return rows and columns of the matrices in a tensor; None if it holds none.

    A matrix is a tensor of two axes, or each entry on the first of three axes, as experts are
    stacked. A tensor of three axes with one of the last two shorter than 8 is a convolution's.
    """
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3 and min(shape[1:]) >= 8:
        return shape[1], shape[2]
    return None


@dataclass(frozen=True)
class Parameter:
    """An entry of a method's schema. `default` is None if the recipe must give a value."""

    name: str
    type: type
    per_model: bool
    default: object = None

    @property
    def required(self) -> bool:
        return self.default is None


@dataclass(frozen=True)
class Task:
    """An output tensor as its method sees it: parameters resolved, shapes known from headers.

    `values` holds every parameter; a per-model one is a tuple over the models without the base.
    The sources of a block are the models in recipe order, then the base if there is one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    models: int
    has_base: bool
    values: Mapping[str, Any]
    seed: int
    work: str = "float32"
    scale: float = 1.0  # of the result's difference from the base (LiNeS)
    balance: bool = False  # scale all task vectors to their mean length first


COMMON = 1e12
"""Numbers of a recipe that are larger than this, or smaller than its inverse, take float64: their
products and quotients would leave the range of float32."""


def working_dtype(result: DType, values: Mapping[str, Any], scale: float = 1.0) -> str:
    """Return the torch name of the dtype to compute a result in, given the values of its task."""
    numbers = [abs(scale)]
    for value in values.values():
        several = value if isinstance(value, tuple) else (value,)
        numbers += [abs(number) for number in several if isinstance(number, float)]
    common = all(number == 0 or 1 / COMMON <= number <= COMMON for number in numbers)
    return "float32" if result.bits <= 16 and common else "float64"


class Scratch(Protocol):
    """Reusable memory of one lane on its device; contents are valid for one block only."""

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Return a 1-D tensor of `count` elements: the same memory for the same slot every time."""

    def cached(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what `make` returned for this key before: views of scratch or of a block.

        Entries are dropped when the memory of the lane moves. A key contains the address
        (`data_ptr`) of memory that `take` does not own.
        """


@dataclass
class Block:
    """The unit of computation: a range of elements or whole rows of every source.

    `tensors` have the stored dtypes and the shape [n] (split by element) or [rows, row length].
    `start` is the index of the first element in the tensor.
    """

    tensors: list[Tensor]
    start: int
    scratch: Scratch


class StatisticsPass(ABC):
    """A pass that gathers statistics of every block before the result can be computed.

    Blocks lie on a fixed grid and `next_pass` gets their statistics in index order, so a result
    never depends on the split into pieces, on threads or on ranks.
    """

    @abstractmethod
    def collect(self, block: Block) -> Any:
        """Return statistics of one block; called from any thread, in any order."""

    @abstractmethod
    def next_pass(self, partials: Sequence[Any]) -> StatisticsPass | MergePass:
        """Return the pass that follows, given the statistics of all blocks."""


class MergePass(ABC):
    """The pass that computes the result: one call per block."""

    accumulates_in: str = ""
    """Torch name of the dtype in which sources of any dtype are added up unconverted; or empty."""

    @abstractmethod
    def merge(self, block: Block, out: Tensor) -> None:
        """Write the merged block to `out`, rounding once to its dtype."""

    def in_float64(self) -> MergePass | None:
        """Return this pass in float64, for blocks that gave NaN or Inf; None if there is none."""
        return None


class Cost(NamedTuple):
    """Cost of a tensor whose computation takes longer than reading it."""

    flops: int  # of the whole tensor
    scratch: int  # bytes per element of a block, replacing the algorithm's


class Algorithm(ABC):
    """Mathematics that several methods share: granularity, passes, scratch memory."""

    balances: bool = False
    """Whether task vectors are balanced whatever the task says."""

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.ELEMENT

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        """Return how many times the sources are read, the merge pass included."""
        return 1

    @abstractmethod
    def scratch_bytes(self, method: Method, sources: int) -> int:
        """Return the scratch bytes per element of a block."""

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        """Return the bytes in memory beside buffers and scratch: statistics of a tensor that is cut
        into blocks of `block` elements, and what is computed from them."""
        return 0

    def cost(self, method: Method, task: Task) -> Cost | None:
        """Return the cost of a tensor that takes much longer to compute than to read, else None."""
        return None

    def check(self, method: Method, task: Task) -> None:
        """Reject impossible values while planning. ValueError or ZeroDivisionError."""
        method.check_sources(task)

    @abstractmethod
    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        """Return the first pass over a tensor."""


@dataclass(frozen=True)
class Origin:
    """The place outside of merge-worker that defines a method, and the digest of its code.

    `name` is that of a file or of a package; `package` is what a node must have installed.
    """

    name: str
    sha256: str
    package: str = ""


@dataclass(frozen=True)
class Method:
    """A merge method: its schema, its rules on models, and its function."""

    name: str
    function: Callable[..., Any]
    algorithm: Algorithm
    base: BaseRole
    min_models: int  # base not counted
    max_models: int | None
    parameters: tuple[Parameter, ...]
    reference: str
    experimental: bool
    origin: Origin | None = None

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def modifiers(self) -> tuple[Parameter, ...]:
        """Parameters that apply to any method of this kind; they are not values of a task."""
        lines = LINES if self.base is BaseRole.REQUIRED else ()
        several = self.base is not BaseRole.IGNORED and self.max_models != 1
        balance = (BALANCE,) if several and not self.algorithm.balances else ()
        weights = any(p.name == "weight" and p.per_model for p in self.parameters)
        return (*lines, *balance, *((SCHEDULE,) if weights else ()))

    def check_sources(self, task: Task) -> None:
        """Raise ValueError if the task lacks sources that the method requires, or has too many."""
        if self.base is BaseRole.REQUIRED and not task.has_base:
            raise ValueError(f"{self.name} requires a base; '{task.name}' has none")
        least, most = self.min_models, self.max_models
        if task.models < least or (most is not None and task.models > most):
            wanted = ("" if most == least else "at least ") + counted(least, "models")
            wanted += " beside the base" if task.has_base else ""
            raise ValueError(f"{self.name} merges {wanted}; '{task.name}' has {task.models}")

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        """Return the first pass over a tensor; the last one scales the result as the task asks."""
        if task.balance:
            return _scaled(balanced(task, lambda: self.algorithm.begin(self, task)), task)
        return _scaled(self.algorithm.begin(self, task), task)

    def call(self, values: Mapping[str, Any], *arguments: Any) -> Any:
        """Call the function with the algorithm's arguments and the values of a task.

        The recipe's `lambda`, a keyword of Python, is the argument `lambda_`.
        """
        named = {"lambda_" if name == "lambda" else name: v for name, v in values.items()}
        if self.origin is None:
            return self.function(*arguments, **named)
        # As annotated; our own methods take any sequence.
        named = {name: list(v) if isinstance(v, tuple) else v for name, v in named.items()}
        try:
            return self.function(*arguments, **named)
        except (ValueError, ZeroDivisionError, WorkerError):
            raise
        except Exception as error:  # a bug, but not of merge-worker
            place = f"{self.origin.name}: method '{self.name}'"
            raise UsageError(f"{place}: {type(error).__name__}: {error}") from error


LINES = (Parameter("lines_alpha", float, False), Parameter("lines_beta", float, False))
SCALED_SCRATCH = 16
"""Scratch bytes per element of a block for LiNeS: result and base, at most float64."""
SCHEDULE = Parameter("schedule", str, False)
BALANCE = Parameter("balance", bool, False)
BALANCED_SCRATCH = 8
"""Scratch bytes per element of a block and source for balanced task vectors, at most float64."""

_PER_MODEL = "list[float]"
_TYPES = {"float": float, "int": int, "bool": bool, "str": str, _PER_MODEL: float}


def merge_method(
    algorithm: Algorithm,
    *,
    reference: str,
    base: BaseRole = BaseRole.IGNORED,
    models: tuple[int, int | None] = (1, None),
    experimental: bool = False,
) -> Callable[[Callable[..., Any]], Method]:
    """Make a Method of a function. TypeError if a type is not that of a parameter."""

    def define(function: Callable[..., Any]) -> Method:
        parameters = tuple(
            _parameter(function, parameter)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        )
        name = function.__name__
        return Method(name, function, algorithm, base, *models, parameters, reference, experimental)

    return define


def per_model(default: float) -> Any:
    """Return the default of a per-model parameter; typed so that `list[float]` accepts it."""
    return default


def _parameter(function: Callable[..., Any], parameter: inspect.Parameter) -> Parameter:
    hint = parameter.annotation
    type_name = hint.__name__ if type(hint) is type else str(hint)
    if type_name not in _TYPES:
        raise TypeError(
            f"{function.__module__}.{function.__name__}: parameter '{parameter.name}' has type "
            f"{type_name!r}; a method's parameters are {', '.join(_TYPES)}"
        )
    name = parameter.name.removesuffix("_")
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    return Parameter(name, _TYPES[type_name], type_name == _PER_MODEL, default)


def _scaled(first: StatisticsPass | MergePass, task: Task) -> StatisticsPass | MergePass:
    """Return the passes that begin with `first`, the last with the task's factor of LiNeS added.

    LiNeS (arXiv:2410.17146) scales the result's difference from the base by the depth of the
    layer: `task.scale` is λ(l) = alpha + beta · (l − 1)/(L − 1).
    """
    if task.scale == 1.0:
        return first
    if isinstance(first, StatisticsPass):
        return _BeforeScaling(first, task)
    return _ScaledMerge(first, task)


@dataclass
class _BeforeScaling(StatisticsPass):
    """A statistics pass of the method, which scaling does not affect."""

    inner: StatisticsPass
    task: Task

    def collect(self, block: Block) -> Any:
        return self.inner.collect(block)

    def next_pass(self, partials: Sequence[Any]) -> StatisticsPass | MergePass:
        return _scaled(self.inner.next_pass(partials), self.task)


@dataclass
class _ScaledMerge(MergePass):
    """The merge pass out = base + λ · (merged − base), in working precision, rounded once."""

    inner: MergePass
    task: Task

    def merge(self, block: Block, out: Tensor) -> None:
        work, count = self.task.work, out.numel()
        merged = block.scratch.take("scaled", count, work).view(out.shape)
        self.inner.merge(block, merged)
        base = block.scratch.take("scaled base", count, work).view(out.shape)
        base.copy_(block.tensors[-1].view(out.shape))
        merged.sub_(base).mul_(self.task.scale).add_(base)
        out.copy_(merged)


def balanced(task: Task, then: Callable[[], StatisticsPass | MergePass]) -> StatisticsPass:
    """Return the passes of `then` on balanced task vectors, after one that measures their lengths.

    Every x_m becomes base + δ_m · L/‖δ_m‖, with δ_m = x_m − base and L the mean length of those
    δ_m of the tensor that are not 0. The task has a base.
    """
    return _Lengths(task, then)


def balance_bytes(task: Task, block: int) -> int:
    """Return the bytes that the lengths of all blocks hold until the last is measured."""
    return 128 * task.models * (-(-math.prod(task.shape) // block) + 1)


@dataclass
class _Lengths(StatisticsPass):
    """The pass that measures ‖x_m − base‖ of every model, in float64."""

    task: Task
    then: Callable[[], StatisticsPass | MergePass]

    def collect(self, block: Block) -> list[float]:
        count, models = block.tensors[0].numel(), self.task.models
        work = "float32" if block.tensors[0].device.type == "mps" else "float64"
        base, delta = (block.scratch.take(slot, count, work) for slot in ("balance", "balanced 0"))
        base.copy_(block.tensors[models].reshape(-1))
        squares = []
        for values in block.tensors[:models]:
            delta.copy_(values.reshape(-1)).sub_(base)
            squares.append(float(delta.dot(delta)))
        return squares

    def next_pass(self, partials: Sequence[list[float]]) -> StatisticsPass | MergePass:
        squares = [math.fsum(part) for part in zip(*partials, strict=True)]
        lengths = [math.sqrt(square) for square in squares]
        others = [length for length in lengths if length]
        mean = math.fsum(others) / len(others) if others else 0.0
        return _on_balanced(self.then(), self.task, [mean / n if n else 1.0 for n in lengths])


def _on_balanced(
    inner: StatisticsPass | MergePass, task: Task, factors: Sequence[float]
) -> StatisticsPass | MergePass:
    if isinstance(inner, StatisticsPass):
        return _BalancedStatistics(inner, task, factors)
    return _BalancedMerge(inner, task, factors)


@dataclass
class _BalancedStatistics(StatisticsPass):
    """A statistics pass of the method, on balanced task vectors."""

    inner: StatisticsPass
    task: Task
    factors: Sequence[float]

    def collect(self, block: Block) -> Any:
        return self.inner.collect(_balanced_block(block, self.task, self.factors))

    def next_pass(self, partials: Sequence[Any]) -> StatisticsPass | MergePass:
        return _on_balanced(self.inner.next_pass(partials), self.task, self.factors)


@dataclass
class _BalancedMerge(MergePass):
    """The merge pass of the method, on balanced task vectors."""

    inner: MergePass
    task: Task
    factors: Sequence[float]

    def merge(self, block: Block, out: Tensor) -> None:
        self.inner.merge(_balanced_block(block, self.task, self.factors), out)


def _balanced_block(block: Block, task: Task, factors: Sequence[float]) -> Block:
    """Return the block with base + factor · (x_m − base) in place of every x_m."""
    work, models = task.work, task.models
    original = block.tensors[models]
    base = block.scratch.take("balance", original.numel(), work).view(original.shape)
    base.copy_(original)
    tensors = list(block.tensors)
    for model, factor in enumerate(factors):
        if factor != 1.0:
            taken = block.scratch.take(f"balanced {model}", base.numel(), work).view(base.shape)
            tensors[model] = taken.copy_(tensors[model]).sub_(base).mul_(factor).add_(base)
    return Block(tensors, block.start, block.scratch)
