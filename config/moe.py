"""`moe_params`: mixtures of experts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from gpt_mesh.config.fields import WHOLE, Count, Flag, Group, NonNegative, Positive, Probability, Rate, key


class MoeParams(Group):
    """Settings of the mixture-of-experts layers (Shazeer et al. 2017, arXiv:1701.06538; GShard, arXiv:2006.16668)."""

    example: ClassVar[str] = '{"moe_num_experts": 8}'

    moe_num_experts: Annotated[int, Ge(2), WHOLE] = key("Experts in each mixture.", default=16, touches="shapes")
    moe_hidden_size: Count | None = key(
        "Hidden features of one expert; null: 4 x `n_embd`.", default=None, touches="shapes"
    )
    moe_loss_coef: NonNegative = key("Weight of the balance loss.", default=1e-2)
    moe_group_size: Count = key(
        "Maximum number of tokens that share one set of expert capacities. Groups are equal parts of a sequence.",
        default=1024,
        unit="tokens",
        touches="function",
        adaptable=True,
    )
    moe_capacity_factor_train: Positive = key(
        "Capacity of each expert in training, relative to an even split of first choices, and at least 4 tokens of a "
        "group. Tokens beyond it skip the expert.",
        default=1.25,
    )
    moe_capacity_factor_eval: Positive | None = key(
        "The same outside training; null: capacity for every token, so that the result for a token does not depend on "
        "its neighbours, and generation agrees with scoring. A number makes full passes cheaper, at that price.",
        default=None,
        touches="function",
        adaptable=True,
    )
    moe_gating: Literal["top_2"] = key("How tokens choose experts.", default="top_2", touches="function")
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
