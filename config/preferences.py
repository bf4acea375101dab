"""Learning from preferences."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from annotated_types import Interval

from gpt_mesh.config.fields import NUMBER, Flag, Group, NonNegative, Positive, key

# Losses by the names that a config gives them. objectives/dpo.py has a table of these names.
DpoLoss = Literal["sigmoid", "ipo", "hinge"]
DPO_LOSSES: tuple[DpoLoss, ...] = get_args(DpoLoss)


class PreferenceConfig(Group):
    """Learning from preferences: the objectives `dpo`, `kto` and `reward`."""

    dpo_beta: Positive = key(
        "How strongly `dpo` holds the model to its reference: a reward is this times the log-ratio of the two "
        "(Rafailov et al. 2023, arXiv:2305.18290). In `ipo`, half of its inverse is the margin that is aimed at.",
        default=0.1,
    )
    dpo_loss: DpoLoss = key(
        "Loss of a margin of log-ratios: `sigmoid`, the negative log-likelihood of the preference; `ipo`, its squared "
        "distance from a target, with log-ratios as means over tokens (Azar et al. 2023, arXiv:2310.12036); `hinge` "
        "(Zhao et al. 2023, arXiv:2305.10425).",
        default="sigmoid",
    )
    dpo_label_smoothing: Annotated[float, Interval(ge=0, lt=0.5), NUMBER] = key(
        "With `sigmoid`: the share of preferences that are taken to be the wrong way round.", default=0.0
    )
    dpo_reference_free: Flag = key(
        "Leave out the reference: every completion is equally likely to it.", default=False
    )
    kto_beta: Positive = key(
        "As `dpo_beta`, for `kto` (Ethayarajh et al. 2024, arXiv:2402.01306).", default=0.1
    )
    kto_desirable_weight: Positive = key("Weight of the loss of desirable completions.", default=1.0)
    kto_undesirable_weight: Positive = key("Weight of the loss of undesirable completions.", default=1.0)
    reward_centering: NonNegative = key(
        "Weight of the squared sum of a pair's two rewards in the loss of `reward`, which keeps rewards around 0 "
        "(Eisenstein et al. 2023, arXiv:2312.09244).",
        default=0.0,
    )
