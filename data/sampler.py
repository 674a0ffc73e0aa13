"""The order in which a mixture is read: grouped by length, mixed in kind, and resumable."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


BATCHES_IN_MEGABATCH = 400  # sorted together: enough for batches of similar length, few enough to stay random


class MixtureSampler(Sampler[int]):
    """
    Indices of a mixture in an order that depends on the seed and the epoch alone.

    A random order is cut into megabatches. Each is sorted by length and cut into batches of samples of similar length,
    which are then shuffled. So consecutive batches, which the ranks of a run take in one step, are of mixed kinds.
    Every index comes once per epoch.

    Args:
        lengths (sequence of `int`): Length of each sample, repeats included: `mixture.lengths`.
        batch_size (`int`): Samples of a batch on one rank.
        seed (`int`): Of the run.
        rank (`int`), num_ranks (`int`): With more than one rank, only the batches of this rank. All ranks have the
            same number; an incomplete step at the end of an epoch is dropped. Accelerate distributes batches itself:
            leave `num_ranks` at 1.
        grouped (`bool`): Whether to group by length. Otherwise the order is random.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int = 0, rank: int = 0, num_ranks: int = 1, grouped=True
    ):
        if batch_size < 1 or not 0 <= rank < num_ranks:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank}, num_ranks={num_ranks}: the batch size must be at least 1 and "
                "the rank below num_ranks"
            )
        self._lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.rank, self.num_ranks, self.grouped = rank, num_ranks, grouped
        self.epoch, self._handed_out, self._start = 0, 0, 0

    def __len__(self) -> int:
        """Number of indices of a whole epoch on this rank."""
        return len(self._lengths) if self.num_ranks == 1 else self._steps() * self.batch_size

    def _steps(self) -> int:
        return len(self._lengths) // (self.batch_size * self.num_ranks)

    def set_epoch(self, epoch: int) -> None:
        """Selects the next epoch. Selecting the current epoch again does not restart it."""
        if epoch != self.epoch:
            self.epoch, self._start, self._handed_out = epoch, 0, 0

    def order(self) -> np.ndarray:
        """All indices of this epoch, for all ranks: index + epoch * number of samples, as a mixture expects them."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self._lengths))
        if self.grouped:
            size = self.batch_size * BATCHES_IN_MEGABATCH
            order = np.concatenate(
                [self._group(order[i : i + size], rng) for i in range(0, len(order), size)] or [order]
            )
        return order + self.epoch * len(self._lengths)

    def _group(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # Stable, so that samples of equal length stay in random order
        indices = indices[np.argsort(-self._lengths[indices], kind="stable")]
        whole = len(indices) // self.batch_size * self.batch_size
        # The incomplete batch comes last; otherwise the loader would cut the batches behind it elsewhere
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
        The position in the epoch, for `load_state_dict` of a sampler of the same mixture.

        Args:
            consumed (`int`, *optional*): Samples of this epoch that this rank has trained on. Default: all that were
                handed out, which are more, because loader workers prefetch.
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
        """Resumes from a state: the next iteration yields exactly the indices that had not been read."""
        different = [
            f"{key} {state[key]} instead of {value}" for key, value in self._shape().items() if state[key] != value
        ]
        if state["seed"] != self.seed:
            different.append(f"seed {state['seed']} instead of {self.seed}")
        if different:
            raise ValueError(f"the saved state was made with {', '.join(different)}: this sampler cannot resume it")
        self.epoch, self._start, self._handed_out = state["epoch"], state["position"], state["position"]
