"""Auxiliary heads of all stages: small networks that read off hidden states what is true of a clip, and their losses.

The language loss and the mask loss alone do not teach a small model within hours what shapes and motions are
(docs/log.md). Heads are trained with the model and dropped afterwards.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from sama.data.collator import IGNORED
from sama.recipes.sama_tiny.labels import (
    CELL,
    CLOSED_SETS,
    GROUPED,
    MAX_FRAMES,
    MAX_OBJECTS,
    MOST_ALIKE,
    PLACE,
    UNSEEN,
    WINDOW,
)
from sama.toy_world.clip import FRAME_SIDE
from sama.toy_world.questions import LOOK
from sama.toy_world.shapes import COLOURS
from sama.toy_world.wording import ORDER


PARTNER = {"colour": "shape", "shape": "colour"}  # of these, training shows some pairs only
TRAJECTORY_TIMES = 8  # moments of a clip at which heads predict the place of an object
MOST_LISTED = 4  # objects of an answer that lists several, of which a head predicts the places
# What a question is about: the objects of its first and of its second region, or one that it describes
QUESTIONED = ("pointed", "also pointed", "described")
# Weight of visibility in the loss of places. It is larger for the objects that a conversation is about: when they
# appear and leave decides which motion they make
VISIBILITY_WEIGHT, ASKED_VISIBILITY_WEIGHT = 0.1, 0.4
# Weights of all losses by name
LOSS_WEIGHTS = {
    "patch looks": 0.5, "occupied": 0.5, "offsets": 5.0, "windows": 5.0, "cell colours": 20.0, "position": 5.0,
    "cell looks": 0.3, "track classes": 0.5, "past": 15.0, "movements": 20.0, "time": 0.5, "groups": 0.1,
    "track moment": 3.0, "centres": 0.5, "counts": 0.5, "mask classes": 0.2, "mask places": 2.0, "language": 5.0,
    "context": 1.0, "region tokens": 0.1, "region classes": 0.5, "region trajectory": 3.0, "region moment": 3.0,
    "pointed classes": 0.5, "pointed trajectory": 3.0, "pointed moment": 3.0, "also pointed classes": 0.5,
    "also pointed trajectory": 3.0, "also pointed moment": 3.0, "described classes": 0.5, "described trajectory": 3.0,
    "described moment": 3.0, "fits": 0.5, "number": 0.5, "order": 0.5, "members": 3.0, "seg classes": 0.5,
    "seg trajectory": 3.0, "seg moment": 0.3, "prompt": 3.0, "mask": 3.0,
}  # fmt: skip
Tensors = dict[str, torch.Tensor]
Losses = tuple[Tensors, Tensors]  # losses and metrics by name


def weighted_sum(losses: Tensors, weights: Mapping[str, float] = LOSS_WEIGHTS) -> torch.Tensor:
    """The loss that is minimised."""
    return sum(weights[name.removeprefix("frame ")] * loss for name, loss in losses.items())


def merged(parts: list[Losses]) -> Losses:
    """The losses and the metrics of several parts; of metrics with one name the first."""
    losses, metrics = {}, {}
    for own, found in parts:
        losses |= own
        metrics = found | metrics
    return losses, metrics


def mlp(width: int, outputs: int) -> nn.Sequential:
    """A head with one hidden layer."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))


def classifiers(width: int, *kinds: str) -> nn.ModuleDict:
    """A head for each of these kinds of class."""
    return nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in kinds})


def class_loss(
    heads: nn.ModuleDict, states: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum of the cross-entropies of [`classifiers`], and their accuracies by kind; `states` (num_states, width),
    `classes` (num_states, num_kinds) in the order of `CLOSED_SETS`, -100 where unknown."""
    losses, accuracies = [states.new_zeros(())], {}
    for number, kind in enumerate(CLOSED_SETS):
        if kind not in heads:
            continue
        known = classes[:, number] != IGNORED
        if known.any():
            logits = heads[kind](states[known])
            if kind in PARTNER:
                partners = classes[known, list(CLOSED_SETS).index(PARTNER[kind])]
                logits = without_unseen_pairs(kind, logits, partners)
            loss, accuracies[kind] = choice_loss(logits, classes[known, number])
            losses.append(loss)
    return sum(losses), accuracies


def without_unseen_pairs(kind: str, logits: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    """
    Mask the classes that training never pairs with the object's other attribute. Otherwise a model also learns that a
    purple letter T does not exist, and does not recognise it later.

    Args:
        kind (`str`): "colour" or "shape".
        logits (`torch.Tensor` of shape `(num_states, num_choices)`): In the order of `CLOSED_SETS[kind]`.
        partners (`torch.Tensor` of shape `(num_states,)`): Class of the object's shape or colour, -100 where unknown.
    """
    unseen = (UNSEEN.T if kind == "colour" else UNSEEN).to(logits.device)
    return logits.float().masked_fill(unseen[partners.clamp(min=0)] & (partners != IGNORED)[:, None], -torch.inf)


def choice_loss(logits: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and accuracy of one choice, (num_states, num_choices) and (num_states,)."""
    logits = logits.float()
    return F.cross_entropy(logits, expected), (logits.argmax(-1) == expected).float().mean()


def place_loss(
    predicted: torch.Tensor, target: torch.Tensor, visibility_weight: float = VISIBILITY_WEIGHT
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of places (..., 4): visibility everywhere, position and size where visible; and the mean L1 error of the
    position in pixels."""
    predicted, seen = predicted.float(), target[..., 0]
    presence = F.binary_cross_entropy_with_logits(predicted[..., 0], seen)
    gap = (predicted[..., 1:] - target[..., 1:]).abs() * seen[..., None]
    visible = seen.sum().clamp(min=1)
    return visibility_weight * presence + gap.sum() / visible, FRAME_SIDE * gap[..., :2].detach().sum() / visible / 2


def moment_loss(head: nn.Module, states: torch.Tensor, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean absolute error of the moments that are known, as a loss and as a metric; `moments` (num_states,), -1 where
    unknown."""
    known = moments >= 0
    gap = (head(states).float()[:, 0] - moments).abs() * known
    error = gap.sum() / known.sum().clamp(min=1)
    return error, error.detach()


def named(prefix: str, accuracies: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Accuracies by kind, with a prefix in their names."""
    return {f"{prefix} {kind}": value for kind, value in accuracies.items()}


class PatchHeads(nn.Module):
    """Heads on the patches of a frame, for the vision tower and for SAM 2's image encoder: look, centre, size and
    surroundings of the object that each patch shows, see [`labels.patch_labels`]. The surroundings, 144 values for
    each patch, teach outlines, from which shapes are learned sooner than from their names (docs/log.md)."""

    def __init__(self, width: int):
        super().__init__()
        self.looks = classifiers(width, *LOOK)
        self.occupied = nn.Linear(width, 1)
        self.offsets = mlp(width, 3)
        self.windows = nn.Linear(width, WINDOW**2)

    def losses(self, patches: torch.Tensor, labels: Tensors) -> Losses:
        """Losses and metrics; `patches` (num_frames, num_patches, width)."""
        patches, occupied = patches.flatten(0, 1), labels["occupied"].flatten()
        shown = patches[occupied]
        looks, accuracies = class_loss(self.looks, patches, labels["patch looks"].flatten(0, 1))
        gap = (self.offsets(shown).float() - labels["offsets"].flatten(0, 1)[occupied]).abs()
        windows = self.windows(shown).float()
        losses = {
            "patch looks": looks,
            "occupied": F.binary_cross_entropy_with_logits(self.occupied(patches)[:, 0].float(), occupied.float()),
            "offsets": gap.mean(),
            "windows": F.binary_cross_entropy_with_logits(windows, labels["windows"].flatten(0, 1)[occupied]),
        }
        return losses, named("patch", accuracies) | {"offset px": FRAME_SIDE * gap[:, :2].detach().mean()}


class CellHeads(nn.Module):
    """Heads on the visual tokens that the language model reads: what each cell holds of each colour, its own position,
    and the look of its object."""

    def __init__(self, width: int):
        super().__init__()
        self.colours = mlp(width, CELL * len(COLOURS))
        self.position = nn.Linear(width, 2)
        self.looks = classifiers(width, *LOOK)

    def losses(self, cells: torch.Tensor, labels: Tensors) -> Losses:
        """Losses and metrics; `cells` (num_frames, num_cells, width)."""
        grid = int(cells.shape[1] ** 0.5)
        centres = (torch.arange(grid, device=cells.device) + 0.5) / grid
        looks, accuracies = class_loss(self.looks, cells.flatten(0, 1), labels["cell looks"].flatten(0, 1))
        losses = {
            "cell colours": F.mse_loss(self.colours(cells).float(), labels["cell colours"]),
            "position": F.mse_loss(
                self.position(cells).float(), torch.cartesian_prod(centres, centres).expand(len(cells), -1, -1)
            ),
            "cell looks": looks,
        }
        return losses, named("cell", accuracies)


class TrackHeads(nn.Module):
    """Heads on the language model's states at the cells of the frames: which frame a cell is in, which object it
    shows, what that did so far, where it was and how far it moved, and how many there are, see
    [`labels.track_labels`]. All objects of a clip are supervised, not only those that a question names."""

    def __init__(self, width: int):
        super().__init__()
        self.classes = classifiers(width, *CLOSED_SETS)
        self.past = mlp(width, MAX_FRAMES * PLACE)
        self.movements = mlp(width, (MAX_FRAMES - 1) * 2)
        self.centres = mlp(width, 3)
        self.counts = mlp(width, MAX_OBJECTS + 1)
        self.time = mlp(width, MAX_FRAMES)
        self.moment = mlp(width, 1)
        self.groups = mlp(width, sum(len(CLOSED_SETS[kind]) for kind in GROUPED) * (MOST_ALIKE + 1))

    def losses(
        self,
        first: torch.Tensor,
        early: torch.Tensor,
        middle: torch.Tensor,
        late: torch.Tensor,
        labels: Tensors,
    ) -> Losses:
        """Losses and metrics; `first`, `early`, `middle` and `late` (num_cells_of_all_clips, width): states of the
        layers from which the frame, places, movements and classes are read."""
        shown, every, known = labels["cells"], labels["video_cells"], labels["past_known"]
        past = self.past(early[shown]).unflatten(-1, (MAX_FRAMES, PLACE))
        past_loss, gap = place_loss(past[known], labels["past"][known])
        movements, moved = self.movement_loss(middle[shown], labels["movements"], labels["movements_known"])
        centres, _ = choice_loss(self.centres(early[every]), labels["centres"])
        time, right_times = choice_loss(self.time(first[every]), labels["time"])
        counts, right_counts = choice_loss(self.counts(late[every]), labels["counts"])
        groups, right_groups = self.group_loss(late[labels["group_cells"]], labels["groups"])
        classes, accuracies = class_loss(self.classes, late[shown], labels["classes"])
        moment, error = moment_loss(self.moment, late[shown], labels["moments"])
        losses = {
            "track classes": classes, "past": past_loss, "movements": movements, "centres": centres, "time": time,
            "counts": counts, "groups": groups, "track moment": moment,
        }  # fmt: skip
        accuracies |= {"time": right_times, "count": right_counts, "group": right_groups, "moment": error}
        return losses, named("track", accuracies) | {"past px": gap, "movement px": moved}

    def movement_loss(
        self, states: torch.Tensor, movements: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Error of movements between frames, |x| + |y| in fractions of the frame, and as a metric the mean of both in
        pixels. During a pause an object lacks the two pixels or so that a moving one covers between dense frames."""
        predicted = self.movements(states).float().unflatten(-1, (MAX_FRAMES - 1, 2))
        gap = ((predicted - movements).abs().sum(-1) * known).sum() / known.sum().clamp(min=1)
        return gap, FRAME_SIDE * gap.detach() / 2

    def group_loss(self, states: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of how many objects of each class there are, summed over classes, and the accuracy for classes
        of two objects or more."""
        logits = self.groups(states).float().unflatten(-1, (-1, MOST_ALIKE + 1))
        known, several = groups != IGNORED, groups > 1
        loss = F.cross_entropy(logits[known], groups[known], reduction="sum") / len(groups)
        right = (logits.argmax(-1) == groups) & several
        return loss, right.sum() / several.sum().clamp(min=1)


class ObjectHeads(nn.Module):
    """Heads on the states of one kind of token that stands for an object, such as a region or [SEG]: its classes, its
    place over time, and the moment at which it appears, leaves or stops."""

    def __init__(self, width: int):
        super().__init__()
        self.classes = classifiers(width, *CLOSED_SETS)
        self.trajectory = mlp(width, TRAJECTORY_TIMES * PLACE)
        self.moment = mlp(width, 1)

    def losses(self, name: str, states: torch.Tensor, labels: Tensors) -> Losses:
        """Losses and metrics of objects `name`; `states` (num_objects, width)."""
        classes, accuracies = class_loss(self.classes, states, labels[f"{name} classes"])
        trajectory = self.trajectory(states).unflatten(-1, (TRAJECTORY_TIMES, PLACE))
        loss, gap = place_loss(trajectory, labels[f"{name} trajectory"], ASKED_VISIBILITY_WEIGHT)
        losses, metrics = {f"{name} classes": classes, f"{name} trajectory": loss}, {f"{name} px": gap}
        losses[f"{name} moment"], metrics[f"{name} moment"] = moment_loss(
            self.moment, states, labels[f"{name} moments"]
        )
        return losses, named(name, accuracies) | metrics


class QuestionHeads(nn.Module):
    """Heads on the states from which answers start: the objects that the question is about, whether the object that it
    describes is there, which of two events comes first, and how many objects an answer lists, and where each of them
    is. The places tell which objects: with their number alone, lists ended too early (docs/log.md)."""

    def __init__(self, width: int):
        super().__init__()
        self.objects = nn.ModuleDict({name: ObjectHeads(width) for name in QUESTIONED})
        sizes = {"fits": 2, "number": MAX_OBJECTS + 1, "order": len(ORDER)}
        self.choices = nn.ModuleDict({name: mlp(width, size) for name, size in sizes.items()})
        self.members = mlp(width, MOST_LISTED * TRAJECTORY_TIMES * PLACE)

    def losses(self, states: torch.Tensor, labels: Tensors) -> Losses:
        """Losses and metrics; `states` (num_turns, width)."""
        asked = [(name, labels[f"{name} turns"]) for name in QUESTIONED]
        parts = [self.objects[name].losses(name, states[turns], labels) for name, turns in asked if len(turns)]
        for name, head in self.choices.items():
            known = labels[name] != IGNORED
            if known.any():
                loss, right = choice_loss(head(states[known]), labels[name][known])
                parts.append(({name: loss}, {f"question {name}": right}))
        if "members" in labels:
            found = self.members(states[labels["member turns"]])
            loss, gap = place_loss(
                found.unflatten(-1, labels["members"].shape[1:]), labels["members"], ASKED_VISIBILITY_WEIGHT
            )
            parts.append(({"members": loss}, {"members px": gap}))
        return merged(parts)


class MaskHeads(nn.Module):
    """Heads on the shape features of single masks, of both shape encoders: shape, size and place."""

    def __init__(self, width: int):
        super().__init__()
        self.classes = nn.ModuleList(classifiers(width, "shape", "size") for _ in range(2))
        self.places = nn.ModuleList(mlp(width, PLACE) for _ in range(2))

    def losses(self, features: list[torch.Tensor], labels: Tensors) -> Losses:
        """Losses and metrics; `features`: (num_masks, width) of each encoder."""
        losses, metrics = {"mask classes": 0.0, "mask places": 0.0}, {}
        for own, classes, place in zip(features, self.classes, self.places, strict=True):
            loss, accuracies = class_loss(classes, own, labels["classes"])
            losses["mask classes"] = losses["mask classes"] + loss
            losses["mask places"] = losses["mask places"] + place_loss(place(own), labels["places"])[0]
            metrics |= named("mask", accuracies)
        return losses, metrics


class Heads(nn.Module):
    """The auxiliary heads of stages 2 and 3, but for [`QuestionHeads`], which stage 3 alone has."""

    def __init__(self, width: int):
        super().__init__()
        self.patches, self.cells, self.tracks = PatchHeads(width), CellHeads(width), TrackHeads(width)
        self.masks = MaskHeads(width)
        self.context = mlp(width, PLACE)
        self.pooled, self.shape = classifiers(width, "colour", "size"), classifiers(width, "shape", "size")
        self.regions, self.segs = ObjectHeads(width), ObjectHeads(width)
