"""Methods without a network: brain masks by threshold and by boundary tracking, the dense CRF (NumPy)."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "otsu": ["bi_level_otsu"],
        "aabl": ["low_intensity_mask"],
        "cusum": ["Boundary", "cusum_boundary", "cusum_mask"],
        "crf": ["dense_crf", "dense_crf_volume"],
        "volumes": ["BASELINES", "brain_mask_series", "brain_mask_volume"],
    },
)
