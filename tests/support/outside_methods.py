"""A file of merge methods as users write it, and an installed package that has the same methods."""

from pathlib import Path

SCALED = '''"""Methods of a user."""

from merge_worker import merge_method


@merge_method
def scaled_sum(*, weight: list[float], scale: float = 1.0) -> list[float]:
    """Scaled sum of the models."""
    return [scale * w for w in weight]
'''
CLOSE = '''
from torch import Tensor


@merge_method(base="required", models=(1, 1), reference="https://example.org")
def close(*tensors: Tensor, limit: float) -> Tensor:
    """Take the model where it is close to the base."""
    model, base, _ = tensors
    return base.lerp(model, ((model - base).abs() < limit).to(base.dtype))
'''


def write_methods(folder: Path, text: str = SCALED, name: str = "my.py") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def write_package(folder: Path, text: str = SCALED, method: str = "scaled_sum") -> Path:
    """Write an installed package, `soups` 1.2, to a folder for PYTHONPATH."""
    facts = folder / "soups-1.2.dist-info"
    facts.mkdir(parents=True)
    (folder / "soups.py").write_text(text, encoding="utf-8")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: soups\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(
        f"[merge_worker.methods]\n{method} = soups:scaled_sum\n", encoding="utf-8"
    )
    return folder


def recipe(models: list[Path], method: str = "scaled_sum") -> str:
    entries = "".join(
        f"- {{model: {model}, parameters: {{weight: {n}}}}}\n" for n, model in enumerate(models, 1)
    )
    return f"merge_method: {method}\nparameters: {{scale: 0.5}}\nmodels:\n{entries}"
