"""Jobs one after another in the worker that serves the browser, under a budget: which tensors are read again."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.simulated import SimulatedMemory
from safetensors.torch import save_file
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.memory.manager import Manager
from sluice.flux_core.memory.workload import Machine, MiB
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.worker.calls import Calls
from sluice.flux_core.worker.worker import Worker
from torch import Tensor

CPU = torch.device("cpu")
WORKSPACE = 128 * MiB  # what every budget keeps free for what computing takes inside itself
LORA = "l.safetensors"
TIGHT = 9 * MiB
RATES = Machine(1e11, 1e11, 1e11, disk=5e8, alignment=4096)  # measured ones would change what a plan keeps
WIDE = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=1024, depth=2, depth_single=4,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
Read = dict[str, set[str]]  # file -> tensors


class Deaf:
    """A server that accepts every message of a worker."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        self.heard.append(message)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Read]:
    """reads(): the tensors that were read since its last call. All bytes of a weight file are read with preadv."""
    spans: list[tuple[str, int, int]] = []
    preadv: Callable[[int, list[memoryview], int], int] = vars(os)["preadv"]

    def noting(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        spans.append((os.readlink(f"/proc/self/fd/{descriptor}"), offset, offset + count))
        return count

    monkeypatch.setattr(os, "preadv", noting)

    def since() -> Read:
        read: Read = {}
        for path in {path for path, _, _ in spans}:
            middles = {name: entry.offset + entry.nbytes // 2 for name, entry in open_weights(path).entries.items()}
            there = [(start, end) for where, start, end in spans if where == path]
            read[Path(path).name] = {
                name for name, middle in middles.items() if any(start <= middle < end for start, end in there)
            }
        spans.clear()
        return read

    return since


class Keep:
    """The end of a prompt: stores its input latent."""

    FUNCTION, OUTPUT_NODE, RETURN_TYPES = "keep", True, ()
    kept: list[Tensor] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, samples: Any) -> float:
        return float("nan")

    def keep(self, samples: dict[str, Tensor]) -> tuple[()]:
        self.kept.append(samples["samples"])
        return ()


class Jobs:
    """A worker with its models, and prompts to queue at it."""

    def __init__(self, models: list[Path], folder: Path) -> None:
        self.server = Deaf()
        options = {"base": str(folder), "models": [*map(str, models)], "device": "cpu", "dtype": "fp32", "ram": "1G"}
        self.worker = Worker(self.server, options)  # type: ignore[arg-type]
        self.worker.classes["Keep"] = Keep
        self.worker._prepare()
        self.worker.prepared.set()
        runtime = self.worker.host.runtime
        self.manager = runtime.managers[CPU] = Manager(CPU, runtime.budget)
        self.memory = self.manager.memory = SimulatedMemory(1 << 40)
        vars(self.manager)["machine"] = lambda *_: RATES

    @property
    def held_bytes(self) -> int:
        return sum(model.held_bytes for model in self.manager.models)

    def run(self, **wanted: Any) -> list[Tensor]:
        """The latents of a prompt (see `workflow`) that must succeed."""
        return self.latents(workflow(**wanted))

    def latents(self, prompt: dict[str, Any]) -> list[Tensor]:
        Keep.kept.clear()
        outputs = [name for name, what in prompt.items() if what["class_type"] == "Keep"]
        self.worker._run({"prompt": prompt, "prompt_id": "x", "extra_data": {}, "outputs": outputs})
        done = next(message for message in reversed(self.server.heard) if "done" in message)
        assert done["status"] == "success", done["messages"]
        return list(Keep.kept)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, random_weights: Callable[..., dict[str, Tensor]]) -> Path:
    """Two transformers of 20 MB, whose matrices are larger than a block of a disk, and a LoRA of one of them."""
    folder = tmp_path_factory.mktemp("models")
    for category in ("diffusion_models", "loras"):
        (folder / category).mkdir()
    for name, guidance in (("dev", True), ("schnell", False)):
        weights = random_weights(Flux(replace(WIDE, guidance=guidance)), name)
        path = folder / f"diffusion_models/{name}.safetensors"
        save_file({key: value.bfloat16() for key, value in weights.items()}, path)
    shapes = {
        "lora_unet_double_blocks_0_img_mod_lin": (1536, 256), "lora_unet_single_blocks_0_linear2": (256, 1280),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (64, 32),
    }  # fmt: skip
    lora = {f"{path}.lora_down.weight": torch.randn(4, columns) for path, (_, columns) in shapes.items()}
    lora |= {f"{path}.lora_up.weight": torch.randn(rows, 4) / 9 for path, (rows, _) in shapes.items()}
    save_file(lora, folder / "loras" / LORA)
    return folder


@pytest.fixture
def jobs(store: Path, models: Path, here: Path) -> Iterator[Jobs]:
    yield Jobs([store, models], here)
    gc.collect()


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def workflow(
    text: str = "a fox", seed: int = 1, lora: tuple[float, float] | None = None, unet: str = "dev", tag: str = ""
) -> dict[str, Any]:
    """A prompt of two steps, with a LoRA at two strengths; `tag` distinguishes its nodes from those of another one."""

    def link(name: str, slot: int = 0) -> list[Any]:
        return [tag + name, slot]

    prompt = {
        "unet": node("UNETLoader", unet_name=f"{unet}.safetensors", weight_dtype="default"),
        "clip": node("DualCLIPLoader", clip_name1=CLIP, clip_name2=T5, type="flux"),
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "text": node("CLIPTextEncode", text=text, clip=link("clip") if lora is None else link("lora", 1)),
        "sampler": node(
            "KSampler", seed=seed, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            model=link("unet") if lora is None else link("lora"), positive=link("text"), negative=link("text"),
            latent_image=link("latent"),
        ),
        "keep": node("Keep", samples=link("sampler")),
    }  # fmt: skip
    if lora is not None:
        strengths = {"strength_model": lora[0], "strength_clip": lora[1]}
        prompt["lora"] = node("LoraLoader", model=link("unet"), clip=link("clip"), lora_name=LORA, **strengths)
    return {tag + name: what for name, what in prompt.items()}


T5, CLIP, DEV, SCHNELL = "t5xxl_fp16.safetensors", "clip_l.safetensors", "dev.safetensors", "schnell.safetensors"


def matrices(read: Read, file: str = DEV) -> set[str]:
    """Of the blocks, without adaLN."""
    return {name for name in read.get(file, ()) if "_blocks." in name and name.endswith(".weight")} - modulation(read)


def modulation(read: Read) -> set[str]:
    return {name for name in read.get(DEV, ()) if name.endswith((".lin.weight", "adaLN_modulation.1.weight"))}


def test_where_everything_fits_another_seed_reads_nothing_and_another_prompt_only_what_depends_on_it(
    jobs: Jobs, reads: Callable[[], Read]
) -> None:
    jobs.run()
    first = reads()
    assert first.keys() == {DEV, T5, CLIP} and matrices(first) and modulation(first)
    jobs.run(seed=2)
    assert reads() == {}
    jobs.run(seed=2, text="a hare")
    again = reads()
    assert again.keys() == {DEV} and modulation(again) == modulation(first) and not matrices(again)
    jobs.run(seed=3, text="a fox")
    assert reads() == {}, "the first prompt is remembered"


def test_where_little_fits_another_seed_reads_what_streams_and_another_prompt_the_encoders_as_well(
    jobs: Jobs, reads: Callable[[], Read]
) -> None:
    jobs.memory.budget = WORKSPACE + TIGHT
    jobs.run()
    first = reads()
    jobs.run(seed=2)
    reads()  # by now it is known what activations take
    jobs.run(seed=3)
    streams = reads()
    assert streams.keys() == {DEV} and not modulation(streams) and 0 < len(matrices(streams)) < len(matrices(first))
    jobs.run(seed=3, text="a hare")
    again = reads()
    assert again.keys() == {DEV, T5, CLIP} and modulation(again) == modulation(first)
    assert matrices(again) == matrices(streams), "what stays has stayed"


def test_another_text_for_t5_alone_reads_t5_and_what_streams(jobs: Jobs, reads: Callable[[], Read]) -> None:
    """The rows of the modulation table depend on CLIP's vector only."""
    jobs.memory.budget = WORKSPACE + TIGHT

    def prompt(text: str) -> dict[str, Any]:
        encode = node("CLIPTextEncodeFlux", clip=["clip", 0], clip_l="a fox", t5xxl=text, guidance=3.5)
        return workflow() | {"text": encode}

    (first,) = jobs.latents(prompt("a fox"))
    assert reads().keys() == {DEV, T5, CLIP}
    (second,) = jobs.latents(prompt("a fox that runs"))
    again = reads()
    assert again.keys() == {DEV, T5} and not modulation(again) and not torch.equal(first, second)


def test_a_strength_is_changed_without_reading_the_lora_the_other_encoder_or_a_modulation_matrix(
    jobs: Jobs, reads: Callable[[], Read]
) -> None:
    jobs.memory.budget = WORKSPACE + TIGHT
    jobs.run(lora=(0.5, 0.5))
    assert reads().keys() == {LORA, T5, CLIP, DEV}
    for strengths in ((0.8, 0.5), (0, 0.5), (0.8, 0.5)):
        jobs.run(lora=strengths)
        changed = reads()
        assert changed.keys() == {DEV} and not modulation(changed)
    jobs.run(lora=(0.8, 0.6))
    assert reads().keys() == {CLIP, DEV}, "the LoRA changes CLIP, and T5 not"
    jobs.run(lora=(0.8, 0.5))
    assert reads().keys() == {DEV}, "what this strength makes of the prompt is remembered"


def test_two_models_and_a_model_with_and_without_a_lora_share_one_budget(jobs: Jobs, reads: Callable[[], Read]) -> None:
    """In one prompt: each picture is that of the model alone, however little room there is for all."""
    wanted: list[dict[str, Any]] = [{}, {"unet": "schnell"}, {"lora": (0.7, 0.7)}]
    apart = [jobs.run(**one)[0] for one in wanted]
    assert not any(torch.equal(apart[0], other) for other in apart[1:])
    for room in (1 << 40, 2 * TIGHT, TIGHT):
        jobs.memory.budget = WORKSPACE + room
        for seed in (1, 2, 1):
            prompts = [workflow(**one, seed=seed, tag=f"{number}.") for number, one in enumerate(wanted)]
            together = jobs.latents({name: node for prompt in prompts for name, node in prompt.items()})
            assert seed == 2 or all(any(torch.equal(one, other) for other in together) for one in apart)
        jobs.worker._fit()
        assert 0 < jobs.held_bytes <= room


def test_a_budget_that_shrinks_while_nothing_runs_is_kept_to_at_once(jobs: Jobs) -> None:
    """As the panel sets it: `_set_budget` on one thread, `_fit` on the one that computes."""
    expected = jobs.run()
    before = jobs.held_bytes
    jobs.memory.budget = WORKSPACE + before // 2
    assert Calls(jobs.worker).on_budget({"ram": "9G"}) == {"vram": "auto", "ram": "9G"}
    assert jobs.worker.jobs.get_nowait() == {"op": "fit"}
    jobs.worker._fit()
    assert 0 < jobs.held_bytes <= before // 2
    jobs.run(seed=2)
    assert torch.equal(jobs.run()[0], expected[0])


def test_the_panel_shows_what_a_node_has_set_and_the_last_word_holds(jobs: Jobs) -> None:
    prompt = workflow()
    prompt["budget"] = node("MemoryBudget", model=["unet", 0], vram="auto", ram="10G")
    prompt["sampler"]["inputs"]["model"] = ["budget", 0]
    jobs.latents(prompt)
    assert Calls(jobs.worker).on_budget({}) == {"vram": "auto", "ram": "10G"}
    assert Calls(jobs.worker).on_budget({"ram": "11G"})["ram"] == "11G"
    jobs.latents(prompt)
    assert Calls(jobs.worker).on_budget({})["ram"] == "11G", "the node has not changed, and does not run again"
    prompt["budget"]["inputs"]["ram"] = "12G"
    jobs.latents(prompt)
    assert Calls(jobs.worker).on_budget({})["ram"] == "12G"
