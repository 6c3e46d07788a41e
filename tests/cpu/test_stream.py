"""Streamed weights are equal to the file's bit for bit, with real files and threads, for all residencies."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from doubles.typed import linear_at
from doubles.workloads import with_locations
from safetensors.torch import save_file
from sluice.flux_core.adapters.apply import adapted
from sluice.flux_core.adapters.branches import LowRank, Reweighing
from sluice.flux_core.adapters.lora import Lora, LoraUse
from sluice.flux_core.adapters.lora_families import Change
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.load import Resident, bind
from sluice.flux_core.checkpoint.stored import Stored
from sluice.flux_core.errors import FileFormatError, SluiceError
from sluice.flux_core.memory.cpu import CpuDevice
from sluice.flux_core.memory.plan import Plan
from sluice.flux_core.memory.residency import WeightSpan
from sluice.flux_core.memory.source import FileSource
from sluice.flux_core.memory.stream import Stream
from sluice.flux_core.memory.streamed_weight import StreamedBytes, hold_matrices
from sluice.flux_core.memory.workload import Location, Machine, Workload, groups_of
from sluice.flux_core.models.copies import deep, shallow, with_parts
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.linear import Linear
from sluice.flux_core.runtime.flux_needs import Job, flux_needs
from sluice.flux_core.runtime.modulation import modulation_linears, modulations
from torch import Tensor, nn

SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=1024, depth=2, depth_single=4,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
CPU = torch.device("cpu")
MACHINE = Machine(gemm=1e11, attention=1e11, memory=1e10, disk=1e9, alignment=4096)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # fmt: skip
K_QUANTS = ("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
QUANTS = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", *K_QUANTS)
FORMATS = (*DTYPES, "scaled", "diffusers", *QUANTS)


# --- one small model, stored in every way ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """files(format): the file, written at its first use."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def file(format: str) -> Path:
        if format not in made:
            made[format] = write(folder, format)
        return made[format]

    return file


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Flux(SMALL).state_dict().items()}
    return {name: torch.randn(*shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}


def write(folder: Path, format: str) -> Path:
    path = folder / f"{format}.safetensors"
    if format in QUANTS:
        return write_gguf(folder / f"{format}.gguf", gguf.GGMLQuantizationType[format])
    if format == "diffusers":
        return write_diffusers(folder)
    save_file(scaled() if format == "scaled" else {n: v.to(DTYPES[format]) for n, v in state().items()}, path)
    return path


def write_gguf(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(path, "flux")
    for name, value in state().items():
        if value.ndim < 2 or "_blocks" not in name:
            writer.add_tensor(name, value.numpy())
        elif kind.name in K_QUANTS:  # the package reads these, and writes none: any bytes will do, with small scales
            block, size = gguf.GGML_QUANT_SIZES[kind]
            rows = np.random.default_rng(len(name)).integers(0, 255, (value.numel() // block, size), "u1")
            rows[:, :4] = rows[:, -4:] = (0, 20, 0, 20)
            writer.add_tensor(name, rows.reshape(value.shape[0], -1), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def scaled() -> dict[str, Tensor]:
    """fp8 with a scale for each matrix."""
    stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, value in state().items():
        if value.ndim == 2 and "_blocks" in name:
            scale = value.abs().max() / 448
            stored[name] = (value / scale).to(DTYPES["F8_E4M3"])
            stored[name.replace(".weight", ".scale_weight")] = scale
        else:
            stored[name] = value.half()
    return stored


def write_diffusers(folder: Path) -> Path:
    """q, k and v lie apart: a matrix here is read from several places."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=2, num_single_layers=4, attention_head_dim=128, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, guidance_embeds=True,
    )  # fmt: skip
    model.bfloat16().save_pretrained(folder / "transformer")
    return folder / "transformer"


# --- the model resident, and the model streamed --------------------------------------------------------------------


@dataclass
class Streamed:
    """The same model with its blocks' matrices streamed."""

    flux: Flux
    workload: Workload
    matrices: list[StreamedBytes]
    source: FileSource

    @contextmanager
    def opened(self, homes: str, slots: int) -> Iterator[tuple[Flux, Stream]]:
        device = CpuDevice(2**40)
        plan = with_locations(self.workload, MACHINE, Location.of(homes), slots)
        stream = Stream(plan, device, self.source)
        for matrix in self.matrices:
            matrix.stream = stream
        try:
            yield self.flux, stream
        finally:
            stream.close()
            assert device.used == 0


def tensors_of(path: Path) -> dict[str, Stored]:
    return dict(detect(open_weights(path)).parts["flux"])


def resident(path: Path, dtype: torch.dtype, round_to: torch.dtype | None = None) -> Flux:
    with torch.device("meta"):
        flux = Flux(SMALL)
    bind(flux, tensors_of(path), Resident(CPU, dtype, round_to=round_to))
    return flux


def streamed(path: Path, dtype: torch.dtype, round_to: torch.dtype | None = None, direct: bool = True) -> Streamed:
    tensors = tensors_of(path)
    needs = flux_needs(SMALL, Job(64, 64))
    workload = needs.workload("small", lambda name: tensors[name].nbytes, lambda name: True, 2)
    with torch.device("meta"):
        flux = Flux(SMALL)
    names = [weight.name for weight in workload.weights]
    matrices = hold_matrices(flux, tensors, {name: place for place, name in enumerate(names)}, round_to)
    bind(flux, tensors, Resident(CPU, dtype, round_to=round_to))
    return Streamed(flux, workload, matrices, FileSource([tensors[name] for name in names], direct))


def mixes(count: int, rng: random.Random) -> list[str]:
    """All resident, none, every other one, and random residencies."""
    return ["V" * count, "D" * count, "VD" * (count // 2), *("".join(rng.choices("VD", k=count)) for _ in range(2))]


def inputs(dtype: torch.dtype, batch: int = 1) -> DenoiserInputs:
    generator = torch.Generator().manual_seed(2)
    shapes = (batch, 16, 8, 6), (batch, 7, 32), (batch, 32)
    x, context, y = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return DenoiserInputs(x, torch.linspace(0.9, 0.3, batch), context, y, torch.full((batch,), 3.5))


def look(flux: Flux, dtype: torch.dtype, batch: int = 1) -> Tensor:
    with torch.inference_mode():
        velocity: Tensor = flux(inputs(dtype, batch))
    return velocity


EVERY_WAY = [(format, torch.float32) for format in FORMATS]
EVERY_WAY += [(format, torch.bfloat16) for format in ("F32", "BF16", "F8_E4M3", "scaled", "Q8_0", "Q4_K")]


@pytest.mark.parametrize(("format", "dtype"), EVERY_WAY, ids=str)
def test_any_mix_of_resident_and_streamed_gives_the_same_bits(
    files: Callable[[str], Path], format: str, dtype: torch.dtype
) -> None:
    expected = look(resident(files(format), dtype), dtype)
    assert expected.isfinite().all() and expected.std() > 0
    model = streamed(files(format), dtype)
    for homes in mixes(len(groups_of(model.workload, MACHINE)), random.Random(format)):
        with model.opened(homes, 0 if set(homes) == {"V"} else random.Random(homes).randint(2, 4)) as (flux, stream):
            for _ in range(2):
                assert torch.equal(look(flux, dtype), expected)
            assert stream.restarts == 1  # everything came in the order in which it was used


@pytest.mark.parametrize("round_to", (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16), ids=str)
@pytest.mark.parametrize("format", ("F32", "BF16", "F8_E4M3", "Q8_0"))
def test_values_rounded_on_loading_are_rounded_on_streaming(
    files: Callable[[str], Path], format: str, round_to: torch.dtype
) -> None:
    expected = look(resident(files(format), torch.float32, round_to), torch.float32)
    with streamed(files(format), torch.float32, round_to).opened("D" * 8, 3) as (flux, _):
        assert torch.equal(look(flux, torch.float32), expected)


def test_with_loras_and_a_batch_of_two_the_bits_are_the_same(files: Callable[[str], Path]) -> None:
    generator = torch.Generator().manual_seed(3)

    def low_rank(rows: int, columns: int) -> LowRank:
        return LowRank(torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator), 0.1)

    changes: dict[str, tuple[Change, ...]] = {
        "double_blocks.1.img_attn.proj": (low_rank(256, 256),),
        "single_blocks.0.linear1": (low_rank(1792, 256),),
        "single_blocks.3.linear2": (Reweighing(low_rank(256, 1280), torch.rand(256, 1, generator=generator), 1.0),),
        "double_blocks.0.img_mod.lin": (low_rank(1536, 256),),
    }
    uses = [LoraUse(Lora("a", changes, {}), 0.7), LoraUse(Lora("b", dict(list(changes.items())[:2]), {}), -0.3)]
    for format, dtype in (("BF16", torch.bfloat16), ("F8_E4M3", torch.float32), ("Q4_K", torch.float32)):
        whole = resident(files(format), dtype)
        plain = look(whole, dtype, 2)
        expected = look(adapted(whole, uses, CPU, dtype), dtype, 2)
        assert not torch.equal(expected, plain)
        model = streamed(files(format), dtype)
        for homes, slots in (("VDVDVDVD", 2), ("DDDDDDDD", 3)):
            with model.opened(homes, slots) as (flux, _):
                assert torch.equal(look(adapted(flux, uses, CPU, dtype), dtype, 2), expected)


@pytest.mark.parametrize("format", ("F32", "F8_E4M3", "Q4_K"))
def test_a_streamed_weight_may_be_used_in_any_order_and_any_number_of_times(
    files: Callable[[str], Path], format: str
) -> None:
    """Products and their gradients: late if a weight is not the next one, and right."""
    whole, model, rng = resident(files(format), torch.float32), streamed(files(format), torch.float32), random.Random(6)
    with model.opened("DVDDDDDV", 2) as (flux, _):
        paths = [name for name, part in flux.named_modules() if isinstance(part, Linear) and part.held is not None]
        for path in (*rng.choices(paths, k=12), *[rng.choice(paths)] * 3):
            layers = linear_at(whole, path), linear_at(flux, path)
            x = torch.randn(3, layers[0].in_features, generator=torch.Generator().manual_seed(7)).requires_grad_()
            expected, got = (layer(x) for layer in layers)
            with layers[1].fetched(torch.float32) as fetched:
                assert all(torch.equal(fetched(x), expected) for _ in range(2))
            slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, got)]
            assert torch.equal(got, expected) and torch.equal(*slopes)


def with_trained_branches(flux: Flux, dtype: torch.dtype) -> tuple[Flux, list[Tensor]]:
    """A copy of the model for training, with side branches at some of its matrices, and the tensors of these."""
    generator = torch.Generator().manual_seed(4)

    def low_rank(rows: int, columns: int) -> LowRank:
        shapes = (4, columns), (rows, 4)
        down, up = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
        return LowRank(down, up, 0.1)

    parts = {
        "double_blocks.0.img_attn.qkv": low_rank(768, 256),
        "double_blocks.1.txt_mlp.2": low_rank(256, 1024),
        "single_blocks.2.linear1": low_rank(1792, 256),
    }
    layers = {path: shallow(linear_at(flux, path)) for path in parts}
    for path, layer in layers.items():
        layer.branches = (parts[path],)
    return deep(with_parts(flux, layers)).train(), [tensor for part in parts.values() for tensor in part.tensors]


def gradients(flux: Flux, dtype: torch.dtype) -> list[Tensor]:
    """Of all inputs but the times, and of the branches."""
    trained, tensors = with_trained_branches(flux, dtype)
    asked = inputs(dtype)
    learned = [part.requires_grad_() for part in (asked.x, asked.context, asked.pooled)]
    return list(torch.autograd.grad(trained(asked).float().square().sum(), [*learned, *tensors]))


@pytest.mark.parametrize(("format", "dtype"), EVERY_WAY, ids=str)
def test_gradients_through_stored_weights_are_those_of_resident_parameters(
    files: Callable[[str], Path], format: str, dtype: torch.dtype
) -> None:
    """To the bit: packed, and streamed through a ring whose slots hold other matrices when gradients are asked for."""
    path = files(format)
    expected = gradients(resident(path, dtype), dtype)
    assert all(grad.isfinite().all() and grad.count_nonzero() for grad in expected)
    with torch.device("meta"):
        packed = Flux(SMALL)
    bind(packed, tensors_of(path), Resident(CPU, dtype, packed=True))
    models = [packed]
    with streamed(path, dtype).opened("DDVDDDDV", 2) as (flux, _):
        models.append(flux)
        for model in models:
            assert all(map(torch.equal, gradients(model, dtype), expected))


def test_without_direct_reads_the_bits_are_the_same(files: Callable[[str], Path]) -> None:
    for format in ("BF16", "Q5_0", "diffusers"):
        expected = look(resident(files(format), torch.float32), torch.float32)
        with streamed(files(format), torch.float32, direct=False).opened("DVDDVDDD", 3) as (flux, _):
            assert torch.equal(look(flux, torch.float32), expected)


def test_a_plan_may_change_between_blocks(files: Callable[[str], Path]) -> None:
    expected = look(resident(files("F8_E4M3"), torch.float32), torch.float32)
    model, rng = streamed(files("F8_E4M3"), torch.float32), random.Random(5)
    with model.opened("DDDDDDDD", 3) as (flux, stream):
        for _ in range(10):
            calls = iter(range(99))
            moment, homes = rng.randrange(6), "".join(rng.choices("VD", k=8))
            other = with_locations(model.workload, MACHINE, Location.of(homes), rng.randint(2, 3))

            def run(
                block: nn.Module, *args: Any, calls: Iterator[int] = calls, moment: int = moment, other: Plan = other
            ) -> Any:
                if next(calls) == moment:
                    stream.change(other)
                return block(*args)

            with torch.inference_mode():
                assert torch.equal(flux(inputs(torch.float32), run_block=run), expected)


def test_a_block_that_failed_can_be_run_again(files: Callable[[str], Path]) -> None:
    expected = look(resident(files("BF16"), torch.float32), torch.float32)
    with streamed(files("BF16"), torch.float32).opened("DDVDDVDD", 2) as (flux, _):
        failing = iter([False, True, False, False, True, True] + [False] * 99)

        def run(block: nn.Module, *args: Any) -> Any:
            out = block(*args)
            while next(failing):
                out = block(*args)
            return out

        with torch.inference_mode():
            assert torch.equal(flux(inputs(torch.float32), run_block=run), expected)


def test_the_table_has_the_bits_of_the_plain_path_with_one_use_of_each_matrix(files: Callable[[str], Path]) -> None:
    for format, dtype in (("BF16", torch.bfloat16), ("Q8_0", torch.float32)):
        flux = resident(files(format), dtype)
        tensors = tensors_of(files(format))
        with torch.device("meta"):
            lent = Flux(SMALL)
        names = [f"{name}.weight" for name in modulation_linears(lent)]
        matrices = hold_matrices(lent, tensors, {name: place for place, name in enumerate(names)})
        bind(lent, tensors, Resident(CPU, dtype))
        taken = Counting(tensors, names)
        for matrix in matrices:
            matrix.stream = cast(Stream, taken)
        with torch.inference_mode():
            vectors = [flux.vector(torch.tensor([t, t / 2]), torch.ones(2, 32), None, dtype) for t in (0.9, 0.5, 0.1)]
            rows = modulations(lent, vectors)
            for vector, row in zip(vectors, rows, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(row, flux.modulations(vector), strict=True))
        assert taken.weights == list(range(len(names)))


class Counting:
    """A stream that has everything, and notes what is taken."""

    def __init__(self, tensors: dict[str, Stored], names: list[str]) -> None:
        self.tensors, self.names, self.device = tensors, names, CpuDevice(2**40)
        self.weights: list[int] = []

    def take(self, weight: int) -> WeightSpan:
        stored = self.tensors[self.names[weight]]
        slab = self.device.allocate(stored.nbytes)
        FileSource([stored]).read_exact(0, self.device.host_view(slab, 0, stored.nbytes))()
        self.weights.append(weight)
        return WeightSpan(slab, 0, stored.nbytes)

    def release(self, weight: int) -> None:
        pass


# --- files that fail --------------------------------------------------------------------------------------------


def test_a_file_cut_short_while_it_is_used_is_one_clear_error_and_no_thread_is_left(
    files: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(files("BF16").read_bytes())
    model = streamed(path, torch.float32)
    with model.opened("D" * 8, 3) as (flux, _):
        look(flux, torch.float32)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(SluiceError, match="cut"):
            for _ in range(2):
                look(flux, torch.float32)
    assert not [thread for thread in threading.enumerate() if thread.name == "sluice-feeder"]


def test_a_file_that_changed_since_its_header_was_read_is_refused(files: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    path.write_bytes(files("BF16").read_bytes())
    tensors = tensors_of(path)
    path.write_bytes(files("F16").read_bytes() + b"more")
    with pytest.raises(FileFormatError, match="replaced"):
        FileSource(list(tensors.values()))


def test_a_matrix_of_another_shape_is_refused_by_name(files: Callable[[str], Path]) -> None:
    tensors = tensors_of(files("BF16"))
    name = "single_blocks.1.linear2.weight"
    tensors[name] = replace(tensors[name], shape=(1, 2))
    with torch.device("meta"):
        flux = Flux(SMALL)
    with pytest.raises(FileFormatError, match="single_blocks.1.linear2"):
        hold_matrices(flux, tensors, {name: 0})


# --- what a run needs, without running it ---------------------------------------------------------------------


def test_slabs_are_anonymous_pages_where_the_system_takes_no_advice_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAP_PRIVATE", "MADV_HUGEPAGE", "MADV_DONTNEED"):
        monkeypatch.delattr(mmap, name)
    device = CpuDevice(4 << 20)
    slab = device.allocate(3 << 20)
    device.host_view(slab, 5, 3)[:] = b"abc"
    assert device.tensor(slab)[4:9].tolist() == [0, *b"abc", 0] and device.used == 3 << 20
    device.free(slab)
    assert slab.memory is None and device.used == 0
