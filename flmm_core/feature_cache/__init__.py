"""What the frozen parts say of every sample, kept on disk so that training does without them.

key.py       what a cache depends on, and what a sample is called in it
codec.py     features <-> tensors of a file: as they are, or smaller
store.py     the folder: shards written whole or not at all
channels.py  which attention channels are worth keeping
build.py     forecast and build
flow.py      the flow that reads a cache instead of running the frozen parts
"""
