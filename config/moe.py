"""`moe_params`: mixtures of experts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from gpt_mesh.config.fields import WHOLE, Count, Flag, Group, Natural, NonNegative, Positive, Probability, Rate, key


class MoeParams(Group):
    """Settings of the mixture-of-experts layers (Shazeer et al. 2017, arXiv:1701.06538; GShard, arXiv:2006.16668)."""

    example: ClassVar[str] = '{"moe_num_experts": 8}'

    moe_num_experts: Annotated[int, Ge(2), WHOLE] = key("Experts in each mixture.", default=16, touches="shapes")
    moe_hidden_size: Count | None = key(
        "Hidden features of one expert; null: 4 x `n_embd`.", default=None, touches="shapes"
    )
    moe_loss_coef: NonNegative = key(
        "Weight of the balance loss, which is added for each mixture: experts x the sum over experts of mean gate x "
        "share of tokens. With `top_k` means are over each sequence, and all choices of a token count; Hugging Face's "
        "`router_aux_loss_coef` weights one such loss, over the tokens of the batch and of all layers together.",
        default=1e-2,
    )
    moe_group_size: Count = key(
        "Maximum number of tokens that share one set of expert capacities. Groups are equal parts of a sequence.",
        default=1024,
        unit="tokens",
        touches="function",
        adaptable=True,
    )
    moe_capacity_factor_train: Positive = key(
        "Capacity of each expert in training, relative to an even split of first choices (with `top_k`: of all "
        "choices), and at least 4 tokens of a group. Tokens beyond it skip the expert.",
        default=1.25,
    )
    moe_capacity_factor_eval: Positive | None = key(
        "The same outside training; null: capacity for every token, so that the result for a token does not depend on "
        "its neighbours, and generation agrees with scoring. A number makes full passes cheaper, at that price.",
        default=None,
        touches="function",
        adaptable=True,
    )
    moe_gating: Literal["top_2", "top_k"] = key(
        "How tokens choose experts. `top_2`: the two that the gate favours, as in GShard, the second under the "
        "conditions below. `top_k`: the `moe_top_k` that it favours, as in Mixtral and OLMoE.",
        default="top_2",
        touches="function",
    )
    moe_top_k: Count = key("Experts of a token, with `top_k`.", default=2, touches="function")
    moe_norm_topk_prob: Flag = key(
        "With `top_k`, a token's weights are a softmax over its chosen experts alone, as in Mixtral; false: their part "
        "of the softmax over all experts, as in OLMoE.",
        default=True,
        touches="function",
    )
    moe_dropless: Flag = key(
        "With `top_k`, experts have capacity for every token in training too.", default=False
    )
    moe_glu: Flag = key(
        "Gated experts: `experts/wo` reads x `experts/wi` times activated x `experts/wg`.",
        default=False,
        touches="shapes",
    )
    moe_shared_expert_size: Natural = key(
        "Hidden features of a further expert that reads every token, whatever the gate says; 0: none. Several shared "
        "experts are one of their total size.",
        default=0,
        touches="shapes",
    )
    moe_use_second_place_loss: Flag = key("Balance the second choices too.", default=False)
    moe_second_policy_train: Literal["all", "none", "threshold", "random"] = key(
        "When a token also goes to its second expert, in training; `random`: with probability gate / threshold.",
        default="random",
    )
    moe_second_policy_eval: Literal["all", "none", "threshold"] = key(
        "The same outside training, where nothing is random.", default="all", touches="function", adaptable=True
    )
    moe_second_threshold_train: Probability = key(
        "Gate, as a share of the sum of both gates, above which `threshold` and `random` use the second expert, in "
        "training.",
        default=0.2,
    )
    moe_second_threshold_eval: Probability = key(
        "The same, outside training.", default=0.2, touches="function", adaptable=True
    )
    moe_dropout_rate: Rate = key("Dropout inside the experts, in training only.", default=0.0)
