"""What the networks are told: people's labels where there are any, teachers' answers everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from distillation.data import FLAGS

_WHISPER = 0.3


def labelled(logits: Tensor, target: Tensor, weight: Tensor, complete: Tensor) -> Tensor:
    """Cross-entropy where a weight says so, and Dice on channels that a person labelled whole.

    logits, target, weight: [N, C, H, W] (target and weight in 0..1); complete: bool [N, C]. A cell of weight 0
    (no label, ignored) moves nothing. Returns a scalar.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross = (entropy * weight).sum() / weight.sum().clamp_min(1.0)
    return cross + _dice_loss(logits.sigmoid() * weight, target * weight, complete)


def distilled(logits: Tensor, soft: Tensor, taught: Tensor, complete: Tensor, temperature: float = 4.0) -> Tensor:
    """Cross-entropy and Dice to the teachers' probabilities [N, C, H, W], and channel-wise distillation (Shu et al.
    2021, arXiv 2011.13256: KL between softmaxes over the plane).

    taught: bool [N], which images have soft labels; complete: bool [N, C], where a person labelled the channel and the
    teachers only whisper.
    """
    if not bool(taught.any()):
        return logits.sum() * 0.0
    logits, soft = logits[taught], soft[taught]
    voice = torch.where(complete[taught], _WHISPER, 1.0)
    entropy = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean((2, 3))
    teacher = torch.logit(soft, eps=0.01).flatten(2) / temperature
    student = logits.clamp(-8, 8).flatten(2) / temperature
    planes = F.kl_div(student.log_softmax(2), teacher.log_softmax(2), reduction="none", log_target=True).sum(2)
    near = ((entropy + 0.5 * temperature**2 * planes) * voice).sum() / voice.sum()
    return near + _dice_loss(logits.sigmoid(), soft, voice)


def flagged(logits: Tensor, flags: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the global flags, and of the edges behind them, [N, 34] each."""
    entropy = F.binary_cross_entropy_with_logits(logits, flags, reduction="none") * weight
    parts = zip(entropy.tensor_split([len(FLAGS)], 1), weight.tensor_split([len(FLAGS)], 1), strict=True)
    return torch.stack([part.sum() / known.sum().clamp_min(1.0) for part, known in parts]).sum()


def _dice_loss(p: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    overlap, total = (p * target).sum((2, 3)), p.sum((2, 3)) + target.sum((2, 3))
    dice = (2 * overlap + 1) / (total + 1)
    return ((1 - dice) * weight).sum() / weight.sum().clamp_min(1)
