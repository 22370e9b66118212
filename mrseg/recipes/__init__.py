"""Recipes: one YAML page per experiment of a paper, with its loader and runner."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "loader": ["Recipe", "list_recipes", "load_recipe"],
        "runner": ["build_network", "train_recipe"],
    },
)
