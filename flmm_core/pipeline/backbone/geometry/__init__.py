"""Where a VLM's image tokens lie on an image, measured: no weights, no knowledge of the family.

limits     how much time and memory the measurement of one image size may take
ramps      black, white and ramp images through the processor -> the place of each pixel element
levels     undoes what a processor that rounds to few bits makes of ramps
twin       the model's class at toy width with attention off -> which token each element reaches
tokenwise  skips the twin's layers that mix no tokens
owners     gradients of the twin -> which token owns each element
blocks     pixel tensors in blocks of one owner, such as patches
places     both together -> center, size and tile of each token
grids      tokens -> regular grids
proof      grids against the coordinates of single elements
store      measurements on the disk, for other processes
measured_views   all of it; the only module that others import
"""
