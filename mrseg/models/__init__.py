"""The papers' networks: functions that take an input shape and return a keras.Model."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {"mecheter2023": ["se_unet3d"], "islam2025": ["unet"], "builders": ["BUILDERS"]},
)
