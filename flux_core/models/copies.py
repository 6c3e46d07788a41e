"""Copies of a module tree that share its weights, so that a run can change a model that other runs use as well.

A copy of a module has its own attributes and its own table of parameters and submodules; the parameters, the held
weights and the submodules in those tables are the same objects. So the copy takes almost no memory, and setting an
attribute of it does not change the original.

Uses no model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def shallow(module: Module) -> Module:
    """A copy of one module; its submodules are those of the module itself."""
    made = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        setattr(made, table, dict(getattr(module, table)))
    return made


def deep(module: Module) -> Module:
    """A copy of the whole tree: `deep(model).train()` is ready for training beside runs of `model` itself."""
    made = shallow(module)
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else deep(child)
    return made


def with_parts(module: Module, parts: Mapping[str, nn.Module]) -> Module:
    """A copy of the tree with other modules at some paths, such as "single_blocks.0.linear1".

    Only the modules on the way to those paths are copied, all others are shared.
    """
    below: dict[str, dict[str, nn.Module]] = {}
    for path, part in parts.items():
        child, _, rest = path.partition(".")
        below.setdefault(child, {})[rest] = part
    made = shallow(module)
    for child, inside in below.items():
        made._modules[child] = inside[""] if "" in inside else with_parts(module.get_submodule(child), inside)
    return made
