"""Label tables of other tasks, derived from the nuclei of CRCHistoPhenotypes, which pathologists labelled one by one.

    python benchmarks/derived_labels.py DATA OUT

writes ``crchisto_share.csv`` (``share``: the part of an image's nuclei that is epithelial, for regression) and
``crchisto_grade.csv`` (``label``: 0 none, 1 few, 2 some, 3 most; of the images with epithelial nuclei a third
each by share, for ordinal tasks). The labels of nuclei are real; that a number or a grade is predicted from them is our
doing, so the scores compare with no publication.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    """Writes both tables."""
    data, out = map(Path, sys.argv[1:])
    with np.load(data / "histology" / "crchisto_nuclei.npz") as file:
        epithelial, start, names = file["inst_class"] == 0, file["bag_ptr"], file["bag_name"]
    share = np.add.reduceat(epithelial, start[:-1]) / np.diff(start)
    bounds = np.quantile(share[share > 0], [1 / 3, 2 / 3])
    grade = np.where(share == 0, 0, 1 + np.searchsorted(bounds, share, side="right"))
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"slide_id": names})
    table.assign(share=share.round(4)).to_csv(out / "crchisto_share.csv", index=False)
    table.assign(label=grade).to_csv(out / "crchisto_grade.csv", index=False)


if __name__ == "__main__":
    main()
