"""What sliding a network over a volume costs besides the network: mrseg and MONAI side by side, in one run.

    python benchmarks/inference.py --output docs/results/inference.csv

The network is a constant that is there already, so that all time measured is cutting, weighting, adding and
normalising. Every round runs every method once, in turning order; a ratio is peer / mrseg within one round,
of seconds on the clock and of seconds of all threads together, which other work on the machine disturbs less.
That either gives the volume back when the network returns its input is checked before anything is timed.
MONAI is timed as it comes, and in its buffered mode along the first axis.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rounds
import torch
from monai.inferers import sliding_window_inference

from mrseg.data.patches import Sampling
from mrseg.formats import write_csv
from mrseg.inference import predict_probabilities, predict_slabs
from mrseg.passes import Inference

CLASSES, BATCH = 4, 2
#: Volume, patch, overlap: the paper's patches on a head at 1 mm, and cubes.
CASES = (
    ((256, 256, 160), (128, 128, 48), 0.5),
    ((256, 256, 256), (96, 96, 96), 0.5),
    ((256, 256, 256), (128, 128, 128), 0.25),
)


def main() -> None:
    """Checks and times everything, prints the ratios and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/inference.csv"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=len(CASES), help="so many of them")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch; mrseg uses one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the peer's deprecations
    torch.set_num_threads(options.threads)
    check()
    table = []
    for shape, patch, overlap in CASES[: options.cases]:
        for blending in ("gaussian", "constant"):
            table += compared(shape, patch, overlap, blending, options.rounds)
    write_csv(table, options.output)


def check() -> None:
    """Both give the volume back when the network returns its input."""
    image = np.random.default_rng(0).random((40, 33, 28), np.float32)
    for blending in ("gaussian", "constant"):
        ours = predict_probabilities(
            lambda batch: batch, image, Sampling((16, 16, 8), 0.5), num_classes=1,
            inference=Inference(blending=blending, batch_size=BATCH),
        )  # fmt: skip
        theirs = sliding_window_inference(
            torch.from_numpy(image)[None, None], (16, 16, 8), BATCH, lambda x: x, 0.5, mode=blending
        )
        np.testing.assert_allclose(ours[..., 0], image, atol=1e-5)
        np.testing.assert_allclose(theirs[0, 0].numpy(), image, atol=1e-5)


def compared(
    shape: tuple[int, ...], patch: tuple[int, int, int], overlap: float, blending: str, count: int
) -> list[dict[str, Any]]:
    """Median seconds of every method and the ratio of the peers to mrseg within a round."""
    image = np.random.default_rng(0).random(shape, np.float32)
    tensor = torch.from_numpy(image)[None, None]
    answer = np.full((BATCH, *patch, CLASSES), 1 / CLASSES, np.float32)
    answer_first = torch.full((BATCH, CLASSES, *patch), 1 / CLASSES)
    sampling, inference = Sampling(patch, overlap), Inference(blending=blending, batch_size=BATCH)

    def slabs() -> None:
        for _ in predict_slabs(lambda _: answer, image, sampling, num_classes=CLASSES, inference=inference):
            pass

    def whole() -> None:
        predict_probabilities(lambda _: answer, image, sampling, num_classes=CLASSES, inference=inference)

    def monai(**buffer: int) -> None:
        sliding_window_inference(
            tensor, patch, BATCH, lambda x: answer_first[: len(x)], overlap, mode=blending, **buffer
        )

    methods: dict[str, Callable[[], None]] = {
        "mrseg, slab by slab": slabs,
        "mrseg, one array": whole,
        "monai": monai,
        "monai, buffered": lambda: monai(buffer_steps=2, buffer_dim=0),
    }
    work = {
        "volume": "x".join(map(str, shape)), "patch": "x".join(map(str, patch)), "overlap": overlap,
        "blending": blending,
    }  # fmt: skip
    table = rounds.rows(
        work, rounds.compare(methods, count), rounds=count,
        threads=f"mrseg 1, PyTorch {torch.get_num_threads()}", packages=("torch", "monai", "numpy"),
    )  # fmt: skip
    for row in table:
        print(*list(row.values())[:11], sep="  ", flush=True)
    return table


if __name__ == "__main__":
    main()
