"""Overlap and surface distances (NumPy), confidence intervals, Keras metrics and losses."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "overlap": [
            "accuracy", "avd", "confusion_matrix", "dice", "jaccard", "mask_scores", "overall_accuracy",
            "precision", "recall", "scores", "specificity",
        ],
        "surface": [
            "SurfaceDistances", "assd", "hausdorff", "hd95", "hd95_in_plane", "mask_hausdorff",
            "mean_pred_to_true", "mean_true_to_pred", "surface_dice", "surface_distances",
        ],
        "confidence": ["bootstrap_ci", "holm", "paired_test", "wald_ci"],
        "streaming": ["Accuracy", "Dice", "Jaccard", "Precision", "Recall", "Specificity", "for_classes"],
        "losses": [
            "CategoricalCrossEntropy", "CategoricalDice", "CategoricalFocal", "CategoricalTversky",
            "DiceCrossEntropy", "categorical_cross_entropy", "categorical_dice", "categorical_focal",
            "categorical_tversky", "dice_cross_entropy", "mean_loss_rates",
        ],
    },
)  # fmt: skip
