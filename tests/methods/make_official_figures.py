"""Writes official_figures.npz from the shared figures (our own measurement of the official graph), without the list of
variables, which follows from our model: `python -m tests.methods.make_official_figures SHARED_DATA_FOLDER`.
"""

import sys
from pathlib import Path

import numpy as np

from tests.methods.test_official_reference import FIGURES

if __name__ == "__main__":
    with np.load(Path(sys.argv[1]) / "official_reference" / "mmsada_stage2.npz") as given:
        kept = {name: given[name] for name in given.files if name != "variables"}
    np.savez_compressed(FIGURES, **kept)
