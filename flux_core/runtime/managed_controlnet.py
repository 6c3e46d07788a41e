"""A ControlNet under a budget: its adaLN outputs come from a table, its blocks are streamed with the transformer's.

The transformer's stream has copies of `module` in which the blocks' weights are held (streamed_flux.py).
"""

from __future__ import annotations

from typing import cast

import torch

from ..memory.managed_model import ManagedModel, Tensors, bind_rest
from ..memory.manager import Manager
from ..models.controlnet import ControlNet
from ..models.controlnet_config import ControlNetConfig
from ..models.linear import Linear
from ..quant.int8 import Integers
from .dry_run import dry_run
from .flux_needs import control_inputs, smallest_inputs, streamed_names
from .modulation import modulation_linears
from .modulation_rows import RowStore

MODULATION = 0  # priority: if two models need the same memory, the one with the higher priority gets it


class ManagedControlNet:
    """A ControlNet whose adaLN outputs come from a table; its blocks are streamed with those of a transformer."""

    def __init__(
        self,
        manager: Manager,
        key: str,
        config: ControlNetConfig,
        tensors: Tensors,
        dtype: torch.dtype,
        integers: Integers | None,
    ) -> None:
        """Reads only the small tensors. integers: multiplies matrices that are stored as integers.

        Raises FileFormatError if the file is incomplete.
        """
        self.key, self.tensors, self.integers = key, tensors, integers
        with torch.device("meta"):
            self.module = ControlNet(config).to(dtype)  # convolutions compute in the type of their weights
        inputs = smallest_inputs(config.body, dtype)
        control = control_inputs(key, config, inputs)
        used = dry_run(self.module, lambda module: module(inputs, control))
        modulation = [f"{name}.weight" for name in modulation_linears(self.module)]
        for name in streamed_names(used):
            if name not in modulation:
                linear = cast(Linear, self.module.get_submodule(name.rpartition(".")[0]))
                linear.weight = None  # streamed with the transformer
        self.modulation = manager.admit(
            ManagedModel("modulation", MODULATION, manager.allocator, self.module, tensors, modulation, dtype)
        )
        bind_rest(self.module, tensors, manager.device, dtype, None)
        self.rows = RowStore(manager, self.modulation, self.module)

    def close(self) -> None:
        """Free its memory on the device."""
        self.modulation.close()
