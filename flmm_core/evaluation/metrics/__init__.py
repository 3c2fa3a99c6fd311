"""The field's scores, in exact integer sums.

Scores of masks have `add` for the masks and `add_counts` for their pixel counts; all scores have
`merge` for what another process has counted and `to_dict` for JSON. One process or many, in
whatever order: the numbers are the same. `docs/metrics.md` has all definitions in one table, with
their sources and what empty masks count. Intervals and tests are in `flmm_core.report.statistics`.

    masks.py        cIoU, mIoU, precision@t                  RefCOCO, RefCOCO+, RefCOCOg
    generalised.py  gIoU, cIoU, N-acc, T-acc                 gRefCOCO
    reasoning.py    gIoU, cIoU with ignored regions          ReasonSeg
    recall.py       average recall by subset                 PNG
    location.py     box accuracy@0.5, point in mask
    calibration.py  a mask's probability of being right, ECE
    abstention.py   the threshold for "not there"
    sums.py         the exact sums beneath
"""

from flmm_core.evaluation.metrics.abstention import Abstention, choose_threshold
from flmm_core.evaluation.metrics.calibration import (
    CalibrationScores,
    Calibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    calibrator_from_dict,
    fit_calibrator,
    is_right,
)
from flmm_core.evaluation.metrics.generalised import GeneralisedScores
from flmm_core.evaluation.metrics.location import BoxScores, PointScores, box_iou, peaks
from flmm_core.evaluation.metrics.masks import MaskScores, intersection_union
from flmm_core.evaluation.metrics.reasoning import ReasonScores
from flmm_core.evaluation.metrics.recall import SUBSETS, RecallScores
from flmm_core.evaluation.metrics.sums import THRESHOLDS, IouSums

__all__ = [
    "SUBSETS",
    "THRESHOLDS",
    "Abstention",
    "BoxScores",
    "CalibrationScores",
    "Calibrator",
    "GeneralisedScores",
    "IouSums",
    "IsotonicCalibrator",
    "MaskScores",
    "PlattCalibrator",
    "PointScores",
    "ReasonScores",
    "RecallScores",
    "box_iou",
    "calibrator_from_dict",
    "choose_threshold",
    "fit_calibrator",
    "intersection_union",
    "is_right",
    "peaks",
]
