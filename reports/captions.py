"""What stands below each figure, in report.pdf and in report.html."""

import pandas as pd

from reports.curves import alarms

CAPTIONS = {
    "frontier": "Clean and robust accuracy on test images against the training budget: a training of its own for each "
    "budget, annealed to its end. Mean over seeds with the range over them; robust is the ranked worst case.",
    "clean_vs_robust": "Robust against clean accuracy. Bars are 95 % intervals over test images; the dashed line joins "
    "the methods that no other beats on both axes. An open mark is PGD alone, an upper bound.",
    "robust_vs_eps": "Accuracy under PGD over eps, with the range over seeds; the open mark is the ranked worst case.",
    "accuracy_vs_cost": "What each method gets and what it costs: clean and robust accuracy, and what the training "
    "took. The most robust method is on top. A pale mark is PGD alone, an upper bound.",
    "curves": "Accuracy over the training, on held-out training images, unannealed snapshots: never the accuracy at "
    "that budget. Mean over seeds with the range over them; robust is PGD with one restart on a fixed subset.",
}


def caption(figure: str, curves: pd.DataFrame | None = None) -> str:
    """That of a figure; below the accuracy over the training stands what it warns of."""
    warned = alarms(curves) if figure == "curves" and curves is not None else []
    return " ".join([CAPTIONS.get(figure, figure), *warned])
