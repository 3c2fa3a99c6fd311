"""Peak memory of collecting masks does not grow with phrases times pixels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COLLECT = """
import sys
import torch
from PIL import Image
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.result import collect
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000

count = int(sys.argv[1])
image = Image.new("RGB", (2000, 1500))
low = torch.randn(count, 1, 6, 8, generator=torch.Generator().manual_seed(0)) * 4
low = torch.nn.functional.interpolate(low, (64, 64), mode="bicubic")[:, 0]
maps = AttentionMaps(torch.zeros(1, 1, 2, 2), WHOLE_IMAGE)
masks = (Grounding(each[None], MaskLogits(each[None], (1500, 2000)), maps) for each in low)
before = peak()
result = collect(image, [f"cup {number}" for number in range(count)], masks)
result.overlay(legend=False)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
def test_six_times_as_many_masks_take_hardly_more_memory() -> None:
    peaks = []
    # glibc would keep large blocks that were freed, more or fewer of them from run to run
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    for count in (4, 24):
        arguments = [sys.executable, "-c", COLLECT, str(count)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=given)
        peaks.append(float(done.stdout))
    few, many = peaks
    # 20 masks of 3 megapixels are 60 MB as bool, and 240 MB more as float32 logits
    assert many - few < 20
