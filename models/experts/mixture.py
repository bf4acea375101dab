"""Feed-forward layers that are mixtures of experts (Shazeer et al., 2017, arXiv:1701.06538): a gate chooses a few
experts for each token, and their outputs are added, weighted.

| file | purpose |
|---|---|
| `routing.py` | groups of tokens, and what a layout asks for |
| `choice.py` | which experts a token goes to, and the balance loss |
| `network.py` | the experts themselves, each reading every token |
| `dropless.py`, `rows.py` | each expert reads the tokens that chose it, however many |
| `capacity.py` | each expert reads a bounded number of tokens of a group, so that all do the same work (GShard) |

Where an expert has room for every token (always outside training, unless the config says otherwise), a token's output
is a function of that token alone, the same whether a sequence is read in one pass or token by token. With `top_2`,
every expert then reads every token, and the weights of experts that were not chosen are zero; so it is with `top_k`
where `dropless.supports` says no.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.models.context import Context
from gpt_mesh.models.experts import dropless, network
from gpt_mesh.models.experts.capacity import routed
from gpt_mesh.models.experts.choice import choose
from gpt_mesh.models.experts.routing import Routing


@dataclass(frozen=True)
class Balance:
    """How evenly a mixture uses its experts.

    Attributes:
        loss: scalar, to be added to the loss as it is: `moe_loss_coef` times the loss of `choice.Choice`.
        load: [whole_experts], the tokens that each expert took, as a share of all tokens. A token that several experts
            took counts for each of them: the sum lies between 0 and the number of experts that a token may go to.
    """

    loss: mtf.Tensor
    load: mtf.Tensor


def mixture_of_experts(ctx: Context, x: mtf.Tensor, name: str, site: str) -> tuple[mtf.Tensor, Balance]:
    """A mixture of experts in place of a feed-forward layer.

    Args:
        x: [batch, sequence, embd], normalised.
        name: prefix of the weights, such as "h0/moe".
        site: name of this layer for random draws; layers that share weights have each their own.

    Returns:
        [batch, sequence, embd], to be added to the residual stream: without shared experts, zeros for a token that no
        expert took.

    Raises:
        ValueError: x has other dimensions.
    """
    dims, moe = ctx.dims, ctx.model.moe_params
    if x.shape.dims != [dims.batch, dims.sequence, dims.embd]:
        raise ValueError(f"{name}: needs [batch, sequence, embd], not {x.shape}")
    routing = Routing.of(ctx)
    choice = choose(ctx, x, routing, name, site)
    if routing.is_limited:
        y, load = routed(ctx, x, choice, routing, name, site)
    elif choice.ids is not None and choice.factors is not None and dropless.supports(ctx):
        y, load = dropless.chosen_experts(ctx, x, choice.ids, choice.factors, name), choice.load
    else:
        y, load = network.every_expert(ctx, x, choice.weights, name, site), choice.load
    if moe.moe_shared_expert_size:
        y += network.shared_expert(ctx, x, name, site)
    return y, Balance(choice.loss * moe.moe_loss_coef, load)
