"""Settings that `sama serve`, `sama demo` and the application of Ray Serve have in common."""

from typing import TYPE_CHECKING, Protocol

from .limits import Limits
from .loading import load_model


# What imports torch is imported when a model is loaded, so that --help does not wait for it
if TYPE_CHECKING:
    from .engine import Engine

# Rather than an option, which other users of the machine may see in the list of processes
KEY_VARIABLE = "SAMA_API_KEY"
COMPONENT_FRACTION = 0.05


class ModelSettings(Protocol):
    """Which model is loaded, and how: see [`load_model`] and [`component_fraction`]."""

    model: str
    device: str
    dtype: str
    preset: str | None
    trust_remote_code: bool
    min_component_fraction: float | None


def component_fraction(given: float | None, preset: str | None) -> float:
    """How large a part of a mask must be, as a fraction of the mask, to be kept: by default 0.05, and with the preset
    "published" 0, since the release drops nothing."""
    if given is not None:
        return given
    return 0.0 if preset == "published" else COMPONENT_FRACTION


def make_engine(settings: ModelSettings, limits: Limits) -> "Engine":
    """Loads a model and makes its engine. Raises what [`load_model`] raises."""
    from .engine import Engine

    model, processor = load_model(
        settings.model, settings.device, settings.dtype, settings.preset, settings.trust_remote_code
    )
    return Engine(model, processor, limits, component_fraction(settings.min_component_fraction, settings.preset))
