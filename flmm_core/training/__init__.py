"""One run: its loop and the files of a run."""
