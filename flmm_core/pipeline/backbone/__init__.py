"""Stage 1: what the frozen vision-language model attended to."""
