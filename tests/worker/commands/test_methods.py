"""The pages of `methods` are made from the code, so they cannot be wrong about it."""

import pytest

from merge_worker import methods
from merge_worker.commands.methods import method_list, method_page, mixture_page
from merge_worker.structure.moe_targets import TARGETS


def test_every_method_has_a_line_that_fits() -> None:
    lines = method_list().splitlines()
    assert [line.split()[0] for line in lines] == [*methods.names(), "moe"]
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines), "name and what it does"


@pytest.mark.parametrize("name", methods.names())
def test_pages(name: str) -> None:
    method = methods.get(name)
    page = method_page(method)
    assert page.startswith(name)
    assert method.reference in page and method.doc.splitlines()[0] in page
    for parameter in method.parameters:
        assert f"  {parameter.name} (" in page


def test_linear() -> None:
    page = method_page(methods.get("linear"))
    assert "models: 1 or more" in page
    assert "weight (float per model, required)" in page
    assert "normalize (bool, default True)" in page


def test_mixtures() -> None:
    page = mixture_page()
    assert page.startswith("moe\n") and "mlp_input" in page
    assert all(f"  {target.name}: of {', '.join(target.bases)}" in page for target in TARGETS)
