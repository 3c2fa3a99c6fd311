"""What a plugin declares, and what it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.plugins import load_class
from flmm_core.spec import BackboneOptions
from flmm_core.testing.promise import require, require_equal
from flmm_core.testing.reference import reference

# What differs from one way of loading to the next, and not in what the model computes.
_HOW_LOADED = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "output_attentions", "output_hidden_states", "return_dict",
}  # fmt: skip


def check_spec(backbone: Backbone) -> None:
    """The spec names a Backbone class, and the source and license of every model."""
    spec = backbone.spec
    found = load_class(spec)
    kind = type(backbone).__name__
    require(issubclass(found, Backbone), "target", expected="a Backbone class", found=spec.target)
    require(isinstance(backbone, found), "class loaded", expected=spec.target, found=kind)
    require(spec.summary.strip(), "summary", expected="one line", found="nothing")
    require(
        issubclass(spec.options, BackboneOptions),
        "options",
        expected="a subclass of BackboneOptions",
        found=spec.options.__name__,
    )
    needed = [name for name, field in spec.options.model_fields.items() if field.is_required()]
    require(not needed, "options", expected="a default for each", found=f"none for {needed}")
    for alias, model in spec.models.items():
        for fact in ("source", "license"):
            value = getattr(model, fact)
            require(value.strip(), f"{fact} of model {alias!r}", expected="one", found="nothing")
    require(
        backbone.model_types or spec.requirements.any_family,
        "model_types",
        expected="the types of config.json that the class can load",
        found="none, so that weights of any family would be loaded",
    )
    names = backbone.view_names
    require(len(set(names)) == len(names) > 0, "view_names", expected="unique names", found=names)


def check_spec_without_torch(backbone: Backbone) -> None:
    """Importing the plugin, as every `flmm` command does, imports no torch or transformers."""
    package = backbone.spec.target.partition(":")[0].partition(".")[0]
    code = f"import sys, {package}\nprint(*({{'torch', 'transformers'}} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    what = f"import {package}"
    require(ran.returncode == 0, what, expected="no error", found=ran.stderr.strip())
    imported = " and ".join(ran.stdout.split())
    require(not imported, what, expected="neither torch nor transformers", found=imported)


def check_loads_frozen(backbone: Backbone) -> None:
    """The VLM is frozen, in evaluation mode, and of the dtype and on the device asked for."""
    require(
        not isinstance(backbone, torch.nn.Module),
        "the backbone",
        expected="a plain object",
        found="an nn.Module, whose weights could reach an optimizer",
    )
    trainable = [n for n, p in backbone.vlm.named_parameters() if p.requires_grad]
    require(not trainable, "weights that require gradients", expected="none", found=trainable[:3])
    training = [n or "the model" for n, m in backbone.vlm.named_modules() if m.training]
    require(not training, "modules in training mode", expected="none", found=training[:3])
    dtypes = {str(p.dtype) for p in backbone.vlm.parameters() if p.is_floating_point()}
    require_equal(dtypes, {"torch.float32"}, "dtypes of the weights, loaded with dtype='float32'")


def check_stored_model(backbone: Backbone) -> None:
    """Weights and configuration are those of the model's folder, as transformers loads it."""
    stored = reference(backbone).vlm
    weights, expected = backbone.vlm.state_dict(), stored.state_dict()
    require_equal(sorted(weights.keys() ^ expected.keys()), [], "tensors that only one of both has")
    for name, value in expected.items():
        same = weights[name].shape == value.shape and torch.equal(weights[name].cpu(), value)
        require(same, f"weights {name}", expected="the values stored", found="others")
    changed = sorted(_changes(stored.config.to_dict(), backbone.vlm.config.to_dict()))
    require(not changed, "configuration", expected="as stored", found="; ".join(changed))


def _changes(stored: Mapping[str, Any], loaded: Mapping[str, Any]) -> Iterator[str]:
    for key, value in stored.items():
        other = loaded.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from (f"{key}.{change}" for change in _changes(value, other))
        elif not str(key).startswith("_") and key not in _HOW_LOADED and value != other:
            yield f"{key}={other!r} instead of {value!r}"
