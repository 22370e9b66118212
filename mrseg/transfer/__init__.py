"""Carry a network from one MR sequence to another: load weights, freeze, fuse, with a report of each."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "grouping": ["groups"],
        "drawing": ["draw_groups"],
        "freezing": ["freeze", "train_all", "train_last", "train_norms"],
        "gradual": ["GradualUnfreezing"],
        "rates": ["group_rates"],
        "statistics": ["adapt_statistics"],
        "cutting": ["find_cut"],
        "features": ["cache_features", "fit_cached"],
        "weights": ["load_weights"],
        "fusion": ["hybrid"],
    },
)
