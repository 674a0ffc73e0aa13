"""A process that asks behind a cache, for test_judges.py. It imports little, so that it starts quickly."""

from sama.evaluation.judges import CachedJudge


class Wordy:
    """A judge with long answers."""

    identity = {"model": "wordy"}

    def __call__(self, messages):
        return "score: 85".ljust(100_000, "x")


def ask_often(folder) -> list[int]:
    """Lengths of 20 answers."""
    judge = CachedJudge(Wordy(), folder)
    return [len(judge([{"role": "user", "content": str(number)}])) for number in range(20)]
