"""Files that ship with SAMA. They lie in the package folder both in a checkout and in an installed wheel."""

from pathlib import Path


PACKAGE = Path(__file__).resolve().parent
SMALL_MODEL = PACKAGE / "checkpoints" / "sama-tiny"  # the default wherever a model can be left out
EXAMPLE_CLIPS = PACKAGE / "assets"
DATA_CONFIGS = PACKAGE / "data_configs"  # catalogues of data sets and benchmarks, training mixtures
