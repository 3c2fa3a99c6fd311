"""From samples on disk to batches."""
