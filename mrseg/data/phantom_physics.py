"""Signal equations and tissue constants that turn tissue fractions into MR signals and Hounsfield units.

All constants are for 1.5 T. They are fixed by the literature below and by stated choices, never by how well
some method segments the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from mrseg.data.phantom_subject import TISSUES


@dataclass(frozen=True)
class Tissue:
    """Constants of one tissue at 1.5 T; ``cbf`` in ml/100 ml/min and ``cbv`` in ml/100 ml."""

    t1_ms: float
    t2_ms: float
    t2star_ms: float
    proton_density: float
    hu: float
    cbv: float = 0.0
    cbf: float = 0.0


# Sources:
# MR of csf, gm, wm, fat, muscle: BrainWeb's published table for 1.5 T (Kwan, Evans, Pike 1999, IEEE Trans.
#   Med. Imaging 18:1085).
# Cortical bone: T1 140-260 ms, T2* 0.42-0.50 ms at 1.5 T (Reichert et al. 2005, Magn. Reson. Imaging 23:611);
#   a fifth to a quarter of its volume is water and the T2 of the bound water about 0.4 ms (PMC7531487,
#   PMC3899101).
# Marrow: T1 549 ms, T2 49 ms at 1.5 T (de Bazelaire et al. 2004, Radiology 230:652). T2* and density are
#   choices: trabeculae spoil the field and take a third of the room.
# Blood: T1 1441 ms, T2 290 ms at 1.5 T (Stanisz et al. 2005, Magn. Reson. Med. 54:507). T2* is a choice; flow
#   is ignored.
# Deep grey matter: half-way between grey and white matter, T2 shorter for its iron (choice).
# Lesion: an oedematous tumour with long T1 and T2; an old bleeding, whose iron shortens T2 and T2* (choices).
#   The field outside the bleeding is not spoilt, as it is in a scan.
# HU: ranges of fat, grey and white matter, blood and bone in Buzug 2008, Computed Tomography, p. 475;
#   muscle and csf as in radiology teaching. The diploe's value is of marrow with thin trabeculae;
#   the anatomy mixes 5 to 65 % of cortical bone into it.
# The journal references are quoted for values in common use and were not read again for this table;
#   PMC7531487 and PMC3899101 were, in their abstracts.
# Perfusion: grey matter CBV 4 %, CBF 60; white matter 2 %, 22 (Calamante et al. 2000, Magn. Reson. Med.
#   44:466).
#   Muscle is hardly perfused at rest; for the artery see ``bolus_r2star``.
TISSUE_TABLE: dict[str, Tissue] = {
    "air": Tissue(1.0, 1.0, 1.0, 0.0, -1000.0),
    "skin_muscle": Tissue(900.0, 47.0, 30.0, 1.00, 45.0, cbv=0.3, cbf=3.0),
    "fat": Tissue(350.0, 70.0, 58.0, 1.00, -95.0),
    "cortical_bone": Tissue(200.0, 0.5, 0.45, 0.20, 1500.0),
    "diploe": Tissue(549.0, 49.0, 12.0, 0.65, 500.0),
    "csf": Tissue(2569.0, 329.0, 58.0, 1.00, 10.0),
    "gm": Tissue(833.0, 83.0, 69.0, 0.86, 38.0, cbv=4.0, cbf=60.0),
    "wm": Tissue(500.0, 70.0, 61.0, 0.77, 28.0, cbv=2.0, cbf=22.0),
    "deep_gm": Tissue(670.0, 74.0, 60.0, 0.82, 36.0, cbv=4.0, cbf=60.0),
    "vessel": Tissue(1441.0, 290.0, 100.0, 0.85, 50.0, cbv=25.0, cbf=400.0),
    "lesion": Tissue(1250.0, 150.0, 110.0, 0.92, 24.0, cbv=6.0, cbf=60.0),
}
#: Kind of lesion (``mrseg.data.phantom_subject.LESIONS``) -> its constants, if not those of the table.
_LESION_TABLE: dict[bool | str, Tissue] = {"bleed": Tissue(900.0, 40.0, 15.0, 0.80, 35.0)}

#: What differs in a newborn of 40 weeks: unmyelinated white matter is wetter than grey matter and has the
#: longer T1 and T2. At 3 T the rates of frontal grey matter are those of white matter times 1.8 (R2) and 1.3
#: (R1) (Williams et al. 2005, Radiology 235:595, read in its abstract). The times themselves are choices.
NEWBORN_TABLE: dict[str, Tissue] = {
    "gm": Tissue(1500.0, 115.0, 90.0, 0.92, 34.0, cbv=4.0, cbf=60.0),
    "wm": Tissue(1950.0, 205.0, 140.0, 0.94, 24.0, cbv=2.0, cbf=22.0),
    "deep_gm": Tissue(1400.0, 120.0, 90.0, 0.91, 34.0, cbv=4.0, cbf=60.0),
}
#: T2 of the brain is longer for every week before 40 (direction: Counsell et al. 2003, Am. J. Neuroradiol.
#: 24:1654, read in its abstract; the size is a choice).
T2_RISE_PER_WEEK = 0.015

#: T1w: spoiled gradient echo with BrainWeb's settings (Kwan et al. 1999).
T1W = {"tr_ms": 18.0, "te_ms": 10.0, "flip_deg": 30.0}
#: T2w: turbo spin echo seen as a spin echo at its effective echo time, usual clinical settings.
T2W = {"tr_ms": 3300.0, "te_ms": 100.0}
#: The same of newborns, whose long T1 and T2 need longer times.
NEWBORN_T2W = {"tr_ms": 6000.0, "te_ms": 120.0}
#: DSC: gradient-echo EPI at 1.5 T.
DSC = {"tr_ms": 1500.0, "te_ms": 45.0, "flip_deg": 90.0}
#: Units of the images: white matter of the first volume lies in the hundreds, as scanners store it.
SIGNAL_SCALE = 2000.0


def spoiled_gradient_echo(tissue: Tissue, *, tr_ms: float, te_ms: float, flip_deg: float) -> float:
    """Steady-state signal of a spoiled gradient echo.

    ``PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE / T2*)`` with ``E1 = exp(-TR / T1)``.
    """
    flip = np.deg2rad(flip_deg)
    e1 = np.exp(-tr_ms / tissue.t1_ms)
    steady = np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1)
    return float(tissue.proton_density * steady * np.exp(-te_ms / tissue.t2star_ms))


def spin_echo(tissue: Tissue, *, tr_ms: float, te_ms: float) -> float:
    """Signal of a spin echo, ``PD (1 - exp(-TR / T1)) exp(-TE / T2)``."""
    recovered = 1 - np.exp(-tr_ms / tissue.t1_ms)
    return float(tissue.proton_density * recovered * np.exp(-te_ms / tissue.t2_ms))


def tissue_of(name: str, *, lesion: bool | str = False, weeks: float | None = None) -> Tissue:
    """Constants of a tissue of an adult, or of a newborn of so many weeks, with this kind of lesion."""
    if name == "lesion":
        return _LESION_TABLE.get(lesion, TISSUE_TABLE[name])
    if weeks is None or name not in NEWBORN_TABLE:
        return TISSUE_TABLE[name]
    young = NEWBORN_TABLE[name]
    return replace(young, t2_ms=young.t2_ms * (1 + T2_RISE_PER_WEEK * (40.0 - weeks)))


def tissue_signals(
    sequence: str,
    rng: np.random.Generator | None = None,
    *,
    lesion: bool | str = False,
    weeks: float | None = None,
) -> np.ndarray:
    """Signal of every pure tissue for "T1w", "T2w" or "dsc" (baseline), in the order of ``TISSUES``.

    With ``rng`` the constants of each tissue vary between subjects by a few per cent, as in people. With
    ``weeks`` they are a newborn's, and so is the T2w sequence.
    """
    signals = []
    for tissue in (tissue_of(name, lesion=lesion, weeks=weeks) for name in TISSUES):
        if rng is not None:
            t1, t2, pd = np.exp(rng.normal(0, (0.03, 0.03, 0.01)))
            tissue = replace(
                tissue,
                t1_ms=tissue.t1_ms * t1,
                t2_ms=tissue.t2_ms * t2,
                t2star_ms=tissue.t2star_ms * t2,
                proton_density=tissue.proton_density * pd,
            )
        if sequence == "T1w":
            signals.append(spoiled_gradient_echo(tissue, **T1W))
        elif sequence == "T2w":
            signals.append(spin_echo(tissue, **(T2W if weeks is None else NEWBORN_T2W)))
        else:
            signals.append(spoiled_gradient_echo(tissue, **DSC))
    return np.asarray(signals, np.float32) * np.float32(SIGNAL_SCALE)


def tissue_hu(lesion: bool | str = False, weeks: float | None = None) -> np.ndarray:
    """Hounsfield units of every pure tissue, in the order of ``TISSUES``."""
    return np.asarray([tissue_of(name, lesion=lesion, weeks=weeks).hu for name in TISSUES], np.float32)


def bolus_r2star(
    times_s: np.ndarray, arrival_s: float, lesion: bool | str = False, weeks: float | None = None
) -> np.ndarray:
    """Rise of R2* (1/s) of every tissue during the first pass of a contrast agent.

    The artery follows a gamma variate ``t^3 exp(-t / 1.5 s)``; a tissue's curve is its CBF times the
    convolution of the artery with ``exp(-t / MTT)``, MTT = CBV / CBF. The dose is such that grey matter
    (CBV 4 %, CBF 60 ml/100 ml/min) loses 40 % of its signal at the peak. The artery itself is seen as a
    quarter of blood, which keeps it off the noise floor.

    Args:
        times_s: (t,) rising times.
        arrival_s: when the bolus reaches the brain.
        lesion: its kind.
        weeks: age of a newborn.

    Returns:
        (tissues, t) array, zero before arrival.

    Reference:
        Ostergaard et al. 1996, Magn Reson Med 36:715 (the simulation of the second half of the paper).
    """
    step = 0.1
    fine = np.arange(0.0, float(times_s[-1]) + step, step)
    after = np.clip(fine - arrival_s, 0.0, None)
    artery = after**3 * np.exp(-after / 1.5)

    def curve(tissue: Tissue) -> np.ndarray:
        if tissue.cbv <= 0:
            return np.zeros_like(fine)
        mtt_s = 60.0 * tissue.cbv / tissue.cbf
        return tissue.cbf * np.convolve(artery, np.exp(-fine / mtt_s))[: len(fine)] * step

    peak = curve(TISSUE_TABLE["gm"]).max() if after.any() else 1.0
    dose = -np.log(0.6) / (DSC["te_ms"] / 1000.0) / max(peak, 1e-9)
    curves = (curve(tissue_of(name, lesion=lesion, weeks=weeks)) for name in TISSUES)
    return np.stack([np.interp(times_s, fine, dose * found) for found in curves])


def bias_field(shape: tuple[int, ...], rng: np.random.Generator, strength: float) -> np.ndarray:
    """A smooth positive factor, float32, whose logarithm stays within plus and minus ``strength``."""
    axes = [np.linspace(-1.0, 1.0, n, dtype=np.float32) for n in shape]
    field = np.zeros(shape, np.float32)
    for _ in range(4):
        waves, phases = rng.uniform(0.2, 1.1, 3), rng.uniform(0, 2 * np.pi, 3)
        x, y, z = (
            np.cos(np.pi * k * a + p).astype(np.float32) for k, a, p in zip(waves, axes, phases, strict=True)
        )
        field += np.float32(rng.normal()) * (x[:, None, None] * y[None, :, None] * z[None, None, :])
    top = float(np.abs(field).max())
    return np.exp(field * np.float32(strength / top)) if top > 0 else np.ones(shape, np.float32)


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise ``sigma`` in both parts; float32, never negative."""
    if sigma == 0:
        return signal.astype(np.float32)
    real = signal + np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, imaginary)


def ct_noise(shape: tuple[int, ...], sigma_hu: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of standard deviation ``sigma_hu``, correlated within slices as in CT; float32."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(noise, (0.7, 0.7, 0.0), mode="wrap")
    spread = float(noise.std())
    return noise * np.float32(sigma_hu / spread) if spread > 0 else noise
