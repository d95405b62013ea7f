"""The rows of `check` on a mixture: its model type, its parameters, its experts and its gates."""

from __future__ import annotations

from collections.abc import Iterator

from ..messages import counted, printable
from ..planning.expert_use import ExpertUse, percent
from ..planning.mixture import MixturePlan
from ..planning.plan import Plan
from ..recipe.experts import GATE_MODES


def mixture_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield label and text of each row; none for other merges."""
    mixture = plan.mixture
    if mixture is None:
        return
    sizes = mixture.sizes
    shared = " and a shared one" if sizes.shared else ""
    experts = f"{counted(sizes.experts, 'experts')}, {sizes.per_token} for each token{shared}"
    yield "target", f"{mixture.target.name} ({mixture.target.architecture}): {experts}"
    percent = 100 * mixture.active / max(1, mixture.total)
    yield "active", f"{mixture.active:,} parameters for each token, {percent:.1f} % of them all"
    for expert in mixture.experts:
        yield "shared" if expert.shared else "expert", _expert(expert)
    yield "gates", _gates(mixture)


def _expert(expert: ExpertUse) -> str:
    """Describe an expert: the part that is used, its prompts, its changes."""
    parts = [f"{printable(expert.label)}: its MLPs, {expert.share} of its parameters"]
    if expert.prompts:
        more = f" and {expert.negative} negative" if expert.negative else ""
        parts.append(f"{counted(expert.prompts, 'prompts')}{more}")
    if expert.residual_scale != 1.0:
        parts.append(f"times {expert.residual_scale:g}")
    if expert.noise_scale:
        parts.append(f"noise {expert.noise_scale:g}")
    if expert.attention is None:
        parts.append("its attention is left out")
    elif expert.attention:
        parts.append(f"its attention, {percent(expert.attention)} from the base's, is left out")
    return "; ".join(parts)


def _gates(mixture: MixturePlan) -> str:
    """Describe how the gates are made, and what that needs where the merge runs."""
    mode = GATE_MODES[mixture.gates.mode]
    if not mode.reads_prompts:
        seed = f", seed {mixture.gates.seed}" if mode.name != "zeros" else ""
        return f"{mode.name}: {mode.help}{seed}; no prompt is read"
    rows = mixture.gates.rows
    prompts = counted(sum(len(row.positive) + len(row.negative) for row in rows), "prompts")
    needs = "needs tokenizers"
    if mode.reads_layers:
        needs = "needs transformers, and reads the layers of the base once"
    return f"{mode.name}: {mode.help}, of {prompts}; {needs}"
