"""Our weights under ComfyUI's own memory management, on a card that is simulated.

    python tests/comfyui/memory.py /path/to/ComfyUI

Real: comfy.model_management, our memory manager with its streams, a FLUX of 0.3 GiB. Simulated: how much memory is
free, and a model of ComfyUI's that wants some. Every line is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
from pathlib import Path
from typing import Any

from inside import ROOT, enter, load_pack, module_of

MIB = 2**20
CARD = 640 * MIB


class Card:
    """A device of CARD bytes that ComfyUI and we share."""

    def __init__(self) -> None:
        self.core: dict[str, int] = {}
        self.manager: Any = None

    @property
    def ours(self) -> int:
        return sum(model.held_bytes for model in self.manager.models) if self.manager else 0

    def free(self, device: Any = None, torch_free_too: bool = False) -> Any:
        left = CARD - self.ours - sum(self.core.values())
        return (left, 0) if torch_free_too else left

    # as our manager reads a device's memory

    def allowed_bytes(self, allowed: Any) -> int:
        return CARD - sum(self.core.values())

    def other_bytes(self, filled: int) -> int:
        return 0

    def taken_bytes(self, nbytes: int) -> int:
        return nbytes

    def trim(self) -> None: ...

    def peak_bytes(self) -> int:
        return 0

    def reset_peak(self) -> None: ...

    ram_of_others, growth_bytes, disturbed = 0, 0, False

    def running(self, working: int, lasting: bool) -> Any:
        return contextlib.nullcontext()


def simulate(card: Card) -> None:
    import comfy.model_management as management
    import torch

    management.get_free_memory = card.free
    management.get_torch_device = lambda: torch.device("cuda", 0)
    management.soft_empty_cache = lambda force=False: None
    management.vram_state = management.VRAMState.NORMAL_VRAM
    management.lowvram_available = True
    management.minimum_inference_memory = lambda: 32 * MIB
    management.extra_reserved_memory = lambda: 16 * MIB


def core_model(card: Card, nbytes: int) -> Any:
    """Stands for a model of ComfyUI's that takes so many bytes."""
    import torch
    from comfy.model_patcher import ModelPatcher

    class Core(ModelPatcher):  # type: ignore[misc]  # ComfyUI has no types
        def loaded_size(self) -> int:
            return card.core.get("core", 0)

        def current_loaded_device(self) -> Any:
            return self.load_device if self.loaded_size() else self.offload_device

        def partially_load(self, device: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            before = self.loaded_size()
            card.core["core"] = before + int(min(extra_memory, nbytes - before))
            return card.core["core"] - before

        def partially_unload(self, device: Any, memory_to_free: float = 0) -> int:
            freed = min(self.loaded_size(), int(memory_to_free))
            card.core["core"] -= freed
            return freed

        def detach(self, unpatch_all: bool = True) -> None:
            if unpatch_all:
                card.core.pop("core", None)

        def model_patches_to(self, device: Any) -> None: ...

        def model_dtype(self) -> None: ...

        def __del__(self) -> None: ...

    return Core(torch.nn.Module(), torch.device("cuda", 0), torch.device("cpu"), size=nbytes)


def write_flux(pack: Path, path: Path) -> None:
    import safetensors.torch
    import torch

    models = module_of(pack, "flux_core.models.flux")
    config = models.FluxConfig(16, 16, 512, 4, 128, 2048, 4, 8, 32, 32, True, (16, 56, 56))
    generator = torch.Generator().manual_seed(1)
    weights = models.Flux(config).state_dict()
    made = {
        name: torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5 for name, value in weights.items()
    }
    safetensors.torch.save_file(made, path)


class Scenes:
    """What happens, one after the other."""

    def __init__(self, pack: Path, ours: dict[str, type[Any]], folder: Path) -> None:
        import torch

        self.pack, self.ours, self.card = pack, ours, Card()
        simulate(self.card)
        cpu, memory = torch.device("cpu"), module_of(pack, "nodes.bridge_memory").ComfyUIMemory()
        allowed = module_of(pack, "flux_core.memory.budget").Allowed(vram=CARD)
        settings = module_of(pack, "flux_core.runtime.settings").Settings("cpu", "fp32", allowed)
        runtime = module_of(pack, "flux_core.runtime.runtime").Runtime(settings, memory)
        self.card.manager = module_of(pack, "flux_core.memory.manager").Manager(cpu, allowed, memory)
        runtime.managers[cpu] = self.card.manager
        self.card.manager.memory = self.card
        write_flux(pack, folder / "flux.safetensors")
        self.model = module_of(pack, "flux_core.runtime.handles").load_flux(runtime, folder / "flux.safetensors")
        self.core = core_model(self.card, 320 * MIB)

    def picture(self, at_step: Any = None) -> Any:
        """Four steps; `at_step` is called after the second."""
        import torch

        sampling, guiders = (module_of(self.pack, f"flux_core.sampling.{name}") for name in ("sample", "guider"))
        generator = torch.Generator().manual_seed(2)
        values = {"pooled_output": torch.randn(1, 32, generator=generator), "guidance": 3.5}
        guider = guiders.BasicGuider(self.model, [[torch.randn(1, 8, 32, generator=generator), values]])
        noise = torch.randn(1, 16, 16, 16, generator=generator)
        sigmas = torch.linspace(1, 0, 5)

        def step(number: int, *_: Any) -> None:
            if at_step and number == 1:
                at_step()

        latent = torch.zeros(1, 16, 16, 16)
        return sampling.sample(guider, sampling.Sampler("euler"), sigmas, latent, noise, seed=0, callback=step)[0]

    def load_core(self) -> None:
        import comfy.model_management as management

        management.load_models_gpu([self.core], memory_required=100 * MIB)

    def tell(self, what: str, holds: bool) -> None:
        import comfy.model_management as management

        ledger = [type(entry.model.model).__name__ for entry in management.current_loaded_models]
        ours, core, free = (n / MIB for n in (self.card.ours, sum(self.card.core.values()), self.card.free()))
        print(f"{what:58s} ours {ours:4.0f} core {core:4.0f} free {free:4.0f} MiB  {ledger}", flush=True)
        assert holds, what

    def play(self) -> None:
        import comfy.model_management as management
        import torch

        card = self.card
        undisturbed = self.picture()
        whole = card.ours
        self.tell("FLUX has run and stays", whole > 180 * MIB)
        self.load_core()
        self.tell("a core model wants in: FLUX shrinks, is not thrown out", 0 < card.ours < whole and card.free() >= 0)
        again = self.picture()
        self.tell("FLUX again: same bits, core gave way", torch.equal(again, undisturbed) and card.ours > whole * 0.9)
        disturbed = self.picture(self.load_core)
        self.tell("a core model comes in between two steps: same bits", torch.equal(disturbed, undisturbed))
        self.tell("and nobody holds more than there is", card.free() >= 0)
        asked = []
        self.picture(lambda: asked.append(management.unload_all_models() or card.ours))
        self.tell("everything is unloaded between two steps, and comes back", asked == [0] and card.ours > 0)
        management.free_memory(CARD * 0.7, torch.device("cuda", 0))
        self.tell("core's autoencoder asks for 0.7 of the card", card.free() >= CARD * 0.7 and card.ours > 0)
        self.picture()
        management.unload_all_models()
        self.tell("/free: everything is given back", card.ours == 0 and not management.current_loaded_models)
        self.picture()
        del self.model
        gc.collect()
        management.cleanup_models_gc()
        management.cleanup_models()
        self.tell("the handle is dropped: memory and entry are gone", card.ours == 0)
        management.free_memory(1e30, torch.device("cuda", 0))
        self.tell("and nothing is left of it", not management.current_loaded_models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("comfyui", help="a ComfyUI checkout")
    args = parser.parse_args()
    enter(args.comfyui)
    import torch

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        pack = Path(folder) / "sluice v1.2"
        pack.symlink_to(ROOT)
        Scenes(pack, load_pack(pack), Path(folder)).play()


if __name__ == "__main__":
    main()
