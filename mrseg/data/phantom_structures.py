"""True labels of the structures of a synthetic brain, in the numbering of MRBrainS13's LabelsForTraining."""

from __future__ import annotations

import numpy as np

from mrseg.data.labels import MRBRAINS13_CLASSES
from mrseg.data.phantom_brain import cerebellum_hull, hemisphere_hull, stem_hull, ventricle_depth
from mrseg.data.phantom_head import Head
from mrseg.data.phantom_skull import cavity_depth
from mrseg.data.phantom_subject import Subject

_STRUCTURE_OF_TISSUE = {"csf": "csf", "gm": "cogm", "deep_gm": "bg", "wm": "wm", "lesion": "wml"}
_BACKGROUND, _CSF, _VENTRICLES, _CEREBELLUM, _STEM = map(
    MRBRAINS13_CLASSES.index, ("background", "csf", "ventricles", "cerebellum", "brainstem")
)
_STEM_TOP_MM = -8.0  # where the midbrain ends, in the frame of the average head
_SLACK_MM = 1.0  # CSF so near to a ventricle belongs to it


def structure_labels(head: Head) -> np.ndarray:
    """Returns the true labels uint8 (x, y, z), classes of ``mrseg.data.labels.MRBRAINS13_CLASSES``.

    The class with the largest share of the voxel wins: cortex, nuclei and thalami ("bg"), white matter,
    lesion, CSF, and all else as background (vessels, the fluid of the eyes). CSF of the ventricles, and the
    brain of cerebellum and brain stem, are told by where the voxel's centre lies. The hippocampus counts as
    cortex.
    """
    labels = np.empty(head.shape, np.uint8)
    subject = head.subject
    for x in range(head.shape[0]):  # a plane at a time bounds the memory
        labels[x] = _plane(head, subject, x)
    return labels


def _plane(head: Head, subject: Subject, x: int) -> np.ndarray:
    """Labels (y, z) of one sagittal plane."""
    shape = head.shape[1:]
    shares = np.zeros((len(MRBRAINS13_CLASSES), *shape), np.float32)
    for tissue, share in zip(head.tissues, head.fractions[:, x], strict=True):
        shares[MRBRAINS13_CLASSES.index(_STRUCTURE_OF_TISSUE.get(tissue, "background"))] += share
    voxels = np.stack([np.full(shape, x), *np.indices(shape)]).reshape(3, -1)
    world = head.affine[:3, :3] @ voxels + head.affine[:3, 3:]
    at = subject.canonical(world)
    folded = (np.abs(at[0]), at[1], at[2])

    def here(condition: np.ndarray) -> np.ndarray:
        return condition.reshape(shape)

    stem = here((stem_hull(at) > 0) & (at[2] < _STEM_TOP_MM))
    cerebellum = here(cerebellum_hull(folded) > hemisphere_hull(folded)) & ~stem
    cerebellum &= here(cerebellum_hull(folded) > -_SLACK_MM)
    brain = [MRBRAINS13_CLASSES.index(name) for name in _STRUCTURE_OF_TISSUE.values() if name != "csf"]
    for place, structure in ((stem, _STEM), (cerebellum, _CEREBELLUM)):
        shares[structure, place] = shares[:, place][brain].sum(axis=0)
        for index in brain:
            shares[index, place] = 0
    ventricle = here(ventricle_depth(at, subject) > -_SLACK_MM)
    shares[_VENTRICLES, ventricle] = shares[_CSF, ventricle]
    shares[_CSF, ventricle] = 0
    outside = here(cavity_depth(subject, at) < 0)  # the eyes
    shares[_BACKGROUND, outside] += shares[_CSF, outside]
    shares[_CSF, outside] = 0
    return shares.argmax(axis=0).astype(np.uint8)
