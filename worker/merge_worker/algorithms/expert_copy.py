"""The method `moe`, which merges nothing: a mixture is planned as copies of its models' tensors."""

from __future__ import annotations

from ..method import Algorithm, BaseRole, MergePass, Method, StatisticsPass, Task


class _Copies(Algorithm):
    """An algorithm without a pass: planning makes copies of all tensors of a mixture."""

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 0

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        raise ValueError(f"{task.name}: tensors of a mixture are copied")


def moe() -> None:
    """Mixture of experts: the base, with its MLPs replaced by experts that a router chooses from.

    y = Σ p_e · MLP_e(x) over the k experts with the largest gates R x, p = softmax(R x).
    The MLPs of `experts` are copied, all else is the base's. Files of mergekit-moe are read as
    they are. `experts_per_token` is k (2 unless given); all tokens take `shared_experts`.
    Of an expert: source_model, positive_prompts, negative_prompts, prompts_file, residual_scale
    (a factor of its down projections), noise_scale. docs/moe.md has an example.
    """


MOE = Method(
    name="moe",
    function=moe,
    algorithm=_Copies(),
    base=BaseRole.REQUIRED,
    min_models=1,
    max_models=None,
    parameters=(),
    reference="https://arxiv.org/abs/2403.07816",
    experimental=False,
)
