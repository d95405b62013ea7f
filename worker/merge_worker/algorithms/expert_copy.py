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
    """Mixture of experts: the base's attention, and a router that chooses among the experts' MLPs.

    y = Σ p_e · MLP_e(x) over the k experts with the largest gates R x, p = softmax(R x).
    The MLPs of `experts` are copied; `gate_mode` says how the router R is made:

      hidden          from the last token's input of each layer of the base (mergekit's default)
      hidden_avg      from the mean input of each layer
      mlp_input       from the mean input of each MLP, centred: what the router will read
      cheap_embed     from the embeddings of the prompts' tokens
      random          N(0, 1) times gate_std
      uniform_random  ±1/√(hidden size)
      zeros           to be trained

    Files of mergekit-moe are read as they are. `experts_per_token` is k (2 without it),
    `architecture` the model type of the result; `shared_experts` one that all tokens take.
    Of an expert: source_model, positive_prompts, negative_prompts, prompts_file,
    residual_scale, noise_scale. docs/moe.md has an example and the model types.
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
