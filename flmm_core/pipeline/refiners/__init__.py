"""Stage 4: what sharpens the coarse masks."""
