"""Studies: the tables and figures of a paper from one YAML page and one command."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "loader": ["Study", "list_studies", "load_study"],
        "runner": ["run_study"],
    },
)
