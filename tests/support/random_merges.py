"""Random recipes over random models, and what is wrong with the merge that comes out."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from merge_worker import methods
from merge_worker.method import BaseRole, Parameter
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import run
from support.reference_methods import FORMULAS, Values

LAYERS = 4
SHAPES = [(), (1,), (0,), (3, 0), (7,), (64,), (16, 16), (5, 9), (3, 4, 5), (130, 130), (40, 1, 4)]
PARTS = ["self_attn.q_proj", "mlp.up_proj", "norm", "mixer.conv1d"]
FILTERS = ["self_attn", "mlp", "norm", "q_proj", "model.layers.1", "*"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
NARROW = DTYPES[:2]
BY_GEOMETRY = ("slerp", "multislerp", "karcher", "nuslerp", "model_stock")
RANGES = {
    "weight": (-0.5, 1.5),
    "density": (0.0, 1.0),
    "gamma": (0.0, 0.3),
    "scale": (-1.0, 2.0),
    "lambda": (-1.0, 2.0),
    "epsilon": (0.0, 0.05),
}
REFUSALS = ("add up to 0", "cancel", "NaN or Inf")
"""Words of errors that a formula which divides by nearly nothing may give as well."""

Find = Callable[[str, float], Any]


class Setting(NamedTuple):
    """A value as a recipe has it, and what it is for a tensor at a depth."""

    written: Any
    find: Find


@dataclass
class RandomMerge:
    """One recipe and its models, all drawn from `seed`."""

    seed: int
    folder: Path
    shared: dict[str, Setting] = field(default_factory=dict)
    own: list[dict[str, Setting]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.noise = torch.Generator().manual_seed(self.seed)
        chance, self.method = self.chance, methods.get(self.chance.choice(list(FORMULAS)))
        least, most = max(1, self.method.min_models), self.method.max_models or 5
        self.count = chance.randint(least, most)
        role = self.method.base
        self.has_base = role is BaseRole.REQUIRED or (
            role is BaseRole.OPTIONAL and chance.random() < 0.5
        )
        self.out = chance.choice([None, None, *DTYPES])
        self._write_models()
        self._write_recipe()

    def _write_models(self) -> None:
        chance = self.chance
        self.shapes = {"model.layers.0.first.weight": (4, 4), "model.layers.3.last.weight": (4, 4)}
        for number, shape in enumerate(chance.sample(SHAPES, chance.randint(3, len(SHAPES)))):
            layer = chance.choice(["", "layers.0.", "layers.1.", "layers.2."])
            self.shapes[f"model.{layer}{chance.choice(PARTS)}.t{number}.weight"] = shape
        self.scale = chance.choice([1, 1, 0.02, 1e-3, 30])
        self.coarse, near = chance.random() < 0.5, chance.random() < 0.7
        usual, mixed = chance.choice(DTYPES), chance.random() < 0.2

        def draw(base: dict[str, Tensor] | None) -> dict[str, Tensor]:
            dtype = chance.choice(DTYPES) if mixed else usual
            return {n: self._tensor(n, base).to(dtype) for n in self.shapes}

        base = draw(None)
        self.models = [draw(base if near else None) for _ in range(self.count)]
        self.base = base if self.has_base else None
        for number, model in enumerate(self.models):
            write_checkpoint(self.folder / f"m{number}", model)
        if self.base:
            write_checkpoint(self.folder / "base", self.base)

    def _tensor(self, name: str, base: dict[str, Tensor] | None) -> Tensor:
        """Return numbers; coarse ones have exact differences, many of them equal."""
        chance, shape = self.chance, self.shapes[name]
        wide = torch.randn(shape, generator=self.noise, dtype=torch.float64)
        values = (wide * 16).round() / 64 if self.coarse else wide
        values = values * self.scale
        if base is not None:
            few = torch.rand(shape, generator=self.noise) < 0.5
            values = base[name].double() + (values * few / 4 if self.coarse else values * 0.05)
        factor = chance.choice([0.0, -1.0]) if chance.random() < 0.08 else 1.0
        return values * factor

    def _write_recipe(self) -> None:
        chance = self.chance
        self.own = [{} for _ in range(self.count)]
        for parameter in self.method.parameters:
            scopes = [self.shared]
            if parameter.per_model and chance.random() < 0.6:
                scopes = self.own
            if parameter.required or chance.random() < 0.6:
                for scope in scopes:
                    if setting := self._setting(parameter):
                        scope[parameter.name] = setting
        recipe: dict[str, Any] = {"merge_method": self.method.name}
        recipe["parameters"] = {name: s.written for name, s in self.shared.items()}
        recipe["models"] = [
            {"model": f"m{i}", "parameters": {name: s.written for name, s in own.items()}}
            for i, own in enumerate(self.own)
        ]
        if self.has_base:
            recipe["base_model"] = "base"
        if self.out:
            key = chance.choice(["dtype", "out_dtype"])
            recipe[key] = str(self.out).removeprefix("torch.")
        self.text = yaml.safe_dump(recipe, sort_keys=False)
        (self.folder / "recipe.yml").write_text(self.text)

    def _setting(self, parameter: Parameter) -> Setting | None:
        chance, name = self.chance, parameter.name
        if name in ("eps", "tol", "int8_mask"):
            return None
        if parameter.type is not float:
            words = {"max_iter": [1, 3, 10, 50], "consensus_method": ["sum", "count"]}
            value = chance.choice(words.get(name, [True, False]))
            return Setting(value, lambda tensor, depth: value)
        if name == "t":
            low, high = (0.0, 0.1) if self.method.name == "nearswap" else (-0.2, 1.2)
        else:
            low, high = RANGES[name]
        if name == "weight" and chance.random() < 0.7:
            low = 0.1

        def number() -> float:
            return round(chance.uniform(low, high), chance.choice([2, 5, 17]))

        def values() -> float | list[float]:
            return number() if chance.random() < 0.5 else [number() for _ in range(3)]

        if chance.random() < 0.7:
            plain = values()
            return Setting(plain, lambda tensor, depth: _at(plain, depth))
        rules = [{"filter": f, "value": values()} for f in chance.sample(FILTERS, 2)]
        rules.append({"filter": "*", "value": number()})
        return Setting(rules, lambda tensor, depth: _first(rules, tensor, depth))

    def values_for(self, tensor: str) -> Values:
        """Return the parameters of one tensor."""
        words = tensor.split(".")
        depth = int(words[2]) / (LAYERS - 1) if words[1] == "layers" else 0.0
        values: Values = {}
        for parameter in self.method.parameters:
            name = parameter.name
            default = Setting(None, lambda tensor, depth, p=parameter: p.default)
            given = [(own.get(name) or self.shared.get(name) or default) for own in self.own]
            each = [setting.find(tensor, depth) for setting in given]
            values[name] = each if parameter.per_model else each[0]
        return values

    def faults(self, capture: Callable[[], str]) -> str:
        """Merge, and return what is wrong; nothing if all is right. `capture` has the output."""
        chance = self.chance
        words = ["--threads", chance.choice("123"), "--memory", chance.choice(["2MiB", "512MiB"])]
        words += ["--shard-size", chance.choice(["5GB", "50KB"]), "--progress", "off"]
        path, out = self.folder / "recipe.yml", self.folder / "out"
        code = run("merge", path, out, "--relative-to", self.folder, *words)
        said = capture()
        wanted, refused = {}, False
        for name in self.shapes:
            try:
                wanted[name] = self._wanted(name)
            except ZeroDivisionError:
                refused = True
        if code != 0:
            expected = code in (2, 5) and any(word in said for word in REFUSALS)
            return "" if expected or refused else f"exit code {code}: {said}"
        if refused:
            return "not refused"
        got = read_tensors(out)
        found = [self._compare(name, got[name], *wanted[name]) for name in wanted]
        return "\n".join(filter(None, found))

    def _wanted(self, name: str) -> tuple[Tensor, Tensor, Values]:
        """Return the exact result, where it is in doubt, and the parameters."""
        values, dtype = self.values_for(name), self._dtype(name)
        xs = [model[name] for model in self.models]
        base = self.base[name] if self.base else torch.zeros_like(xs[0])
        if dtype in NARROW and not (self.method.name in BY_GEOMETRY or not self.base):
            # Differences are taken in float32, where equal ones may come to differ; float64 holds
            # their sum with a base of float32 exactly, and so their order.
            base = base.float()
            xs = [(x.float() - base).double() + base.double() for x in xs]
        doubt = torch.zeros(self.shapes[name], dtype=torch.bool)
        if not xs[0].numel():
            return xs[0].double(), doubt, values
        formula = FORMULAS[self.method.name]
        exact = formula([x.double() for x in xs], base.double(), values, doubt)
        return exact, doubt, values

    def _dtype(self, name: str) -> torch.dtype:
        return self.out or (self.base or self.models[0])[name].dtype

    def _compare(self, name: str, got: Tensor, want: Tensor, doubt: Tensor, values: Values) -> str:
        dtype = self._dtype(name)
        if got.dtype != dtype or got.shape != want.shape:
            return f"{name}: {got.dtype} {tuple(got.shape)}"
        if not want.numel():
            return ""
        bits = 1 - round(math.log2(torch.finfo(dtype).eps))
        least = round(math.log2(torch.finfo(dtype).smallest_normal)) - bits + 1
        step = torch.ldexp(torch.ones_like(want), (want.frexp().exponent - bits).clamp(min=least))
        numbers = [*(model[name].double().abs() for model in self.models)]
        numbers += [self.base[name].double().abs()] if self.base else []
        size = torch.stack(numbers).sum(0)
        size = torch.maximum(size, 0.02 * size.max())
        factors = [1.0, values.get("lambda", 1.0), *values.get("weight", [])]
        geometry = self.method.name in BY_GEOMETRY
        noise = (3e-5 if geometry else 3e-6) if dtype in NARROW else 1e-9 if geometry else 1e-10
        allowed = 0.51 * step + 4 * noise * max(map(abs, factors)) ** 2 * size
        wrong = ((got.double() - want).abs() > allowed) & ~doubt
        wrong &= want.abs() < torch.finfo(dtype).max * 0.99
        if not bool(wrong.any()):
            return ""
        at = tuple(wrong.nonzero()[0].tolist())
        return (
            f"{name} {tuple(want.shape)} {dtype}: {int(wrong.sum())} of {want.numel()} are wrong; "
            f"at {at} {float(got[at])!r}, not {float(want[at])!r} ± {float(allowed[at]):.2g}"
        )


def _at(value: float | list[float], depth: float) -> float:
    """Return a number, or a gradient's number at a depth from 0 to 1."""
    if not isinstance(value, list):
        return value
    place = depth * (len(value) - 1)
    low = min(int(place), len(value) - 1)
    high = min(len(value) - 1, low + 1)
    return (1 - (place - low)) * value[low] + (place - low) * value[high]


def _first(rules: list[dict[str, Any]], tensor: str, depth: float) -> float:
    matching = (r["value"] for r in rules if r["filter"] == "*" or r["filter"] in tensor)
    return _at(next(matching), depth)
