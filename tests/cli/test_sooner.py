"""What postponing torch's compiler changes, each time in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = """
import sys
from flmm_core.cli.console import importing
with importing():
    import torch, torchvision.ops, torchvision.transforms.v2, transformers.modeling_utils
    import transformers.masking_utils
real = lambda: "torch._dynamo.eval_frame" in sys.modules
assert not real()
"""
USES = {
    "compiling": """
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
""",
    "a submodule": "import torch._dynamo.config",
    "a name": "from torch._dynamo import optimize",
    "an attribute": "assert torch._dynamo.config.cache_size_limit",
    "a name that was taken": """
with transformers.masking_utils.TransformGetItemToIndex():
    row = torch.vmap(lambda i: torch.arange(4)[i])(torch.tensor([3, 1]))
assert row.tolist() == [3, 1]
""",
    "torchvision": """
boxes, ones = [torch.tensor([[0.0, 0, 4, 4]])], torch.ones(1, 1, 8, 8)
torchvision.ops.roi_align(ones, boxes, 2)
from torch._dynamo.utils import is_compile_supported as asked
assert torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu") == asked("cpu")
""",
}


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_compiler_is_there_for_whoever_uses_it() -> None:
    _run(
        IMPORT
        + f"""
import os
for name, use in {USES!r}.items():
    child = os.fork()
    if not child:
        exec(use)
        os._exit(0 if real() else 3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, (name, status)
"""
    )


def test_a_compiler_that_is_imported_stays() -> None:
    _run("""
import torch, torch._dynamo
before = torch._dynamo
from flmm_core.cli.sooner import postpone_compiler
postpone_compiler()
assert torch._dynamo is before and before.optimize
""")
