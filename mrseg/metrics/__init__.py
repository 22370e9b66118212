"""Overlap and surface distances (NumPy), confidence intervals, Keras metrics and losses."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "overlap": ["confusion_matrix", "dice", "jaccard", "precision", "recall", "scores", "specificity"],
        "surface": ["assd", "hausdorff", "hd95", "mask_hausdorff", "surface_dice"],
        "confidence": ["bootstrap_ci", "paired_test", "wald_ci"],
        "streaming": ["for_classes"],
        "losses": ["CategoricalCrossEntropy", "CategoricalDice", "DiceCrossEntropy"],
    },
)
