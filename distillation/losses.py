"""What the networks are told: people's labels where there are any, teachers' answers everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor


def labelled(logits: Tensor, target: Tensor, weight: Tensor, complete: Tensor) -> Tensor:
    """Cross-entropy where a weight says so, and Dice on channels that a person labelled whole.

    logits, target, weight: [N, C, H, W] (target and weight in 0..1); complete: bool [N, C]. A cell of weight 0
    (no label, ignored) moves nothing. Returns a scalar.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross = (entropy * weight).sum() / weight.sum().clamp_min(1.0)
    return cross + _dice_loss(logits.sigmoid() * weight, target * weight, complete)


def distilled(logits: Tensor, soft: Tensor, taught: Tensor, temperature: float = 4.0) -> Tensor:
    """Cross-entropy and Dice to the teachers' probabilities [N, C, H, W], and channel-wise distillation (Shu et al.
    2021, arXiv 2011.13256: KL between softmaxes over the plane); `taught` bool [N] says which images have them."""
    if not bool(taught.any()):
        return logits.sum() * 0.0
    logits, soft = logits[taught], soft[taught]
    whole = torch.ones(logits.shape[:2], dtype=torch.bool)
    near = F.binary_cross_entropy_with_logits(logits, soft) + _dice_loss(logits.sigmoid(), soft, whole)
    teacher = torch.logit(soft, eps=0.01).flatten(2) / temperature
    student = logits.clamp(-8, 8).flatten(2) / temperature
    planes = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), reduction="none", log_target=True).sum(2)
    return near + 0.5 * temperature**2 * planes.mean()


def flagged(logits: Tensor, flags: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the global flags, [N, 6] each."""
    entropy = F.binary_cross_entropy_with_logits(logits, flags, reduction="none")
    return (entropy * weight).sum() / weight.sum().clamp_min(1.0)


def _dice_loss(p: Tensor, target: Tensor, complete: Tensor) -> Tensor:
    overlap, total = (p * target).sum((2, 3)), p.sum((2, 3)) + target.sum((2, 3))
    dice = (2 * overlap + 1) / (total + 1)
    return ((1 - dice) * complete).sum() / complete.sum().clamp_min(1)
