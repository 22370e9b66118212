"""Carry a network from one MR sequence to another: load weights, freeze, fuse, with a report of each."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "grouping": ["groups"],
        "freezing": ["freeze", "train_all", "train_last"],
        "weights": ["load_weights"],
        "fusion": ["hybrid"],
    },
)
