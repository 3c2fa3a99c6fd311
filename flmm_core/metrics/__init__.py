"""The field's scores, in exact integer sums.

Every kind of score has `add` for masks, `add_counts` for pixel counts, `merge` for what another
process has counted and `to_dict` for JSON. One process or many, in whatever order: the numbers
are the same. Each file gives the definitions, their sources and what empty
masks count.

    masks.py        cIoU, mIoU, precision@t                  RefCOCO, RefCOCO+, RefCOCOg
    generalised.py  gIoU, cIoU, N-acc, T-acc                 gRefCOCO
    reasoning.py    gIoU, cIoU with ignored regions          ReasonSeg
    recall.py       average recall by subset                 PNG
    location.py     box accuracy@0.5, point in mask
    sums.py         the exact sums beneath
"""

from flmm_core.metrics.generalised import GeneralisedScores
from flmm_core.metrics.location import BoxScores, PointScores, peaks, tight_boxes
from flmm_core.metrics.masks import MaskScores, intersection_union
from flmm_core.metrics.reasoning import ReasonScores
from flmm_core.metrics.recall import SUBSETS, RecallScores
from flmm_core.metrics.sums import THRESHOLDS, IouSums

__all__ = [
    "SUBSETS",
    "THRESHOLDS",
    "BoxScores",
    "GeneralisedScores",
    "IouSums",
    "MaskScores",
    "PointScores",
    "ReasonScores",
    "RecallScores",
    "intersection_union",
    "peaks",
    "tight_boxes",
]
