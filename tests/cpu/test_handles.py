"""Files to models: the same numbers from every layout, shared weights, and clear errors for missing parts."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from doubles.seeded import Fill, Seeded
from doubles.typed import linear_at
from safetensors.torch import save_file
from sluice.flux_core.adapters.branches import LowRank, Reweighing
from sluice.flux_core.adapters.lora import Lora, LoraUse
from sluice.flux_core.adapters.lora_families import Change
from sluice.flux_core.checkpoint.load import read
from sluice.flux_core.errors import FileFormatError, InputError, MissingFileError
from sluice.flux_core.models.autoencoder import Autoencoder, AutoencoderConfig
from sluice.flux_core.models.clip_text import ClipConfig, ClipTextModel
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.models.t5 import T5Config, T5Encoder
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.runtime import device, handles, model_weights
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.conditions import Condition
from sluice.flux_core.sampling.guider import Run
from sluice.flux_core.sampling.schedule import FluxShift, LinearFlow
from torch import Tensor
from torch.testing import assert_close

SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=256, heads=2, head_dim=128, mlp=512, depth=2, depth_single=2,
    context_dim=32, vec_dim=32, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
CLIP = ClipConfig(vocabulary=60, positions=77, width=32, mlp=64, layers=2, heads=2)
T5 = T5Config(vocabulary=64, width=32, inner=32, heads=2, mlp=64, layers=2)
CODER = AutoencoderConfig(channels=3, ch=32, ch_mult=(1, 2, 2, 4), num_res_blocks=1, z_channels=16)
TYPE = gguf.GGMLQuantizationType

State = Mapping[str, Tensor]


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(Settings("cpu", "fp32"))


@pytest.fixture
def state(fill: Fill) -> dict[str, Tensor]:
    """A transformer as BFL would publish it."""
    return {name: value.bfloat16() for name, value in fill(Flux(SMALL)).state_dict().items()}


@pytest.fixture
def look(seeded: Seeded) -> Callable[..., Tensor]:
    """look(model): its output for a fixed latent and prompt."""

    def velocity(model: handles.FluxModel) -> Tensor:
        x, dtype = seeded("x", (1, 16, 6, 4)), model.dtype
        condition = Condition(seeded("context", (1, 5, 32)).to(dtype), seeded("y", (1, 32)).to(dtype), 3.5)
        with torch.no_grad(), model.open(Run(tuple(x.shape), (0.7, 0.0), (condition,))) as network:
            return network(condition.inputs(x, 0.7, dtype)).float()

    return velocity


def saved(path: Path, state: State, prefix: str = "") -> Path:
    save_file({prefix + name: value.contiguous() for name, value in state.items()}, path)
    return path


def tensors_of(model: handles.FluxModel | handles.Autoencoder) -> dict[str, Tensor]:
    """Every tensor under the model's own name."""
    stored = model.weights.tensors
    return {name: decode(read(s), s.encoding, s.shape, torch.float32) for name, s in stored.items()}


def as_gguf(path: Path, state: State, kind: gguf.GGMLQuantizationType, arch: str = "flux") -> Path:
    """As such files are made: matrices quantised, the rest in float32."""
    writer = gguf.GGUFWriter(path, arch)
    for name, value in state.items():
        matrix = value.ndim == 2 and "embd" not in name
        kept = TYPE.F32 if not matrix else kind
        writer.add_tensor(name, gguf.quantize(value.float().numpy(), kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# -- one transformer in every layout ---------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> FluxTransformer2DModel:
    """A small FLUX of diffusers', saved as diffusers saves it: in shards."""
    torch.manual_seed(0)
    model: FluxTransformer2DModel = FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=128, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, guidance_embeds=True,
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "transformer", max_shard_size="6MB")
    return model


def test_a_diffusers_folder_in_shards_gives_what_diffusers_computes(
    published: FluxTransformer2DModel,
    tmp_path: Path,
    look: Callable[..., Tensor],
    seeded: Seeded,
    runtime: Runtime,
) -> None:
    from sluice.flux_core.models import latents

    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    model = handles.load_flux(runtime, tmp_path / "transformer")
    x = seeded("x", (1, 16, 6, 4))
    with torch.no_grad():
        tokens = published(
            hidden_states=latents.pack(x), encoder_hidden_states=seeded("context", (1, 5, 32)),
            pooled_projections=seeded("y", (1, 32)), timestep=torch.tensor([0.7]), guidance=torch.tensor([3.5]),
            img_ids=latents.image_ids(6, 4), txt_ids=torch.zeros(5, 3), return_dict=False,
        )[0]  # fmt: skip
    assert_close(look(model), latents.unpack(tokens, 6, 4), rtol=1e-4, atol=2e-5)


def test_bfl_diffusers_and_all_in_one_files_give_the_same_bits(
    published: FluxTransformer2DModel, tmp_path: Path, look: Callable[..., Tensor], runtime: Runtime
) -> None:
    theirs = handles.load_flux(runtime, tmp_path / "transformer")
    state = tensors_of(theirs)
    assert state.keys() == Flux(SMALL).state_dict().keys()
    one_file = saved(tmp_path / "diffusers.safetensors", published.state_dict())
    plain = saved(tmp_path / "bfl.safetensors", state)
    packed = saved(tmp_path / "all.safetensors", state, "model.diffusion_model.")
    seen = look(theirs)
    assert seen.abs().max() > 0.01
    for path in (one_file, plain, packed):
        assert torch.equal(look(handles.load_flux(runtime, path)), seen), path.name
    assert torch.equal(look(handles.load_checkpoint(runtime, packed)[0]), seen)


def test_bfloat16_computes_with_the_stored_numbers(
    state: dict[str, Tensor], tmp_path: Path, look: Callable[..., Tensor]
) -> None:
    runtime = Runtime(Settings("cpu", "bf16"))
    reference = Flux(SMALL).eval().bfloat16()
    reference.load_state_dict(state)
    model = handles.load_flux(runtime, saved(tmp_path / "bfl.safetensors", state))
    assert model.dtype is torch.bfloat16
    bound = model.weights.module(model.device, model.dtype)
    assert all(torch.equal(value, state[name]) for name, value in bound.state_dict().items())


@pytest.mark.parametrize("kind", [TYPE.F16, TYPE.BF16, TYPE.Q8_0, TYPE.Q5_1, TYPE.Q4_0])
def test_gguf_gives_the_bits_of_its_dequantised_weights(
    state: dict[str, Tensor],
    tmp_path: Path,
    look: Callable[..., Tensor],
    kind: TYPE,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
) -> None:
    path = as_gguf(tmp_path / "flux.gguf", state, kind)
    exact = {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(value.float().numpy(), kind), kind).copy())
        if value.ndim == 2 else value.float()
        for name, value in state.items()
    }  # fmt: skip
    expected = look(handles.load_flux(runtime, saved(tmp_path / "exact.safetensors", exact)))
    assert torch.equal(look(handles.load_flux(runtime, path)), expected)
    monkeypatch.setattr(model_weights, "FILLED", 0.0)  # no room: decoded at every use
    gc.collect()
    model = handles.load_flux(runtime, path)
    assert linear_at(model.weights.module(model.device, model.dtype), "double_blocks.0.img_attn.qkv").held is not None
    assert torch.equal(look(model), expected)


def scaled(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(a scaled fp8 file of these weights, the weights it stands for)."""
    stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    meant: dict[str, Tensor] = {}
    for name, value in state.items():
        stored[name], meant[name] = value, value.float()
        if value.ndim == 2:
            scale = value.float().abs().max() / 448
            stored[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "scale_weight")] = scale
            stored[name.replace("weight", "scale_input")] = torch.tensor(1.0)
            meant[name] = stored[name].float() * scale
        elif name.endswith("bias"):
            meant[name] = value.to(torch.float8_e4m3fn).float()  # as ComfyUI keeps it
    return stored, meant


def test_scaled_fp8_gives_the_bits_of_its_scaled_weights(
    state: dict[str, Tensor], tmp_path: Path, look: Callable[..., Tensor], runtime: Runtime
) -> None:
    stored, meant = scaled(state)
    expected = look(handles.load_flux(runtime, saved(tmp_path / "meant.safetensors", meant)))
    assert torch.equal(look(handles.load_flux(runtime, saved(tmp_path / "scaled.safetensors", stored))), expected)
    prefixed = saved(tmp_path / "all.safetensors", stored, "model.diffusion_model.")
    assert torch.equal(look(handles.load_flux(runtime, prefixed)), expected)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
@pytest.mark.parametrize("room", [0.8, 0.0])
def test_weight_dtype_rounds_all_parameters_whether_expanded_or_not(
    state: dict[str, Tensor],
    tmp_path: Path,
    look: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    room: float,
    runtime: Runtime,
) -> None:
    rounded = {key: value.to(handles.WEIGHT_DTYPES[name]) for key, value in state.items()}
    expected = look(
        handles.load_flux(runtime, saved(tmp_path / "f.safetensors", {k: v.float() for k, v in rounded.items()}))
    )
    monkeypatch.setattr(model_weights, "FILLED", room)
    assert torch.equal(look(handles.load_flux(runtime, saved(tmp_path / "bf16.safetensors", state), name)), expected)
    assert torch.equal(look(handles.load_flux(runtime, saved(tmp_path / "fp8.safetensors", rounded))), expected)
    assert not torch.equal(look(handles.load_flux(runtime, tmp_path / "bf16.safetensors")), expected)


def test_weights_that_do_not_fit_expanded_give_the_same_bits(
    state: dict[str, Tensor],
    tmp_path: Path,
    look: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
) -> None:
    path = saved(tmp_path / "bfl.safetensors", state)
    expected = look(handles.load_flux(runtime, path))
    monkeypatch.setattr(model_weights, "FILLED", 0.0)
    gc.collect()
    model = handles.load_flux(runtime, path)
    assert torch.equal(look(model), expected)
    assert linear_at(model.weights.module(model.device, model.dtype), "single_blocks.1.linear2").weight is None


def test_the_model_says_what_it_was_made_for(state: dict[str, Tensor], tmp_path: Path, runtime: Runtime) -> None:
    dev = handles.load_flux(runtime, saved(tmp_path / "dev.safetensors", state))
    assert (dev.sampling, dev.in_channels) == (FluxShift(1.15), 16)
    without = {name: value for name, value in state.items() if not name.startswith("guidance_in")}
    fill = without | {"img_in.weight": torch.zeros(256, 384, dtype=torch.bfloat16)}
    schnell = handles.load_flux(runtime, saved(tmp_path / "schnell.safetensors", fill))
    assert (schnell.sampling, schnell.in_channels) == (LinearFlow(1.0), 96)


# -- sharing ---------------------------------------------------------------------------------------------------------


def test_handles_of_one_file_share_weights_until_the_file_changes(
    state: dict[str, Tensor], tmp_path: Path, runtime: Runtime
) -> None:
    path = saved(tmp_path / "bfl.safetensors", state)
    first = handles.load_flux(runtime, path)
    assert handles.load_flux(runtime, str(path)).weights is first.weights
    assert handles.load_flux(runtime, path, "fp8_e5m2").weights is not first.weights
    module = first.weights.module(first.device, first.dtype)
    assert handles.load_flux(runtime, path).weights.module(first.device, first.dtype) is module
    os.utime(path, ns=(1, 1))
    assert handles.load_flux(runtime, path).weights is not first.weights
    with pytest.raises(FileFormatError, match="replaced"):
        first.weights.module(first.device, torch.bfloat16)


def test_what_nobody_holds_is_gone(
    state: dict[str, Tensor], tmp_path: Path, look: Callable[..., Tensor], runtime: Runtime
) -> None:
    model = handles.load_flux(runtime, saved(tmp_path / "bfl.safetensors", state))
    look(model)
    module = weakref.ref(model.weights.module(model.device, model.dtype))
    del model
    gc.collect()
    assert module() is None


@pytest.mark.parametrize("packed", [False, True])
def test_runs_with_other_loras_share_one_module_at_the_same_time(
    state: dict[str, Tensor],
    tmp_path: Path,
    look: Callable[..., Tensor],
    seeded: Seeded,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    runtime: Runtime,
) -> None:
    """Each gives the numbers it gives alone, and the module that both share stays as it was.

    Products in bfloat16 may round differently on another thread (Xeons with AMX do), hence the small tolerance: 3 %
    of what distinguishes the two LoRAs.
    """
    monkeypatch.setattr("sluice.flux_core.runtime.model_weights.room", lambda _: 0 if packed else 1 << 60)
    stored = {name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in state.items()}
    model = handles.load_flux(runtime, saved(tmp_path / "fp8.safetensors", stored))
    wide = SMALL.hidden

    def low_rank(name: str, columns: int = wide) -> LowRank:
        return LowRank(seeded(name + " down", (4, columns)), seeded(name + " up", (wide, 4)), 0.1)

    dora = Reweighing(low_rank("dora"), seeded("magnitude", (wide, 1)).abs())
    first: dict[str, tuple[Change, ...]]
    first = {"double_blocks.0.img_attn.proj": (low_rank("a"),), "double_blocks.0.txt_attn.proj": (dora,)}
    second: dict[str, tuple[Change, ...]]
    second = {"double_blocks.0.img_attn.proj": (low_rank("b"),), "single_blocks.0.linear2": (low_rank("c", 3 * wide),)}
    scales = {"single_blocks.0.norm.key_norm.scale": seeded("scale", (SMALL.head_dim,))}
    uses = LoraUse(Lora("first", first, {}), 0.7), LoraUse(Lora("second", second, scales), 1.0)
    models = [replace(model, loras=(use,)) for use in uses]
    expected, plain = [look(each) for each in models], look(model)
    assert not torch.equal(expected[0], expected[1])
    before = {name: dict(vars(part)) for name, part in model.weights.module(model.device, model.dtype).named_modules()}
    x, context, pooled = seeded("x", (1, 16, 6, 4)), seeded("context", (1, 5, 32)), seeded("y", (1, 32))
    both_open = threading.Barrier(2, timeout=60)
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])

    def run(number: int) -> None:
        dtype = models[number].dtype
        condition = Condition(context.to(dtype), pooled.to(dtype), 3.5)
        with torch.no_grad(), models[number].open(Run((1, 16, 6, 4), (0.7, 0.0), (condition,))) as network:
            for _ in range(10):
                both_open.wait()
                seen[number].append(network(condition.inputs(x, 0.7, dtype)).float())
            both_open.wait()

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tolerance = 0.03 * (expected[0] - expected[1]).norm()
    for got, alone in zip(seen, expected, strict=True):
        assert len(got) == 10 and all((one - alone).norm() <= tolerance for one in got)
    module = model.weights.module(model.device, model.dtype)
    assert (linear_at(module, "single_blocks.0.linear2").held is not None) == packed
    assert all(vars(part) == before[name] for name, part in module.named_modules())
    assert torch.equal(look(model), plain)


def test_only_headers_are_read_until_something_computes(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    path = saved(tmp_path / "all.safetensors", state, "model.diffusion_model.")
    monkeypatch.setattr("sluice.flux_core.checkpoint.load.read_into", lambda *_: pytest.fail("a tensor was read"))
    model = handles.load_flux(runtime, path)
    assert (model.weights.config, model.in_channels) == (SMALL, 16)
    assert not model.weights.loaded


# -- text encoders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(fill: Fill) -> dict[str, Tensor]:
    return fill(ClipTextModel(CLIP)).state_dict()


@pytest.fixture
def t5(fill: Fill) -> dict[str, Tensor]:
    return fill(T5Encoder(T5)).state_dict()


@pytest.fixture
def encode() -> Callable[[handles.TextEncoders], tuple[Tensor, Tensor]]:
    """encode(encoders): T5's hidden states and CLIP's pooled vector of fixed tokens."""

    def encoded(text: handles.TextEncoders) -> tuple[Tensor, Tensor]:
        ids = torch.arange(1, 9)[None]
        with torch.no_grad():
            return text.t5()(text.t5().embed(ids), None), text.clip()(text.clip().embed(ids), torch.tensor([7]))[1]

    return encoded


def rounded(state: State, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in state.items()}


def expected_text(clip: State, t5: State) -> tuple[Tensor, Tensor]:
    """Computed in float32 from these weights."""
    models = ClipTextModel(CLIP), T5Encoder(T5)
    for model, state in zip(models, (clip, t5), strict=True):
        model.load_state_dict(rounded(state, torch.float32))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        return models[1](ids), models[0](models[0].embed(ids), torch.tensor([7]))[1]


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, a, b))


CLIP_NAMES = ("", "text_encoders.clip_l.transformer.", "cond.")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("prefix", CLIP_NAMES)
def test_float32_encoders_are_rounded_to_float16_first_in_either_order(
    clip: dict[str, Tensor],
    t5: dict[str, Tensor],
    tmp_path: Path,
    encode: Callable[[handles.TextEncoders], tuple[Tensor, Tensor]],
    order: int,
    prefix: str,
    runtime: Runtime,
) -> None:
    paths = [saved(tmp_path / "c.safetensors", clip, prefix), saved(tmp_path / "t.safetensors", t5)]
    text = handles.load_text(runtime, paths[::order])
    assert equal(encode(text), expected_text(rounded(clip, torch.float16), rounded(t5, torch.float16)))


def test_t5_keeps_bfloat16_and_clip_becomes_float16(
    clip: dict[str, Tensor],
    t5: dict[str, Tensor],
    tmp_path: Path,
    encode: Callable[[handles.TextEncoders], tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> None:
    bf16_clip, bf16_t5 = rounded(clip, torch.bfloat16), rounded(t5, torch.bfloat16)
    paths = [saved(tmp_path / "c.safetensors", bf16_clip), saved(tmp_path / "t.safetensors", bf16_t5)]
    text = handles.load_text(runtime, paths)
    assert equal(encode(text), expected_text(rounded(bf16_clip, torch.float16), bf16_t5))


def test_t5_keeps_fp8_and_scaled_fp8(
    clip: dict[str, Tensor],
    t5: dict[str, Tensor],
    tmp_path: Path,
    encode: Callable[[handles.TextEncoders], tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> None:
    path = saved(tmp_path / "c.safetensors", clip)
    fp8 = rounded(t5, torch.float8_e4m3fn)
    seen = encode(handles.load_text(runtime, [path, saved(tmp_path / "fp8.safetensors", fp8)]))
    assert equal(seen, expected_text(rounded(clip, torch.float16), fp8))
    matrices = {k: v for k, v in t5.items() if v.ndim == 2 and "shared" not in k and "bias" not in k}
    stored, meant = scaled(rounded(matrices, torch.float16))
    rest = {name: value.half() for name, value in t5.items() if name not in matrices}
    seen = encode(handles.load_text(runtime, [path, saved(tmp_path / "scaled.safetensors", stored | rest)]))
    assert equal(seen, expected_text(rounded(clip, torch.float16), meant | rest))


LLAMA = {
    "encoder.": "enc.", "block.": "blk.", "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k",
    "layer.0.SelfAttention.v": "attn_v", "layer.0.SelfAttention.o": "attn_o", "layer.0.layer_norm": "attn_norm",
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b", "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down", "layer.1.layer_norm": "ffn_norm",
    "final_layer_norm": "output_norm", "shared": "token_embd",
}  # fmt: skip


def test_t5_as_llama_cpp_names_it(
    clip: dict[str, Tensor],
    t5: dict[str, Tensor],
    tmp_path: Path,
    encode: Callable[[handles.TextEncoders], tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> None:
    def named(name: str) -> str:
        for ours in sorted(LLAMA, key=len, reverse=True):
            name = name.replace(ours, LLAMA[ours])
        return name

    halves = rounded(t5, torch.float16)
    path = as_gguf(tmp_path / "t5.gguf", {named(k): v for k, v in halves.items()}, TYPE.F16, "t5encoder")
    seen = encode(handles.load_text(runtime, [path, saved(tmp_path / "c.safetensors", clip)]))
    assert equal(seen, expected_text(rounded(clip, torch.float16), halves))


def test_a_token_embedding_under_its_other_name_is_found(
    clip: dict[str, Tensor],
    t5: dict[str, Tensor],
    tmp_path: Path,
    encode: Callable[[handles.TextEncoders], tuple[Tensor, Tensor]],
    runtime: Runtime,
) -> None:
    other = {k.replace("shared.weight", "encoder.embed_tokens.weight"): v for k, v in rounded(t5, torch.half).items()}
    text = handles.load_text(
        runtime, [saved(tmp_path / "t.safetensors", other), saved(tmp_path / "c.safetensors", clip)]
    )
    assert equal(encode(text), expected_text(rounded(clip, torch.float16), rounded(t5, torch.half)))


def test_one_encoder_is_not_enough_and_the_missing_one_is_named(
    clip: dict[str, Tensor], t5: dict[str, Tensor], tmp_path: Path, runtime: Runtime
) -> None:
    with pytest.raises(FileFormatError, match="c.safetensors holds only CLIP-L. Choose a T5-XXL file"):
        handles.load_text(runtime, [saved(tmp_path / "c.safetensors", clip)])
    with pytest.raises(FileFormatError, match="hold only T5-XXL. Choose a CLIP-L file"):
        handles.load_text(runtime, [saved(tmp_path / f"{name}.safetensors", t5) for name in "ab"])


def test_encoders_are_told_apart_by_file_device_and_adapters(
    clip: dict[str, Tensor], t5: dict[str, Tensor], tmp_path: Path, runtime: Runtime
) -> None:
    paths = [saved(tmp_path / "c.safetensors", clip), saved(tmp_path / "t.safetensors", t5)]
    text, again = handles.load_text(runtime, paths), handles.load_text(runtime, paths[::-1])
    assert (text.clip_identity, text.t5_identity) == (again.clip_identity, again.t5_identity)
    os.utime(paths[0], ns=(1, 1))
    changed = handles.load_text(runtime, paths)
    assert changed.clip_identity != text.clip_identity and changed.t5_identity == text.t5_identity
    assert handles.load_text(runtime, paths, "cpu").device == torch.device("cpu")


# -- autoencoder -----------------------------------------------------------------------------------------------------


def test_a_diffusers_autoencoder_gives_what_diffusers_computes(
    tmp_path: Path, seeded: Seeded, runtime: Runtime
) -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=[32, 64, 64, 128], layers_per_block=1, latent_channels=16, norm_num_groups=32,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "vae")
    ours = handles.load_autoencoder(runtime, tmp_path / "vae")
    image, latent = seeded("image", (2, 16, 24, 3)).mul(0.2).add(0.5).clamp(0, 1), seeded("latent", (2, 16, 2, 3))
    with torch.no_grad():
        mean = theirs.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mean
        pixels = ((theirs.decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert_close(ours.encode_image(image), mean, rtol=1e-4, atol=1e-5)
    assert_close(ours.decode_image(latent), pixels, rtol=1e-4, atol=1e-5)
    bfl = handles.load_autoencoder(runtime, saved(tmp_path / "ae.safetensors", tensors_of(ours)))
    assert torch.equal(bfl.decode_image(latent), ours.decode_image(latent))


def test_a_picture_too_large_for_the_device_goes_through_in_tiles(
    fill: Fill,
    tmp_path: Path,
    seeded: Seeded,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
) -> None:
    def full(*_: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    coder = handles.load_autoencoder(runtime, saved(tmp_path / "ae.safetensors", fill(Autoencoder(CODER)).state_dict()))
    monkeypatch.setattr("sluice.flux_core.runtime.autoencoder_handle.DECODE_TILES", (64, 16))
    latent = seeded("latent", (1, 16, 10, 9))
    whole, expected = coder.decode_image(latent), coder.decode_image_tiled(latent, 64, 16)
    monkeypatch.setattr(Autoencoder, "decode_image", full)
    assert torch.equal(coder.decode_image(latent), expected)
    assert not torch.equal(whole, expected)


# -- what is not there, and what is wrong ----------------------------------------------------------------------------


def test_what_a_checkpoint_does_not_hold_says_so_when_it_is_used(
    state: dict[str, Tensor],
    clip: dict[str, Tensor],
    t5: dict[str, Tensor],
    fill: Fill,
    tmp_path: Path,
    runtime: Runtime,
) -> None:
    model, text, coder = handles.load_checkpoint(
        runtime, saved(tmp_path / "bare.safetensors", state, "model.diffusion_model.")
    )
    with pytest.raises(InputError, match="bare.safetensors contains no text encoders.*DualCLIPLoader"):
        text.t5()
    with pytest.raises(InputError, match="bare.safetensors contains no autoencoder.*Load VAE"):
        coder.decode_image(torch.zeros(1, 16, 2, 2))
    assert not hasattr(coder, "anything")
    whole = (
        {f"model.diffusion_model.{k}": v for k, v in state.items()}
        | {f"text_encoders.clip_l.transformer.{k}": v.half() for k, v in clip.items()}
        | {f"text_encoders.t5xxl.transformer.{k}": v.half() for k, v in t5.items()}
        | {f"vae.{k}": v for k, v in fill(Autoencoder(CODER)).state_dict().items()}
    )
    model, text, coder = handles.load_checkpoint(runtime, saved(tmp_path / "whole.safetensors", whole))
    assert model.weights.config == SMALL
    assert text.clip_weights.config == CLIP and text.t5_weights.config == T5
    assert coder.decode_image(torch.zeros(1, 16, 2, 2)).shape == (1, 16, 16, 3)


def test_a_transformer_that_lacks_tensors_is_said_to_be_incomplete(
    state: dict[str, Tensor], tmp_path: Path, runtime: Runtime
) -> None:
    del state["single_blocks.1.linear2.bias"]
    with pytest.raises(FileFormatError, match="part.safetensors is incomplete: .* 1 tensors .*single_blocks.1.lin"):
        handles.load_flux(runtime, saved(tmp_path / "part.safetensors", state))


def test_a_tensor_of_another_shape_is_named(state: dict[str, Tensor], tmp_path: Path, runtime: Runtime) -> None:
    state["txt_in.bias"] = torch.zeros(7)
    with pytest.raises(FileFormatError, match=r"txt_in.bias has the shape \[7\].* other tensors require \[256\]"):
        handles.load_flux(runtime, saved(tmp_path / "odd.safetensors", state))


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (
            handles.load_flux,
            "is a FLUX.1 autoencoder \\(VAE\\), not a FLUX.1 transformer. Load it with the node Load VAE",
        ),
        (handles.load_checkpoint, "not an all-in-one FLUX.1 checkpoint"),
        (lambda runtime, path: handles.load_text(runtime, [path]), "not a CLIP-L text encoder"),
    ],
)
def test_the_wrong_file_is_told_what_it_is(
    fill: Fill, tmp_path: Path, load: Callable[[Runtime, Path], object], words: str, runtime: Runtime
) -> None:
    path = saved(tmp_path / "ae.safetensors", fill(Autoencoder(CODER)).state_dict())
    with pytest.raises(FileFormatError, match=words):
        load(runtime, path)


def test_a_name_that_is_not_there_and_a_weight_dtype_that_is_not_known(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(MissingFileError):
        handles.load_flux(runtime, tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="fp8_e4m3fn"):
        handles.load_flux(runtime, tmp_path / "none.safetensors", "int4")


# -- where to compute ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "model", "coder"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp16", torch.float16, torch.float32),
    ],
)
def test_on_a_cpu_the_autoencoder_never_computes_in_float16(dtype: str, model: torch.dtype, coder: torch.dtype) -> None:
    chosen = Runtime(Settings("cpu", dtype))
    assert (chosen.model_dtype, chosen.autoencoder_dtype, chosen.text_dtype) == (model, coder, torch.float32)


def test_auto_takes_bfloat16_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, dtype in (({"avx512_bf16"}, torch.bfloat16), ({"bf16"}, torch.bfloat16), ({"avx2"}, torch.float32)):
        monkeypatch.setattr(device, "_cpu_flags", lambda flags=flags: flags)
        assert Runtime(Settings("cpu")).model_dtype is dtype


@pytest.mark.parametrize(
    ("device", "dtype"), [("tpu9", None), ("hpu", None), ("meta", None), ("cuda:99", None), ("cpu", "int8")]
)
def test_a_device_or_type_that_is_not_there_is_refused(device: str, dtype: str | None) -> None:
    with pytest.raises(InputError, match="[Cc]hoose|this machine has"):
        Runtime(Settings.parse(device, dtype))


def test_the_device_is_reported_as_comfyui_does(runtime: Runtime) -> None:
    (report,) = runtime.device_report()
    assert report["type"] == "cpu"
    assert 0 < report["vram_free"] <= report["vram_total"]
    assert report.keys() == {
        "name", "type", "index", "vram_total", "vram_free", "torch_vram_total", "torch_vram_free",
    }  # fmt: skip
