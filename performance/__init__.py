"""Measurements of speed and memory: `python -m performance NAME`.

    recording   what recording attention adds to the VLM's forward
    training    one training step
    refining    the masks of one image through SAM
    sentences   several sentences about one image
    pooling     what learned pooling adds: time and memory
    cache       training epochs with and without a feature cache
    loading     reading images with DataLoader workers
    answering   what recording attention adds to writing an answer
    serving     `flmm serve`: one client and 64, for a minute
    starting    `flmm ground` from the prompt to the mask file
    forecast    what a run says it will take, and what it takes
    overflow    float16: do values overflow, and is it noticed

Each file above has `measure(size, ...) -> (figures for JSON, Markdown)`. They stand on

    alternate.py      runs a workload in several ways, in turns, each in its own process
    worker.py         such a process
    models.py         models with random weights, images and captions of a given length
    original_way.py   the flow as the original F-LMM runs it, to compare with
    roofline.py       the least time that a forward can take on this machine
    tables.py         Markdown tables; the machine and the versions
"""
