"""Evaluation of masks: rows per phrase, scores, calibration."""
