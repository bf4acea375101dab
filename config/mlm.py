"""Masked language modelling."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

from gpt_mesh.config.fields import NUMBER, Flag, Group, Natural, Probability, key


class MlmConfig(Group):
    """Masked language modelling (Devlin et al. 2018, arXiv:1810.04805)."""

    mlm_training: Flag = key(
        "Train on masked tokens, with attention in both directions.", default=False, touches="function"
    )
    mlm_mask_id: Natural | None = key(
        "Id of the mask token; required with `mlm_training`. Preferably one that the data does not use.", default=None
    )
    mlm_cls_token_id: Natural | None = key("Id put before every sequence and never masked; null: none.", default=None)
    mlm_mask_prob: Annotated[float, Interval(gt=0, le=1), NUMBER] = key(
        "Probability that a token is chosen.", default=0.15
    )
    mlm_same_token_prob: Probability = key("Share of the chosen tokens left as they are.", default=0.10)
    mlm_random_token_prob: Probability = key("Share of the chosen tokens replaced by random ones.", default=0.10)
    mlm_mask_ignore_ids: tuple[Natural, ...] = key("Ids that are never chosen.", default=(), null_is_default=True)
