"""Declaration of merge methods, and the protocol between methods and engine. Imports no torch.

A method is a short function in a file of its name. Its keyword-only parameters are the schema of
the recipe: `list[float]` is one value per model in recipe order, a scalar is shared by all models.
Its positional parameters are supplied by its algorithm (see the module of the algorithm).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .errors import UsageError, WorkerError
from .messages import counted
from .tensors.importance import Importance

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
    The sources of a block are the models in recipe order, then the base if there is one, then the
    importance of those that have any, then the activations of AIM.
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
    importance: tuple[Importance | None, ...] = ()  # of each model, then of the base
    omega: float = 1.0  # share of a change that AIM leaves in the most active channel
    activations: int | None = None  # index of the source of AIM


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

    floor_name: str = "floor"
    """The parameter that `floor_share` is about."""

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        """Return the bytes in memory beside buffers and scratch: statistics of a tensor that is cut
        into blocks of `block` elements, and what is computed from them."""
        return 0

    def cost(self, method: Method, task: Task) -> Cost | None:
        """Return the cost of a tensor that takes much longer to compute than to read, else None."""
        return None

    def floor_share(self, method: Method, task: Task) -> float | None:
        """Return the share of sampled elements whose floor outweighs half of their importance.

        None if there is no floor. Figures of importance are measured by then.
        """
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
    """A merge method: its schema, its rules on models, and its function.

    `algorithms.modifiers.begin` returns its first pass over a tensor.
    """

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
    importance: str = ""  # kind of the importance that it reads beside each model; see IMPORTANCE

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def reads_texts(self) -> bool:
        """Whether models may be run on `data:` for Gram matrices that no file holds."""
        return self.importance == "gram"

    @property
    def modifiers(self) -> tuple[Parameter, ...]:
        """Parameters that apply to any method of this kind; they are not values of a task."""
        lines = LINES if self.base is BaseRole.REQUIRED else ()
        lines = LINES if self.base is BaseRole.REQUIRED else ()
        aim = () if self.base is BaseRole.IGNORED else (AIM,)
        several = self.base is not BaseRole.IGNORED and self.max_models != 1
        balance = (BALANCE,) if several and not self.algorithm.balances else ()
        weights = any(p.name == "weight" and p.per_model for p in self.parameters)
        return (*lines, *aim, *balance, *((SCHEDULE,) if weights else ()))

    def check_sources(self, task: Task) -> None:
        """Raise ValueError if the task lacks sources that the method requires, or has too many."""
        if self.base is BaseRole.REQUIRED and not task.has_base:
            raise ValueError(f"{self.name} requires a base; '{task.name}' has none")
        least, most = self.min_models, self.max_models
        if task.models < least or (most is not None and task.models > most):
            wanted = ("" if most == least else "at least ") + counted(least, "models")
            wanted += " beside the base" if task.has_base else ""
            raise ValueError(f"{self.name} merges {wanted}; '{task.name}' has {task.models}")

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
AIM = Parameter("aim_omega", float, False)
IMPORTANCE = ("squares", "gram", "activation")
"""Kinds of importance: squared gradients of each element, mean squares of the inputs of a matrix,
mean magnitudes of its inputs."""

SCHEDULE = Parameter("schedule", str, False)
BALANCE = Parameter("balance", bool, False)

_SHARED = {"float": float, "int": int, "bool": bool, "str": str}
_PER_MODEL: dict[str, type] = {"list[float]": float, "list[int]": int, "list[bool]": bool}
_TYPES = _SHARED | _PER_MODEL


def merge_method(
    algorithm: Algorithm,
    *,
    reference: str,
    base: BaseRole = BaseRole.IGNORED,
    models: tuple[int, int | None] = (1, None),
    experimental: bool = False,
    importance: str = "",
) -> Callable[[Callable[..., Any]], Method]:
    """Make a Method of a function. TypeError if a type is not that of a parameter."""
    if importance not in ("", *IMPORTANCE):
        raise TypeError(f"importance is one of {', '.join(IMPORTANCE)}, got {importance!r}")

    def define(function: Callable[..., Any]) -> Method:
        parameters = tuple(
            _parameter(function, parameter)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        )
        name = function.__name__
        method = Method(
            name, function, algorithm, base, *models, parameters, reference, experimental
        )
        return replace(method, importance=importance)

    return define


def per_model(default: float) -> Any:
    """Return the default of a per-model parameter; typed so that a list accepts it."""
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
    return Parameter(name, _TYPES[type_name], type_name in _PER_MODEL, default)
