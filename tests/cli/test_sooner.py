"""What postponing imports changes, each time in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

IMPORT = """
import os, sys
from flmm_core.cli.console import importing
with importing():
    import torch, torchvision.ops, torchvision.transforms.v2, transformers.modeling_utils
    import transformers.masking_utils, transformers.loss.loss_for_object_detection as losses
"""
REAL = {
    "torch": "torch._dynamo.eval_frame",
    "scipy": "scipy.optimize._linprog",
    "torchvision": "torchvision.models.resnet",
}
"""Of each project, a module that is imported only by those that others stand in for."""
USES = {
    "torch": {
        "compiling": """
double = torch.compile(lambda x: 2 * x, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
""",
        "exporting": """
seen = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),), strict=True)
assert seen.module()(torch.ones(1, 2)).shape == (1, 2)
""",
        "a submodule, which is the only one": """
import torch._dynamo.config as config
assert config is torch._dynamo.config is sys.modules["torch._dynamo.eval_frame"].config
assert config.__spec__.loader is config.__loader__
""",
        "a name": "from torch._dynamo import optimize",
        "an attribute that is set": """
torch._dynamo.optimize = 7
assert sys.modules["torch._dynamo"].optimize == torch._dynamo.optimize == 7
""",
        "a mark, when there is something to mark for": """
import torch._dynamo as before
before.config
assert before.disable is torch._dynamo.disable is torch._dynamo.decorators.disable
""",
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
    },
    "scipy": {
        "a loss": """
rows, columns = losses.linear_sum_assignment([[3.0, 1.0], [1.0, 3.0]])
assert columns.tolist() == [1, 0]
""",
        "a module": """
import scipy.optimize
assert scipy.optimize.minimize_scalar(lambda x: (x - 2) ** 2).x.round(3) == 2
assert scipy.optimize is sys.modules["scipy.optimize"]
""",
        "everything": """
from scipy.optimize import *
assert minimize and linear_sum_assignment.__module__.startswith("scipy")
""",
        "a name of a submodule": """
from scipy.optimize._linprog import linprog
import scipy.optimize
assert linprog is scipy.optimize.linprog
""",
        "what there is": "assert 'curve_fit' in dir(sys.modules['scipy.optimize'])",
    },
    "torchvision": {
        "a model": """
assert torchvision.models.resnet18().fc.out_features == 1000
assert len(torchvision.datasets.FakeData(3)) == 3
""",
        "a name of a submodule": """
from torchvision.models.feature_extraction import create_feature_extractor
create_feature_extractor(torchvision.models.alexnet(), ["features"])
""",
        "a submodule beside": """
torchvision.models.resnet
import torchvision.datasets.folder
assert torchvision.datasets.ImageFolder is torchvision.datasets.folder.ImageFolder
""",
    },
}


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ASKED = """
import importlib.util, inspect, torch._dynamo, scipy
for name in ("torch._dynamo", "torch._dynamo.utils", "scipy.optimize", "torchvision.models"):
    module, spec = sys.modules[name], importlib.util.find_spec(name)
    assert spec.name == name and os.path.exists(spec.origin) and repr(module)
    assert inspect.getsourcefile(module) == spec.origin
    assert hasattr(module, "__path__") == (name != "torch._dynamo.utils")
inspect.getmodule(torch.nn.Linear)
"""
READ_ONCE = """
from transformers.utils import import_utils
assert import_utils.create_import_structure_from_path.cache_info().maxsize == 128
for read in (import_utils.create_import_structure_from_path, import_utils.define_import_structure):
    read.cache_clear()
file = transformers.models.__file__
fresh = import_utils.define_import_structure(file)
models = type(transformers.models)("transformers.models", file, fresh)
assert len(models._class_to_module) > 1000
for kept in ("_class_to_module", "_modules", "_object_missing_backend"):
    assert vars(transformers.models)[kept] == vars(models)[kept]
"""
"""transformers offers the same as if all its files were read again."""


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_is_postponed_is_there_for_whoever_uses_it_and_only_then() -> None:
    no_uses = {"": {"what a module is": ASKED, "what transformers offers": READ_ONCE}}
    _run(
        IMPORT
        + f"""
real = {REAL!r}
for project, uses in {no_uses | USES!r}.items():
    for name, use in uses.items():
        child = os.fork()
        if not child:
            exec(use)
            found = {{each for each, module in real.items() if module in sys.modules}}
            needed = {{project}} - {{""}}
            allowed = needed | {{"torch"}} if project == "torchvision" else needed
            os._exit(0 if needed <= found <= allowed else 3)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, (project, name, status)
"""
    )


def test_what_is_imported_stays() -> None:
    _run("""
import sys, torch, torch._dynamo, torchvision.models, scipy.optimize
before = {name: it for name, it in sys.modules.items() if name.startswith(("torch", "scipy"))}
from flmm_core.cli.sooner import postpone_imports
postpone_imports()
assert all(sys.modules[name] is module for name, module in before.items())
assert torch._dynamo.optimize and torchvision.models.resnet18 and scipy.optimize.minimize
""")
