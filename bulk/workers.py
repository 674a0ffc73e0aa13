"""What the workers of all runs share: predictions as texts, the dtype where a model runs."""

import argparse
import json
from collections.abc import Sequence

from ..benchmarks.benchmark import Prediction
from ..configuration_sama import SamaConfig
from ..evaluation.run import dtype_of
from .pool import PoolSettings, Result


def predictions_to_json(predictions: Sequence[Prediction]) -> str:
    """Predictions as the text of a result."""
    return json.dumps([prediction.to_dict() for prediction in predictions], ensure_ascii=False)


def predictions_of(result: Result, names: Sequence[str]) -> list[Prediction]:
    """The predictions of a result; failed ones for all names if it has none."""
    if result.text is None:
        return [Prediction(name, error=result.error) for name in names]
    return [Prediction.from_dict(line) for line in json.loads(result.text)]


def resolved_dtype(arguments: argparse.Namespace, pool: PoolSettings | None) -> str:
    """
    Name of the dtype of the weights where the model runs, which may be a machine with a GPU when this has none.

    Args:
        arguments (`argparse.Namespace`): With `model`, `preset` and `dtype`.
        pool ([`PoolSettings`], *optional*): As [`connect`] returns it.
    """
    if pool is None or arguments.dtype != "auto":
        return dtype_of(arguments)
    if not pool.gpus:
        return "float32"
    return str(SamaConfig.from_pretrained(arguments.model).dtype or "auto").removeprefix("torch.")
