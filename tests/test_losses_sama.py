"""Mask losses against values worked out by hand."""

import math

import pytest
import torch

from sama.losses_sama import (
    draw_points,
    mask_bce,
    mask_dice,
    mask_iou,
    mask_losses,
    resize_targets,
    sample_at_points,
    select_uncertain,
)


def test_bce_by_hand():
    # p = 1/2 costs log 2 whatever the target; logit log 3 is p = 3/4
    logits = torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]])
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    expected = [math.log(2), (-math.log(0.75) - math.log(0.25)) / 2]
    torch.testing.assert_close(mask_bce(logits, targets), torch.tensor(expected))


def test_dice_by_hand():
    # p = 1/2, 1/2 and t = 1, 0: 1 - (2 * 0.5 + 1) / (1 + 1 + 1); p = 3/4, 1/4 and t = 1, 1: 1 - 3 / 4
    logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(mask_dice(logits, targets), torch.tensor([1 / 3, 1 / 4]))


def test_an_empty_mask_that_is_predicted_empty_costs_nothing():
    logits, targets = torch.full((1, 9), -50.0), torch.zeros(1, 9)
    assert mask_dice(logits, targets).item() == pytest.approx(0, abs=1e-6)
    assert mask_bce(logits, targets).item() == pytest.approx(0, abs=1e-6)


def test_sampling_at_pixel_centres_and_between():
    picture = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.5, 0.25]]])
    torch.testing.assert_close(sample_at_points(picture, points), torch.tensor([[1.0, 2.0, 3.0, 2.5, 1.5]]))


def test_points_of_a_sample_do_not_depend_on_the_others():
    together = draw_points(7, [3, 5], [2, 1])
    torch.testing.assert_close(together, torch.cat([draw_points(7, [3], [2]), draw_points(7, [5], [1])]))
    assert together.min() >= 0 and together.max() < 1
    assert not torch.equal(together[0], together[1])


def test_uncertain_points_are_chosen_and_others_kept():
    # The mask is certain on the left (logit 10) and open on the right (logit 0)
    logits = torch.tensor([[[10.0, 0.0], [10.0, 0.0]]])
    left, right = [0.25, 0.5], [0.75, 0.5]
    drawn = torch.tensor([[left, right, left, right, left, right, left, left]])
    # Four of eight, three by uncertainty from the first seven, one that was drawn last
    chosen = select_uncertain(logits, drawn, num_points=4, share=0.75)
    assert chosen[0].tolist() == [right, right, right, left]


def test_small_masks_are_compared_in_every_pixel():
    logits, targets = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)
    logits[0, 0, 0], targets[1] = 4.0, 1.0
    bce, dice = mask_losses(logits, targets, num_points=9, seeds=[0], counts=[2])
    torch.testing.assert_close(bce, mask_bce(logits.flatten(1), targets.flatten(1)))
    torch.testing.assert_close(dice, mask_dice(logits.flatten(1), targets.flatten(1)))


def test_large_masks_are_compared_at_points():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, 40, generator=generator, dtype=torch.float64)
    targets = (torch.rand(3, 40, 40, generator=generator) > 0.5).double()
    found = mask_losses(logits, targets, num_points=100, seeds=[1, 2], counts=[2, 1])
    again = mask_losses(logits, targets, num_points=100, seeds=[1, 2], counts=[2, 1])
    other = mask_losses(logits, targets, num_points=100, seeds=[7, 2], counts=[2, 1])
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert not torch.equal(found[0][:2], other[0][:2]) and torch.equal(found[0][2:], other[0][2:])
    # Uncertain points alone cost about log 2; the mean over all pixels of these logits is higher
    assert found[0].mean() < mask_bce(logits.flatten(1), targets.flatten(1)).mean()


def test_gradients_of_the_losses():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(2, 5, generator=generator) > 0.5).double()
    assert torch.autograd.gradcheck(lambda values: (mask_bce(values, targets), mask_dice(values, targets)), logits)


def test_no_masks_give_no_losses():
    bce, dice = mask_losses(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4), num_points=3, seeds=[], counts=[])
    assert bce.shape == dice.shape == (0,)


def test_a_mismatch_is_told_with_both_numbers():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) mask logits, \(3, 4, 4\) targets and 2 masks"):
        mask_losses(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4), num_points=3, seeds=[0], counts=[2])


def test_targets_are_resized_frame_by_frame():
    first = torch.zeros(2, 3, 4, 8, dtype=torch.bool)  # two objects in three frames
    first[1, 2, :, 4:] = True
    second = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    nothing = torch.zeros(0, 0, 0, 0, dtype=torch.bool)
    targets = resize_targets([first, nothing, second], (2, 2), torch.device("cpu"))
    assert targets.shape == (7, 2, 2)
    assert targets[5].tolist() == [[0, 1], [0, 1]]  # the last frame's second object
    assert targets[6].all() and targets.sum() == 6


def test_iou_by_hand():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.0] * 2] * 2, [[1.0] * 2] * 2])
    targets = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0] * 2] * 2, [[0.0] * 2] * 2])
    torch.testing.assert_close(mask_iou(logits, targets), torch.tensor([1 / 3, 1.0, 0.0]))


def test_targets_take_the_nearest_pixel():
    """Two corner pixels are set: a bilinear resize gives 1/4 in both corners, nearest gives 1 and 0."""
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 0, 3, 3] = True
    targets = resize_targets([mask], (2, 2), torch.device("cpu"))
    assert targets.tolist() == [[[1, 0], [0, 0]]]  # nearest takes the upper left pixel of each four
