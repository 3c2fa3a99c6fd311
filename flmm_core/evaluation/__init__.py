"""How good the masks are: rows of phrases, scores, calibration."""
