"""The loss of predicted tokens, chosen by the config: softmax with z-loss, or 1.5-entmax."""

from __future__ import annotations

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import OptimizerConfig
from gpt_mesh.models import entmax, gpt, losses, vocabulary_loss
from gpt_mesh.models.context import Context


def sums(
    ctx: Context, config: OptimizerConfig, features: mtf.Tensor, labels: mtf.Tensor, shares: mtf.Tensor
) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Sums over tokens of share · loss, and of share · nll in nats: scalars.

    The nll is always that of softmax.

    Args:
        features: [batch, sequence, embd], from the last layer.
        labels: integers [batch, sequence].
        shares: [batch, sequence], the weight of each token in the sums.
    """
    z_loss = config.z_loss
    if ctx.fused and not config.entmax_loss and vocabulary_loss.fits(ctx):
        weight, bias, cap = gpt.output_weight(ctx), gpt.output_bias(ctx), ctx.model.final_logit_softcapping
        return vocabulary_loss.cross_entropy(ctx, features, weight, labels, shares, z_loss, bias, cap)
    logits = gpt.score(ctx, features)
    nll, log_z = losses.cross_entropy(ctx, logits, labels)
    if config.entmax_loss:  # no z-loss: entmax has no normaliser to keep small
        loss = entmax.loss(ctx, logits, labels)
    else:
        loss = nll + z_loss * mtf.square(log_z) if z_loss else nll
    return mtf.reduce_sum(loss * shares), mtf.reduce_sum(nll * shares)
