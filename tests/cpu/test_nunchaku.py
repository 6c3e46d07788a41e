"""nunchaku's files: the order of its packers is undone, and models compute the values that the files stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sluice.flux_core.checkpoint import nunchaku
from sluice.flux_core.checkpoint.detect import detect
from sluice.flux_core.checkpoint.files import open_weights
from sluice.flux_core.checkpoint.load import read
from sluice.flux_core.checkpoint.quantized import quantised, statements
from sluice.flux_core.checkpoint.stored import TensorEntry, WeightFile
from sluice.flux_core.convert import nunchaku_order as order
from sluice.flux_core.convert import nunchaku_plain
from sluice.flux_core.convert.nunchaku_plain import open_plain, plain_copy
from sluice.flux_core.errors import FileFormatError, MissingFileError, SluiceError
from sluice.flux_core.io.shards import PAIR
from sluice.flux_core.models.denoiser_inputs import DenoiserInputs
from sluice.flux_core.models.flux import Flux
from sluice.flux_core.models.flux_config import FluxConfig
from sluice.flux_core.quant.floats import E2M1
from sluice.flux_core.quant.formats import decode
from sluice.flux_core.quant.low_rank import TWOS_COMPLEMENT
from sluice.flux_core.runtime.handles import load_flux
from sluice.flux_core.runtime.runtime import Runtime
from sluice.flux_core.runtime.settings import Settings
from sluice.flux_core.sampling.conditions import Condition
from sluice.flux_core.sampling.guider import Run
from torch import Tensor
from torch.testing import assert_close

FIXTURE = load_file(Path(__file__).parents[1] / "fixtures" / "nunchaku.safetensors")
SMALL = FluxConfig(
    in_channels=16, out_channels=16, hidden=128, heads=1, head_dim=128, mlp=512, depth=1, depth_single=1,
    context_dim=24, vec_dim=16, guidance=True, axes_dim=(16, 56, 56),
)  # fmt: skip
RANK = 16
Tensors = dict[str, Tensor]


def case(name: str) -> Tensors:
    return {key.partition("/")[2]: x for key, x in FIXTURE.items() if key.startswith(f"{name}/")}


def nibbles(packed: Tensor) -> Tensor:
    """[N, K / 2] -> [N, K], the even column in the low half."""
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)


@pytest.mark.parametrize("name", ["int4", "fp4"])
def test_tiles_are_undone_as_nunchakus_packer_makes_them(name: str) -> None:
    made = case(name)
    assert torch.equal(nibbles(order.plain_codes(made["qweight"])), made["plain.codes"])
    assert torch.equal(order.plain_scales(made["wscales"]).float(), made["plain.scale"])
    for packed, plain in (("smooth", "smooth"), ("bias", "bias"), ("wcscales", "channel")):
        if packed in made:
            assert torch.equal(order.plain_vector(made[packed]), made[f"plain.{plain}"])
    assert torch.equal(order.plain_up(made["lora_up"]), made["plain.up"])
    assert torch.equal(order.plain_down(made["lora_down"]), made["plain.down"])


def test_awq_is_undone_as_nunchakus_packer_makes_it() -> None:
    made = case("awq")
    assert torch.equal(nibbles(order.plain_awq(made["qweight"])), made["plain.codes"])
    sides = order.awq_sides(made["scales"], made["scaled_zeros"], 2)
    codes = made["plain.codes"].double().view(16, 2, -1)
    theirs = codes * made["scales"][:2].t().double()[:, :, None] + made["scaled_zeros"][:2].t().double()[:, :, None]
    ours = (codes - 8) * sides["weight_scale"].t().double()[:, :, None] + sides["weight_zeros"].t().double()[:, :, None]
    assert torch.equal(ours, theirs)


# -- a whole transformer ---------------------------------------------------------------------------------------------


def packed_like(undo: Callable[[Tensor], Tensor], plain: Tensor, *shape: int) -> Tensor:
    """The input for which `undo` returns `plain`."""
    places = undo(torch.arange(plain.numel()).view(shape)).flatten()
    packed = torch.empty_like(plain).flatten()
    packed[places] = plain.flatten()
    return packed.view(shape)


def packed_codes(codes: Tensor) -> Tensor:
    """uint8 [N, K] of 0 to 15 -> nunchaku's qweight."""
    rows, columns = codes.shape
    words = (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.int32)
    numbers = torch.arange(words.numel(), dtype=torch.int32).view(rows, -1)
    places = order.plain_codes(numbers.view(torch.int8)).view(torch.int32).flatten().long()
    packed = torch.empty(words.numel(), dtype=torch.int32)
    packed[places] = words.flatten()
    return packed.view(torch.int8).view(rows, columns // 2)


class Written:
    """A small FLUX.1 as nunchaku would store it, and the same as numbers under BFL's names."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.theirs: Tensors = {}
        self.exact: Tensors = {}
        hidden, mlp = SMALL.hidden, SMALL.mlp
        shapes = {
            "qkv_proj": (3 * hidden, hidden), "out_proj": (hidden, hidden), "mlp_fc1": (mlp, hidden),
            "mlp_fc2": (hidden, mlp), "qkv_proj_context": (3 * hidden, hidden), "out_proj_context": (hidden, hidden),
            "mlp_context_fc1": (mlp, hidden), "mlp_context_fc2": (hidden, mlp),
        }  # fmt: skip
        for theirs, ours in nunchaku.DOUBLE.items():
            made = self.low_rank(f"transformer_blocks.0.{theirs}", *shapes[theirs], theirs.endswith("fc2"))
            self.keep(f"double_blocks.0.{ours}", *made)
        for theirs, ours in nunchaku.DOUBLE_MODULATION.items():
            self.keep(f"double_blocks.0.{ours}", *self.modulation(f"transformer_blocks.0.{theirs}", 6))
        for theirs, ours in nunchaku.NORMS.items():
            self.plain(f"transformer_blocks.0.{theirs}.weight", f"double_blocks.0.{ours}.scale", 128)
        single = "single_transformer_blocks.0"
        parts = [self.low_rank(f"{single}.{name}", *shapes[name], name == "mlp_fc2")
                 for name in ("qkv_proj", "mlp_fc1", "out_proj", "mlp_fc2")]  # fmt: skip
        (q, qb), (f, fb), (o, ob), (d, db) = parts
        self.keep("single_blocks.0.linear1", torch.cat((q, f)), torch.cat((qb, fb)))
        self.keep("single_blocks.0.linear2", torch.cat((o, d), dim=1), ob + db)
        self.keep("single_blocks.0.modulation.lin", *self.modulation(f"{single}.norm.linear", 3))
        for which in ("query", "key"):
            self.plain(f"{single}.norm_{which[0]}.weight", f"single_blocks.0.norm.{which}_norm.scale", 128)
        self.outside()

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).bfloat16()

    def keep(self, layer: str, weight: Tensor, bias: Tensor) -> None:
        self.exact |= {f"{layer}.weight": weight, f"{layer}.bias": bias}

    def plain(self, theirs: str, ours: str, *shape: int) -> None:
        self.theirs[theirs] = self.numbers(*shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        self.exact[ours] = self.theirs[theirs].double()

    def low_rank(self, layer: str, rows: int, columns: int, shifted: bool) -> tuple[Tensor, Tensor]:
        """Stores a matrix in integers; returns it and its bias in float64, by the formula of the format."""
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=self.generator)
        scale = (self.numbers(rows, columns // 64).abs() * 0.02).bfloat16()
        smooth, bias = (self.numbers(columns).abs() + 0.5).bfloat16(), (self.numbers(rows) * 0.1).bfloat16()
        up, down = self.numbers(rows, RANK) * 0.1, self.numbers(RANK, columns) * 0.1
        self.theirs |= {
            f"{layer}.qweight": packed_codes(codes),
            f"{layer}.wscales": packed_like(order.plain_scales, scale, columns // 64, rows),
            f"{layer}.smooth": packed_like(order.plain_vector, smooth, columns),
            f"{layer}.smooth_orig": smooth, f"{layer}.bias": packed_like(order.plain_vector, bias, rows),
            f"{layer}.lora_down": packed_like(order.plain_down, down, columns, RANK),
            f"{layer}.lora_up": packed_like(order.plain_up, up, rows, RANK),
        }  # fmt: skip
        levels = torch.tensor(TWOS_COMPLEMENT).double()[codes.long()]
        quantised = (levels.view(rows, -1, 64) * scale.double()[:, :, None]).view(rows, columns) / smooth.double()
        added = 0.171875 * quantised.sum(1) if shifted else 0.0
        return quantised + up.double() @ down.double(), bias.double() + added

    def modulation(self, layer: str, chunks: int) -> tuple[Tensor, Tensor]:
        """Stores an AWQ matrix whose row d * chunks + j is row d of chunk j; returns chunk after chunk."""
        rows, columns = chunks * SMALL.hidden, SMALL.hidden
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=self.generator)
        scale = (self.numbers(columns // 64, rows).abs() * 0.01).bfloat16()
        zeros, bias = (-7 * scale).bfloat16(), (self.numbers(rows) * 0.1).bfloat16()
        stored = {f"{layer}.qweight": packed_awq(codes), f"{layer}.wscales": scale, f"{layer}.wzeros": zeros}
        self.theirs |= {**stored, f"{layer}.bias": bias}
        each = scale.t().double()[:, :, None], zeros.t().double()[:, :, None]
        weight = (codes.double().view(rows, -1, 64) * each[0] + each[1]).view(rows, columns)
        weight, bias = (x.double().unflatten(0, (-1, chunks)).transpose(0, 1) for x in (weight, bias))
        bias = bias.clone()
        bias[[1, 4] if chunks == 6 else [1]] -= 1
        return weight.flatten(0, 1), bias.flatten()

    def outside(self) -> None:
        names = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
        embedders = {"timestep": "time_in", "guidance": "guidance_in", "text": "vector_in"}
        for theirs, ours in embedders.items():
            names[f"time_text_embed.{theirs}_embedder.linear_1"] = f"{ours}.in_layer"
            names[f"time_text_embed.{theirs}_embedder.linear_2"] = f"{ours}.out_layer"
        shapes = {name: tuple(x.shape) for name, x in Flux(SMALL).state_dict().items()}
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                self.plain(f"{theirs}.{kind}", f"{ours}.{kind}", *shapes[f"{ours}.{kind}"])
        for kind in ("weight", "bias"):
            last = f"final_layer.adaLN_modulation.1.{kind}"
            self.plain(f"norm_out.linear.{kind}", last, *shapes[last])
            self.exact[last] = torch.cat(self.exact[last].chunk(2)[::-1])


def packed_awq(codes: Tensor) -> Tensor:
    """uint8 [N, K] of 0 to 15 -> the 16-bit words of nunchaku as int32 [N / 4, K / 2]."""
    rows, columns = codes.shape
    four = codes.view(rows, columns // 32, 4, 8).int()
    words = four[:, :, 0] | four[:, :, 1] << 4 | four[:, :, 2] << 8 | four[:, :, 3] << 12
    words = words.view(rows // 4, 4, columns // 64, 16).transpose(1, 2).reshape(rows // 4, columns)
    return words.to(torch.int16).contiguous().view(torch.int32)


@pytest.fixture(scope="module")
def model() -> Written:
    return Written()


@pytest.fixture
def path(tmp_path: Path, model: Written, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(nunchaku_plain.FOLDER, str(tmp_path / "cache"))
    save_file(model.theirs, tmp_path / "svdq-int4_r32-flux.1-dev.safetensors")
    return tmp_path / "svdq-int4_r32-flux.1-dev.safetensors"


def velocity(path: Path, ram: str | None) -> Tensor:
    given = torch.Generator().manual_seed(2)
    context, pooled = torch.randn(1, 6, 24, generator=given), torch.randn(1, 16, generator=given)
    condition, x = Condition(context=context, pooled=pooled, guidance=3.5), torch.randn(1, 16, 8, 6, generator=given)
    handle = load_flux(Runtime(Settings.parse("cpu", "fp32", ram=ram)), path)
    with torch.inference_mode(), handle.open(Run(tuple(x.shape), (0.7,), (condition,))) as network:
        asked: DenoiserInputs = condition.inputs(x, 0.7, torch.float32)
        return network(asked)


@pytest.mark.parametrize("ram", [None, "1G"], ids=["whole", "managed"])
def test_a_transformer_computes_what_its_file_means(
    path: Path, model: Written, tmp_path: Path, ram: str | None
) -> None:
    exact = {name: x.float().contiguous() for name, x in model.exact.items()}
    save_file(exact, tmp_path / "exact.safetensors")
    expected = velocity(tmp_path / "exact.safetensors", None)
    assert_close(velocity(path, ram), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_plain_copy_is_exact_and_written_once(path: Path, model: Written) -> None:
    found = detect(open_weights(path))
    assert found.kind == "flux" and found.noun == "a FLUX.1 transformer quantised by nunchaku (SVDQuant)"
    file = open_plain(path)
    tensors = detect(file).parts["flux"]
    assert tensors.keys() == model.exact.keys()
    for name, stored in tensors.items():
        values = decode(read(stored), stored.encoding, stored.shape, torch.float32)
        assert_close(values.double(), model.exact[name], rtol=1e-6, atol=1e-6, msg=name)
    written = file.path.stat().st_mtime_ns
    assert plain_copy(open_weights(path)) == file.path and file.path.stat().st_mtime_ns == written
    assert len(list(file.path.parent.iterdir())) == 1


def test_the_older_folder_of_two_files_is_the_same_model(path: Path, model: Written, tmp_path: Path) -> None:
    """Blocks in one file, the rest in the other, nothing in their headers: named by the folder or by either file."""
    folder = tmp_path / "svdq-int4-flux.1-dev"
    folder.mkdir()
    blocks = {name: x for name, x in model.theirs.items() if "transformer_blocks." in name}
    rest = {name: x for name, x in model.theirs.items() if name not in blocks}
    save_file(blocks, folder / PAIR[0])
    save_file(rest, folder / PAIR[1])
    expected = velocity(path, None)
    for named in (folder, folder / PAIR[0], folder / PAIR[1]):
        assert torch.equal(velocity(named, None), expected)
    (folder / PAIR[1]).unlink()
    with pytest.raises(MissingFileError, match=f"only 1 of the 2 files of this model; {PAIR[1]} is missing"):
        open_weights(folder)


def test_two_matrices_of_four_bit_floats_beside_each_other_are_one(tmp_path: Path) -> None:
    """What linear2 of a single block is made of: other scales by row, other low-rank parts, one width a multiple."""
    made = case("fp4")
    part = {
        "weight": order.plain_codes(made["qweight"]), "weight_scale": order.plain_scales(made["wscales"]),
        "weight_smooth": made["plain.smooth"], "weight_up": made["plain.up"], "weight_down": made["plain.down"],
        "weight_channel": made["plain.channel"].view(-1, 1),
    }  # fmt: skip
    wide = {**part, "weight_channel": 2 * part["weight_channel"], "weight_up": -part["weight_up"]}
    joined = order.beside([part, order.beside([wide, wide])])
    said = {"format": "sluice_svdq_fp4", "group_size": 16, "rank": 96, "segments": 3}
    joined["comfy_quant"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    save_file({f"x.{name}": x.contiguous() for name, x in joined.items()}, tmp_path / "x.safetensors")
    file = open_weights(tmp_path / "x.safetensors")
    stored = quantised(file, file.entries["x.weight"], statements(file))
    codes = torch.tensor(E2M1).double()[made["plain.codes"].long()].view(128, -1, 16)
    numbers = (codes * made["plain.scale"].double()[:, :, None]).view(128, -1) / made["plain.smooth"].double()
    scaled = numbers * made["plain.channel"].double()[:, None]
    added = made["plain.up"].double() @ made["plain.down"].double()
    expected = torch.cat((scaled + added, 2 * scaled - added, 2 * scaled - added), dim=1)
    found = decode(read(stored), stored.encoding, stored.shape, torch.float32)
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_t5_of_four_bits_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nunchaku_plain.FOLDER, str(tmp_path / "cache"))
    made, matrices = case("awq"), Tensors()
    layers = [
        *(f"0.SelfAttention.{name}" for name in "qkv"),
        *(f"1.DenseReluDense.{name}" for name in ("wi_0", "wi_1")),
    ]
    for name in layers:
        matrices |= {
            f"encoder.block.0.layer.{name}.{kind}": made[kind] for kind in ("qweight", "scales", "scaled_zeros")
        }
    ones = torch.ones(256, dtype=torch.float16)
    plain = {
        "shared.weight": torch.randn(40, 256).half(), "encoder.final_layer_norm.weight": ones,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": torch.randn(32, 4).half(),
        "encoder.block.0.layer.0.SelfAttention.o.weight": torch.randn(256, 16).half(),
        "encoder.block.0.layer.1.DenseReluDense.wo.weight": torch.randn(256, 16).half(),
        "encoder.block.0.layer.0.layer_norm.weight": ones.clone(),
        "encoder.block.0.layer.1.layer_norm.weight": ones.clone(),
    }  # fmt: skip
    save_file({name: x.clone() for name, x in {**matrices, **plain}.items()}, tmp_path / "awq-int4-t5.safetensors")
    stored = detect(open_plain(tmp_path / "awq-int4-t5.safetensors")).parts["t5"]
    query = stored["encoder.block.0.layer.0.SelfAttention.q.weight"]
    scales, zeros = (made[kind][:2].t().double()[:, :, None] for kind in ("scales", "scaled_zeros"))
    expected = (made["plain.codes"].double().view(16, 2, -1) * scales + zeros).view(16, 256)
    assert torch.equal(decode(read(query), query.encoding, query.shape, torch.float32), expected.float())
    assert stored["shared.weight"].shape == (40, 256) and stored["shared.weight"].format == "F16"


@pytest.mark.parametrize(
    "name",
    ["qkv_proj.qweight", "mlp_fc2.wscales", "out_proj_context.smooth", "mlp_fc1.bias", "mlp_fc1.lora_down",
     "mlp_context_fc1.lora_up", "norm1.linear.qweight", "norm1.linear.wscales", "norm1_context.linear.wzeros",
     "norm1.linear.bias"],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named_before_anything_is_written(model: Written, name: str) -> None:
    tensors = {f"transformer_blocks.0.{name}": None} | dict.fromkeys(model.theirs)
    formats = {torch.int8: "I8", torch.int32: "I32", torch.bfloat16: "BF16"}
    for change, words in (("missing", "is missing"), ("cut", "is damaged")):
        entries = {}
        for each in tensors:
            x = model.theirs[each]
            if each.endswith(f".0.{name}") and not each.startswith("single"):
                if change == "missing":
                    continue
                x = x[:-4]
            entries[each] = TensorEntry(each, formats[x.dtype], tuple(x.shape), 0, x.nbytes)
        file = WeightFile(Path("svdq.safetensors"), 0, 0, entries, {}, (), "safetensors")
        told = nunchaku.problem(file)
        assert told.startswith("svdq.safetensors is ") and words in told and name.rpartition(".")[0] in told
        assert detect(file).refusals == {"flux": told}


def test_a_damaged_file_and_a_full_disk_are_told_and_leave_nothing(
    path: Path, model: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {name: x for name, x in model.theirs.items() if not name.endswith("mlp_fc1.smooth")}
    save_file(without, tmp_path / "damaged.safetensors")
    with pytest.raises(FileFormatError, match=r"damaged\.safetensors.*mlp_fc1\.smooth"):
        open_plain(tmp_path / "damaged.safetensors")
    assert detect(open_weights(tmp_path / "damaged.safetensors")).refusals.keys() == {"flux"}, "and where it is listed"
    monkeypatch.setattr(nunchaku_plain, "free_bytes", lambda place: 0)
    with pytest.raises(SluiceError, match=nunchaku_plain.FOLDER):
        open_plain(path)
    assert not list((tmp_path / "cache").iterdir())
