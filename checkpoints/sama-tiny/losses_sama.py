"""What mask training minimises: BCE and dice on points of each mask, as pure functions (specs: model.md section 9).

Letters in shape comments: M masks (an object in a frame is one), P points a mask.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def sample_at_points(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values of M pictures (num_masks, height, width) at `points` (num_masks, num_points, 2), x before y,
    from 0 to 1 over the picture: (num_masks, num_points). Beyond the outermost pixel centres they fade to zero, as in
    `grid_sample`."""
    return F.grid_sample(values[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def draw_points(num_points: int, seeds: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """Uniform points, `counts[i]` masks of `num_points` each from seed `seeds[i]`: (num_masks, num_points, 2), on the
    CPU. A sample has points of its own, whatever else is in the batch, on whatever device."""
    drawn = [
        torch.rand(count, num_points, 2, generator=torch.Generator().manual_seed(seed))
        for seed, count in zip(seeds, counts, strict=True)
    ]
    return torch.cat(drawn) if drawn else torch.zeros(0, num_points, 2)


@torch.no_grad()
def select_uncertain(mask_logits: torch.Tensor, points: torch.Tensor, num_points: int, share: float) -> torch.Tensor:
    """Of many drawn points those where the mask is least certain, and some others, so that no part is forgotten.

    Args:
        mask_logits (`torch.Tensor` of shape `(num_masks, height, width)`)
        points (`torch.Tensor` of shape `(num_masks, num_drawn, 2)`): uniform, at least `num_points` of them.
        num_points (`int`): how many are kept.
        share (`float`): of the kept points, the part taken by uncertainty, which is a logit near zero; the rest are
            the last ones drawn.

    Returns:
        `torch.Tensor` of shape `(num_masks, num_points, 2)`.
    """
    num_uncertain = round(share * num_points)
    num_others = num_points - num_uncertain
    candidates = points[:, : points.shape[1] - num_others]
    certainty = sample_at_points(mask_logits.float(), candidates).abs()
    nearest = certainty.topk(num_uncertain, dim=1, largest=False).indices
    uncertain = candidates.take_along_dim(nearest[..., None], 1)
    return torch.cat([uncertain, points[:, points.shape[1] - num_others :]], 1)


def mask_bce(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean binary cross entropy over the points of each mask: two (num_masks, num_points) to (num_masks,)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def mask_dice(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 - (2 sum pt + 1) / (sum p + sum t + 1) over the points of each mask, p the probabilities: two (num_masks,
    num_points) to (num_masks,). The one keeps an empty mask that is predicted empty at zero loss."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(1) + targets.sum(1) + 1)


def mask_losses(
    mask_logits: torch.Tensor,
    targets: torch.Tensor,
    num_points: int,
    seeds: Sequence[int],
    counts: Sequence[int],
    oversample: float = 3.0,
    share: float = 0.75,
) -> tuple[torch.Tensor, torch.Tensor]:
    """BCE and dice of each mask, both of shape (num_masks,), in float32.

    A mask of no more pixels than points is compared in every pixel: sampling would cost more and show less.

    Args:
        mask_logits, targets (`torch.Tensor` of shape `(num_masks, height, width)`): targets 0 or 1.
        num_points (`int`): points compared in each mask; `oversample` times as many are candidates.
        seeds, counts (`Sequence[int]`): see [`draw_points`]: one seed for the first `counts[0]` masks, and so on.
        share (`float`): see [`select_uncertain`].

    Raises:
        ValueError: if logits and targets differ in shape, or the counts do not add up to the number of masks.
    """
    if mask_logits.shape != targets.shape or sum(counts) != len(targets):
        raise ValueError(
            f"{tuple(mask_logits.shape)} mask logits, {tuple(targets.shape)} targets and {sum(counts)} masks counted: "
            "the three must agree. Were the targets resized, and does each [SEG] have one?"
        )
    mask_logits, targets = mask_logits.float(), targets.float()
    if mask_logits[0:1].numel() <= num_points or not len(mask_logits):
        logits, wanted = mask_logits.flatten(1), targets.flatten(1)
    else:
        num_others = num_points - round(share * num_points)
        drawn = draw_points(int(oversample * num_points) + num_others, seeds, counts).to(mask_logits.device)
        points = select_uncertain(mask_logits, drawn, num_points, share)
        logits, wanted = sample_at_points(mask_logits, points), sample_at_points(targets, points)
    return mask_bce(logits, wanted), mask_dice(logits, wanted)


def resize_targets(target_masks: Sequence[torch.Tensor], size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Bool masks of each sample, (num_objects, num_frames, height, width) at the size of its video, as floats at the
    `size` of the mask logits, nearest pixel, frame by frame: (num_masks, *size), the objects of a frame together."""
    frames = [
        F.interpolate(masks.to(device).transpose(0, 1).float(), size, mode="nearest").flatten(0, 1)
        for masks in target_masks
        if masks.numel()
    ]
    return torch.cat(frames) if frames else torch.zeros(0, *size, device=device)


@torch.no_grad()
def mask_iou(mask_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of each of M masks (num_masks, height, width), thresholded at logit 0, with its target: (num_masks,). Two
    empty masks agree: 1."""
    predicted, wanted = mask_logits.flatten(1) > 0, targets.flatten(1) > 0.5
    union = (predicted | wanted).sum(1)
    return torch.where(union > 0, (predicted & wanted).sum(1) / union.clamp(min=1), 1.0)
