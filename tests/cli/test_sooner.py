"""What postponing imports changes, each time in a process of its own."""

from __future__ import annotations

import json
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
    "torch.fx": "sympy.core",
    "scipy": "scipy.optimize._linprog",
    "torchvision": "torchvision.models.resnet",
}
"""Of each project, a module that is imported only by those that others stand in for."""
MAY = {"torch": {"torch.fx"}, "torch.fx": {"torch"}, "torchvision": {"torch", "torch.fx"}}
"""What these may need beside their own."""
HOLDER = """
import types
sys.modules["holder"] = holder = types.ModuleType("holder")
names = "guard_or_false, GuardOnDataDependentSymNode"
exec(f"from torch.fx.experimental.symbolic_shapes import {names}", vars(holder))
"""
"""A module that imports by name, as torch's own do; which of them do so differs by version."""
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
    "torch.fx": {
        "a tensor on several devices": """
import torch.distributed as group
from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
spread = distribute_tensor(torch.arange(6.0).view(2, 3), DeviceMesh("cpu", [0]), [Shard(0)])
assert torch.equal((spread @ spread.T).full_tensor(), torch.tensor([[5.0, 14], [14, 50]]))
import sympy
assert sympy.Symbol("x") + 0 == sympy.Symbol("x")
""",
        "a function that was taken": f"""
{HOLDER}
taken = holder.guard_or_false
assert taken(True) is True and taken(False) is False and "sympy.core" not in sys.modules
from torch.fx.experimental.symbolic_shapes import ShapeEnv
assert taken(True) is True and holder.guard_or_false is not taken
assert holder.guard_or_false.__module__ == "torch.fx.experimental.symbolic_shapes"
""",
        "an exception": f"""
{HOLDER}
taken = holder.GuardOnDataDependentSymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, GuardOnDataDependentSymNode
assert holder.GuardOnDataDependentSymNode is GuardOnDataDependentSymNode is not taken
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


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
            allowed = needed | {MAY!r}.get(project, set())
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


PATTERNS = """
import copy, json, re
import transformers.conversion_mapping as them
all_of_them = them._build_checkpoint_conversion_mapping()
patterns = {
    name: [
        (each.compiled_sources.pattern, dict(each.compiled_sources.groupindex))
        for each in copy.deepcopy(transforms)
    ]
    for name, transforms in all_of_them.items()
}
found = [each.compiled_sources for transforms in all_of_them.values() for each in transforms]
print(json.dumps([patterns, len(found), sum(isinstance(each, re.Pattern) for each in found)]))
"""


def test_patterns_of_renamed_weights_are_the_same_and_compiled_later() -> None:
    usual, count, compiled = json.loads(_run(PATTERNS))
    later, same, none = json.loads(_run(IMPORT + PATTERNS))
    assert later == usual
    assert (count, none) == (compiled, 0) == (same, 0)
    assert count > 100


def test_of_values_that_are_not_symbolic_torch_says_the_same() -> None:
    _run("""
import itertools
import torch.fx.experimental.symbolic_shapes as torchs
from flmm_core.cli.sooner import OF_PLAIN
truths, numbers, shapes = (True, False), (0, 1, 7), ((), (2, 3), (2, 4), (2, 3, 4))
given = {
    "sym_eq": [*itertools.product(numbers, repeat=2), *itertools.product(shapes, repeat=2)],
    "sym_and": list(itertools.product(truths, repeat=3)),
    "sym_or": list(itertools.product(truths, repeat=3)),
    **{name: [(value,) for value in numbers] for name in ("is_nested_int", "has_guarding_hint")},
    "guarding_hint_or_throw": [(value,) for value in truths + numbers],
}
assert hasattr(torchs, "guard_or_false") and hasattr(torchs, "expect_true")
for name, says in OF_PLAIN.items():
    if not hasattr(torchs, name):
        continue  # of a later version
    for values in given.get(name, [(value,) for value in truths]):
        assert says(*values) is getattr(torchs, name)(*values), (name, values)
""")
