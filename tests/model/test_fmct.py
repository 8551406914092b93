"""FM-CT's weights here say what they say in a module written after the layout alone."""

from __future__ import annotations

import argparse
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from headct.cli.app import app
from headct.errors import CheckpointError, MismatchError, UsageError
from headct.model.bundle import load_bundle
from headct.model.fmct import import_fmct, to_encoder
from headct.model.weights import read_weights
from headct.store.writer import StoreWriter
from headct.volume.canonical import to_canonical
from headct.volume.nifti import write_nifti
from headct.volume.preprocessing import PRESETS
from headct.volume.stretched import to_channels
from headct.volume.volume import Volume
from headct.volume.window import WINDOWS

HEADS, DEPTH, WIDTH, EDGE, PATCH = 3, 2, 192, 2, 4
SHAPE = (EDGE * PATCH,) * 3


class TheirAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, width))


class TheirMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x), approximate="none"))


class TheirBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.att_norm = nn.LayerNorm(width, eps=1e-5)
        self.attn = TheirAttention(width, heads)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = TheirMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.att_norm(x))
        return x + self.mlp(self.ffn_norm(x))


class TheirPatchEmbedding(nn.Module):
    def __init__(self, width: int, n_patches: int, patch: int | tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv3d(3, width, patch, patch)
        self.position_embeddings = nn.Parameter(0.5 * torch.randn(1, n_patches, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_embeddings(x).flatten(2).transpose(1, 2) + self.position_embeddings


class TheirViT(nn.Module):
    """[b c x y z] -> CLS [b d]; the sequence is CLS, registers, patches."""

    def __init__(
        self,
        n_registers: int,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
        n_patches: int = EDGE**3,
        patch: int | tuple[int, int, int] = PATCH,
    ) -> None:
        super().__init__()
        self.patch_embedding = TheirPatchEmbedding(width, n_patches, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.n_registers = n_registers
        if n_registers:
            self.register_tokens = nn.Parameter(torch.randn(1, n_registers, width))
        self.blocks = nn.ModuleList(TheirBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0.2, 0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        prefix = [self.cls_token, *([self.register_tokens] if self.n_registers else [])]
        rows = [token.expand(len(x), -1, -1) for token in prefix]
        x = torch.cat([*rows, self.patch_embedding(x)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1 + self.n_registers :]


def theirs(n_registers: int = 4, **sizes: Any) -> TheirViT:
    torch.manual_seed(n_registers)
    return TheirViT(n_registers, **sizes).eval()


def channels(n: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """[b c z y x] in 0..1, no two axes alike."""
    return torch.rand(n, 3, *shape, generator=torch.Generator().manual_seed(7))


def imported(tmp_path: Path, stored: Any, **options: Any):
    torch.save(stored, tmp_path / "weights.pt")
    import_fmct(tmp_path / "weights.pt", tmp_path / "bundle", **options)
    return load_bundle(tmp_path / "bundle")


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in weights.items()}


def assert_says_the_same(tokens, module: TheirViT, x: Tensor) -> None:
    with torch.no_grad():
        cls, patches = module(x.permute(0, 1, 4, 3, 2))
    assert (tokens.cls - cls).norm() <= 1e-4 * cls.norm()
    edge = round(patches.shape[1] ** (1 / 3))
    in_order = patches.view(len(x), edge, edge, edge, -1).permute(0, 3, 2, 1, 4).flatten(1, 3)
    assert (tokens.patches - in_order).norm() <= 1e-4 * in_order.norm()


@pytest.mark.parametrize("n_registers", [0, 4])
def test_tokens_are_those_of_the_original(tmp_path, n_registers):
    module = theirs(n_registers)
    bundle = imported(tmp_path, module.state_dict())
    assert bundle.encoder.config.n_registers == n_registers
    assert_says_the_same(bundle.encode_channels(channels()), module, channels())


def test_at_the_published_size(tmp_path):
    module = theirs(4, width=768, depth=12, heads=12, n_patches=512, patch=12)
    bundle = imported(tmp_path, {"state_dict": under("module.", module.state_dict())})
    assert bundle.preprocessing == PRESETS["fmct"]
    x = channels(1, (96, 96, 96))
    assert_says_the_same(bundle.encode_channels(x), module, x)


def test_order_of_axes_matters(tmp_path):
    """With axes mixed up the tests above would see 20 times what they allow."""
    module = theirs()
    bundle = imported(tmp_path, module.state_dict())
    with torch.no_grad():
        wrong, _ = module(channels())
    assert (bundle.encode_channels(channels()).cls - wrong).norm() > 20 * 1e-4 * wrong.norm()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda w: {"state_dict": w},
        lambda w: {"state_dict": under("module.", w), "epoch": 3},
        lambda w: {"state_dict": under("backbone.", w)},
        lambda w: {"state_dict": under("module.backbone.", w)},
        lambda w: under("backbone.module.", w) | {"head.mlp.0.weight": torch.ones(4, 4)},
        lambda w: {
            "student": under("module.backbone.", {k: torch.zeros_like(v) for k, v in w.items()}),
            "teacher": under("backbone.", w) | {"head.last_layer.weight": torch.ones(9, 4)},
            "args": argparse.Namespace(lr=1e-3, arch="vit"),
        },
        lambda w: {"model": {k: torch.zeros_like(v) for k, v in w.items()}, "teacher": w},
        lambda w: {
            "state_dict": w,
            "best": [np.float64(0.9), np.float32(0.8), np.int64(3), np.bool_(True)],
            "folder": Path("runs/vit"),
        },
        lambda w: under("student.", {k: v + 1 for k, v in w.items()}) | under("teacher.", w),
        lambda w: w | {"decoder_pred.weight": torch.ones(4, 4), "mask_token": torch.ones(1, 1, 4)},
        lambda w: {"model": {k: v.half() for k, v in w.items()}},
    ],
    ids=[
        "state_dict",
        "module",
        "backbone",
        "module.backbone",
        "beside a head",
        "teacher before student",
        "teacher before model",
        "beside figures of training",
        "both in one",
        "beside a decoder",
        "half precision",
    ],
)
def test_wrappers_come_off(tmp_path, wrapped):
    module = theirs()
    bundle = imported(tmp_path, wrapped(module.state_dict()))
    with torch.no_grad():
        cls, _ = module(channels().permute(0, 1, 4, 3, 2))
    is_half = any(
        v.dtype == torch.half for v in wrapped(module.state_dict()).get("model", {}).values()
    )
    tolerance = 1e-2 if is_half else 1e-4
    assert (bundle.encode_channels(channels()).cls - cls).norm() <= tolerance * cls.norm()


def test_safetensors_and_attention_without_bias(tmp_path):
    module = theirs()
    for block in module.blocks:
        nn.init.zeros_(block.attn.qkv.bias)
    weights = {k: v for k, v in module.state_dict().items() if not k.endswith("qkv.bias")}
    save_file(weights, tmp_path / "weights.safetensors")
    import_fmct(tmp_path / "weights.safetensors", tmp_path / "bundle")
    tokens = load_bundle(tmp_path / "bundle").encode_channels(channels())
    assert_says_the_same(tokens, module, channels())


def test_axes_that_are_all_different(tmp_path):
    module = theirs(n_patches=2 * 3 * 4, patch=(5, 6, 4))  # [x y z]
    shape = (16, 18, 10)  # 4, 3 and 2 patches along z, y, x
    preprocessing = PRESETS["fmct"].model_copy(update={"shape_zyx": shape})
    bundle = imported(tmp_path, module.state_dict(), preprocessing=preprocessing)
    assert bundle.encoder.config.position_grid_zyx == (4, 3, 2)
    assert bundle.preprocessing.shape_zyx == shape
    x = channels(2, shape)
    with torch.no_grad():
        cls, patches = module(x.permute(0, 1, 4, 3, 2))
    tokens = bundle.encode_channels(x)
    assert (tokens.cls - cls).norm() <= 1e-4 * cls.norm()
    in_order = patches.view(2, 2, 3, 4, -1).permute(0, 3, 2, 1, 4).flatten(1, 3)
    assert (tokens.patches - in_order).norm() <= 1e-4 * in_order.norm()
    for given, words in (
        (PRESETS["fmct"].shape_zyx, "24 positions are no cube"),
        ((16, 18, 15), "for other patches"),
        ((17, 18, 10), "for other patches"),
    ):
        preprocessing = PRESETS["fmct"].model_copy(update={"shape_zyx": given})
        with pytest.raises(CheckpointError, match=words) as error:
            imported(tmp_path, module.state_dict(), preprocessing=preprocessing)
        assert "shape_zyx=" in error.value.remedy


def test_other_heads_can_be_given(tmp_path):
    module = theirs(width=60, heads=5)
    bundle = imported(tmp_path, module.state_dict(), heads=5)
    assert_says_the_same(bundle.encode_channels(channels()), module, channels())
    with pytest.raises(UsageError, match="7 heads") as error:
        to_encoder(module.state_dict(), 7)
    assert "--heads" in error.value.remedy


def test_only_its_own_grid_has_positions(tmp_path):
    bundle = imported(tmp_path, theirs().state_dict())
    with pytest.raises(MismatchError, match="learned for"):
        bundle.encode_channels(channels(1, (8, 8, 12)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm.weight": None}, "missing norm.weight"),
        ({"blocks.1.attn.proj.bias": None}, "missing blocks.1.attn.proj.bias"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(4)}, "unknown blocks.0.attn.q_norm.weight"),
        ({"blocks.0.ls1.gamma": torch.ones(4)}, "unknown blocks.0.ls1.gamma"),
        ({"patch_embedding.position_embeddings": torch.ones(1, 9, 192)}, "no cube"),
        ({"patch_embedding.patch_embeddings.weight": torch.ones(192, 1, 4, 4, 4)}, "1 channels"),
        ({"patch_embedding.patch_embeddings.weight": torch.ones(192, 192)}, "Conv3d"),
        ({"blocks.0.mlp.linear1.weight": torch.ones(100, 192)}, "multiple"),
        ({"blocks.1.mlp.linear1.weight": torch.ones(192, 192)}, "blocks.1.mlp.fc1.weight"),
    ],
)
def test_other_architectures_are_refused(tmp_path, change, words):
    weights = {k: v for k, v in (theirs().state_dict() | change).items() if v is not None}
    with pytest.raises(CheckpointError, match="architecture") as error:
        imported(tmp_path, weights)
    assert words in error.value.message
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, prefix, bad):
    weights = under(prefix, theirs().double().state_dict())
    for name in ("blocks.1.attn.proj.weight", "norm.bias"):
        weights[prefix + name].flatten()[3] = bad
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    arguments = ["import", "fmct", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "bundle")]
    with pytest.raises(CheckpointError) as told:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "first in blocks.1.attn.proj.weight (2 of " in told.value.message
    assert told.value.code == "nonfinite-weights"
    assert not (tmp_path / "bundle").exists()


def test_what_is_left_out_may_be_anything(tmp_path):
    head = {"head.weight": torch.full((3, 3), math.nan)}
    assert imported(tmp_path, theirs().state_dict() | head).encoder is not None


def test_the_command(tmp_path):
    torch.save({"state_dict": theirs().state_dict()}, tmp_path / "weights.pt")
    arguments = ["import", "fmct", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.hash in result.output
    assert "3 are assumed" in result.output
    assert "8 x 8 x 8 voxels" in result.output
    assert "licence" in (tmp_path / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(
    ("written", "elsewhere"),
    [
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),  # as numpy 1 did
        (b"pathlib\nPosixPath", b"pathlib\nWindowsPath"),
        (b"pathlib\nPosixPath", b"pathlib._local\nPosixPath"),  # as Python 3.13 does
    ],
)
def test_figures_and_paths_that_other_systems_saved(tmp_path, written, elsewhere):
    weights = theirs().state_dict()
    torch.save({"state_dict": weights, "best": np.float64(1), "out": Path("a/b")}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as ours, zipfile.ZipFile(tmp_path / "b", "w") as other:
        for entry in ours.infolist():
            content = ours.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert written in content
                content = content.replace(written, elsewhere)
            other.writestr(entry, content)
    assert read_weights(tmp_path / "b").keys() == weights.keys()


def test_another_bundle_is_not_replaced(tmp_path):
    (tmp_path / "bundle").mkdir()  # empty: as made by hand or by mktemp
    first = imported(tmp_path, theirs(4).state_dict())
    assert imported(tmp_path, theirs(4).state_dict()).hash == first.hash
    with pytest.raises(UsageError, match="holds another bundle"):
        imported(tmp_path, theirs(0).state_dict())
    assert load_bundle(tmp_path / "bundle").hash == first.hash


def test_heads_that_are_assumed_are_said(tmp_path):
    torch.save(theirs(width=96, heads=12).state_dict(), tmp_path / "weights.pt")
    arguments = ["import", "fmct", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "bundle")]
    assert "12 are assumed" in CliRunner().invoke(app, arguments).output


def blob() -> Volume:
    """A head that is not cubic: brain in bone, off the middle, in air."""
    rng = np.random.default_rng(3)
    index = np.stack(np.meshgrid(*map(np.arange, (14, 60, 52)), indexing="ij"), -1) + 0.0
    r = np.linalg.norm((index - [8, 33, 28]) * [4.0, 1.0, 1.1], axis=-1)
    hu = np.where(r < 16, 35.0, np.where(r < 20, 900.0, -1000.0)) + rng.normal(0, 12, r.shape)
    return Volume(np.rint(hu).astype(np.int16), np.diag([4.0, 0.9, 1.1, 1.0]))


def test_a_series_is_embedded_with_the_input_of_the_original(tmp_path):
    module = theirs()
    bundle = imported(tmp_path, module.state_dict())
    seen = to_channels(blob(), bundle.preprocessing)
    assert seen.min() == 0.0
    assert seen.max() > 0.8
    with torch.no_grad():
        cls, patches = module(torch.from_numpy(seen)[None].permute(0, 1, 4, 3, 2))
    write_nifti(tmp_path / "scan.nii.gz", blob())
    for source in (blob(), tmp_path / "scan.nii.gz"):
        embedding = bundle.embed(source)
        np.testing.assert_allclose(embedding.cls, cls[0], atol=2e-4)
        np.testing.assert_allclose(embedding.mean, patches[0].mean(0), atol=2e-4)
        np.testing.assert_allclose(embedding.max, patches[0].amax(0), atol=2e-4)


def test_without_hu_there_is_no_store(tmp_path):
    bundle = imported(tmp_path, theirs().state_dict())
    with pytest.raises(UsageError, match="no HU") as error:
        bundle.encode_hu(np.zeros((1, *SHAPE), np.int16))
    assert "fmct-hu" in error.value.remedy
    write_nifti(tmp_path / "scan.nii.gz", blob())
    arguments = ["embed", str(tmp_path / "scan.nii.gz"), "--bundle", str(tmp_path / "bundle")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "f.parquet")])
    assert isinstance(result.exception, UsageError)
    with StoreWriter(tmp_path / "store", PRESETS["fmct-hu"]):
        pass
    arguments[1] = str(tmp_path / "store")
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "f.parquet")])
    assert "no HU" in result.exception.message


def test_with_hu_a_store_has_the_windows_after_the_stretch(tmp_path):
    torch.save(theirs().state_dict(), tmp_path / "weights.pt")
    arguments = ["import", "fmct", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "bundle")]
    arguments += ["--grid", "fmct-hu", "--set", "stretched.resize=linear"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.preprocessing.stretched.resize == "linear"
    canonical = to_canonical(blob(), bundle.preprocessing)
    with StoreWriter(tmp_path / "store", bundle.preprocessing) as writer:
        names = {f"{what}_id": f"{what[0]}-{0:016x}" for what in ("patient", "study", "series")}
        row = {"scan_id": "c-1", "status": "accepted", "flags": [], **names}
        affine = canonical.affine_zyx.ravel().tolist()
        writer.append(canonical.hu, row | {"affine_zyx": affine})
    stored, alone = bundle.embed(tmp_path / "store"), bundle.embed(blob())
    np.testing.assert_array_equal(stored.cls[0], alone.cls)
    windows = np.stack([window.apply(canonical.hu.astype(np.float32)) for window in WINDOWS])
    expected = bundle.encode_channels((windows[None] + 1) / 2)
    np.testing.assert_allclose(alone.cls, expected.cls[0], atol=1e-4)


def test_files_that_are_no_weights(tmp_path):
    class Anything:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": Anything()}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    for name, words in (
        ("code", "could run code"),
        ("text", "cannot be read"),
        ("none", "no weights"),
    ):
        with pytest.raises(CheckpointError, match=words):
            import_fmct(tmp_path / f"{name}.pt", tmp_path / "bundle")
