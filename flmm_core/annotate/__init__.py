"""Many images: which, through one grounder in full batches, into files; and on Ray Data."""
