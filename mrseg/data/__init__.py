"""Scans in and out: geometry, files, cases, registration, labels, phantom, preprocessing, tf.data."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "geometry": [
            "check_same_grid", "from_canonical", "grid_distance_mm", "grid_with_spacing", "head_grid",
            "head_mask", "plane_grid", "resample", "to_canonical", "voxel_sizes",
        ],
        "dicom": ["DicomSeries", "list_series", "read_slices"],
        "slices": ["Slices", "resample_slices", "stack_slices"],
        "io": ["Series", "read_ct", "read_labels", "read_series", "read_volume"],
        "writing": ["write_labels", "write_volume"],
        "cases": ["Case", "read_cases", "select", "split_by_subject", "write_cases"],
        "frames": ["head_box_grid", "head_resize_grid"],
        "bias": ["bias_correction", "bias_field"],
        "motion": ["correct_motion"],
        "labels": [
            "class_colours", "class_fractions", "hu_to_labels", "merge_labels", "relabel",
            "write_label_table",
        ],
        "registration": [
            "apply_transform", "check_quality", "load_registration", "register", "save_registration",
            "transform_points",
        ],
        "normalization": ["histogram_equalization", "lcn", "min_max", "quantile_zscore"],
        "augmentation": ["Augmentation"],
        "contrast": ["random_contrast"],
        "patches": ["Sampling", "channel_means", "patch_starts"],
        "preprocessing": ["Preprocessing"],
        "examples": ["load_examples"],
        "pipeline": ["build_dataset"],
    },
    modules=["datasets", "phantom"],
)  # fmt: skip
