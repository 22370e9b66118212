"""mrseg: segment MR scans of the head, and carry a network from one MR sequence to another.

mrseg.data        scans in and out, geometry, registration, labels from CT, the phantom, tf.data pipelines
mrseg.models      the papers' networks: functions that return keras.Model
mrseg.transfer    groups of layers, freezing, weight loading with a report, the two-encoder hybrid
mrseg.metrics     overlap and surface distances (NumPy), confidence, Keras metrics and losses
mrseg.baselines   methods without a network: Otsu, low-intensity mask, CUSUM, dense CRF
mrseg.postprocess clean-up of label maps
mrseg.attenuation attenuation maps at 511 keV; mrseg.perfusion: curves of a DSC series
mrseg.Segmenter   network + preprocessing + label table + provenance in one folder
mrseg.Ensemble    several segmenters that answer together: the mean of their probabilities
mrseg.Inference   how it is asked: overlap, blending, mirrors, Monte-Carlo dropout, uncertainty
mrseg.predict_cohort   every scan of a manifest or BIDS folder, as BIDS derivatives
mrseg.pseudo_label   labels of a new sequence from a trained network and another scan of the same head
mrseg.evaluate    tidy rows: subject, class, metric, value
mrseg.summarize   pooled over voxels, mean over subjects, mean over slices; mrseg.compare: two methods, paired
mrseg.recipes     one YAML page per experiment
mrseg.cross_validate   an mrseg.Experiment (a recipe, a grid, numbers of subjects) over folds by subject
mrseg.studies     all experiments of a paper with their tables, one YAML page each

The same from a shell: `mrseg --help`.
"""

from mrseg._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "segmenter": ["Segmenter"],
        "ensemble": ["Ensemble"],
        "exported": ["Exported"],
        "passes": ["Inference"],
        "evaluation": ["evaluate"],
        "prediction": ["predict_cohort"],
        "pseudo_labels": ["pseudo_label"],
        "experiments": ["Experiment"],
        "crossval": ["cross_validate"],
        "summaries": ["compare", "summarize"],
    },
    modules=[
        "data", "models", "transfer", "metrics", "recipes", "studies",
        "baselines", "attenuation", "perfusion", "postprocess",
    ],
)  # fmt: skip
