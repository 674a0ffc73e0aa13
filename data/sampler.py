"""The order in which a mixture is read: grouped by length, mixed in kind, the same again after a stop."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


BATCHES_IN_MEGABATCH = 400  # what is sorted together: enough for batches of like length, few enough to stay random


class MixtureSampler(Sampler[int]):
    """
    Indices of a mixture in an order that depends on the seed and the epoch alone.

    A random order is cut into megabatches; each is sorted by length and cut into batches, so the samples of one batch
    are of like length; then the batches of the megabatch are shuffled. Batches that follow each other, which the ranks
    of a run take in one step, are therefore of mixed kinds. Every index comes once an epoch.

    Args:
        lengths (sequence of `int`): One for each sample, repeats included: `mixture.lengths`.
        batch_size (`int`): Samples of one batch on one rank.
        seed (`int`): Of the run.
        rank (`int`), num_ranks (`int`): With more than one rank only this rank's batches come, as many on every rank;
            what is left at the end of an epoch waits for another. Accelerate divides the batches itself: leave it 1.
        grouped (`bool`): Whether to group by length; without it the order is plainly random.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int = 0, rank: int = 0, num_ranks: int = 1, grouped=True
    ):
        if batch_size < 1 or not 0 <= rank < num_ranks:
            raise ValueError(f"batch_size is {batch_size} and rank {rank} of {num_ranks}: no batch belongs to it")
        self._lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.rank, self.num_ranks, self.grouped = rank, num_ranks, grouped
        self.epoch, self._handed_out, self._start = 0, 0, 0

    def __len__(self) -> int:
        """Indices of a whole epoch on this rank."""
        return len(self._lengths) if self.num_ranks == 1 else self._steps() * self.batch_size

    def _steps(self) -> int:
        return len(self._lengths) // (self.batch_size * self.num_ranks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that comes next. The one that is being read, or was resumed in its middle, goes on."""
        if epoch != self.epoch:
            self.epoch, self._start, self._handed_out = epoch, 0, 0

    def order(self) -> np.ndarray:
        """All indices of this epoch, on all ranks; index + epoch * number of samples, as a mixture takes them."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self._lengths))
        if self.grouped:
            size = self.batch_size * BATCHES_IN_MEGABATCH
            order = np.concatenate(
                [self._group(order[i : i + size], rng) for i in range(0, len(order), size)] or [order]
            )
        return order + self.epoch * len(self._lengths)

    def _group(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Stable, so that samples of one length stay in random order
        indices = indices[np.argsort(-self._lengths[indices], kind="stable")]
        whole = len(indices) // self.batch_size * self.batch_size
        # The incomplete batch comes last, or those behind it would not be cut where the loader cuts
        batches = rng.permutation(indices[:whole].reshape(-1, self.batch_size))
        return np.concatenate([batches.ravel(), indices[whole:]])

    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        order = self.order()
        if self.num_ranks > 1:
            whole = self._steps() * self.num_ranks * self.batch_size
            order = order[:whole].reshape(-1, self.num_ranks, self.batch_size)[:, self.rank].ravel()
        for position in range(start, len(order)):
            self._handed_out = position + 1
            yield int(order[position])

    def state_dict(self, consumed: int | None = None) -> dict:
        """
        Where the reading stands, to be given to `load_state_dict` of a sampler over the same mixture.

        Args:
            consumed (`int`, *optional*): Samples of this epoch that this rank has trained on. Loader workers fetch
                ahead, so what was handed out, which counts without it, is more than that.
        """
        position = self._handed_out if consumed is None else consumed
        return {"seed": self.seed, "epoch": self.epoch, "position": position, **self._shape()}

    def _shape(self) -> dict:
        return {
            "samples": len(self._lengths),
            "batch_size": self.batch_size,
            "num_ranks": self.num_ranks,
            "grouped": self.grouped,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` says: the next iteration gives exactly what had not been read."""
        different = [
            f"{key} {state[key]} and not {value}" for key, value in self._shape().items() if state[key] != value
        ]
        if state["seed"] != self.seed:
            different.append(f"seed {state['seed']} and not {self.seed}")
        if different:
            raise ValueError(f"the saved order was made with {', '.join(different)}: it cannot go on here")
        self.epoch, self._start, self._handed_out = state["epoch"], state["position"], state["position"]
