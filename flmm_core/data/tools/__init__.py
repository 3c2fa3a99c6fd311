"""What `flmm data` does with any source."""
