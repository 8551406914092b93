"""A bundle is whole, checked, and says the same thing about a scan every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import headct
from headct.adapt.predictions import rounded
from headct.adapt.scoring import encoder_vectors
from headct.adapt.token_table import write_tokens
from headct.errors import CheckpointError, MismatchError, UsageError
from headct.model import bundle as bundle_module
from headct.model import embed as embed_module
from headct.model.architecture import ENCODERS
from headct.model.bundle import load_bundle, load_strictly, save_bundle
from headct.model.embed import Bundle
from headct.model.encoder import ViT3D
from headct.store.store import open_store
from headct.store.writer import StoreWriter
from headct.volume.preprocessing import PRESETS, Preprocessing
from headct.volume.volume import Volume

TINY = ENCODERS["demo"].model_copy(update={"width": 48, "depth": 2, "heads": 3, "n_tokens": 8})
GRID = Preprocessing(shape_zyx=(16, 24, 16), spacing_mm_zyx=(3.3, 3.3, 3.3))
PROVENANCE = {"recipe": "demo", "seed": 7, "steps": 400, "membership": "tested: AUC 0.51"}


def encoder(seed: int = 0) -> ViT3D:
    torch.manual_seed(seed)
    return ViT3D(TINY).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", encoder(), GRID, PROVENANCE)
    return tmp_path / "bundle"


def some_hu(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 200, (n, *GRID.shape_zyx)).astype(np.int16)


def on_grid(hu: np.ndarray, *steps: dict[str, Any]) -> Volume:
    return Volume(hu, np.diag([*GRID.spacing_mm_zyx, 1.0]), provenance=steps)


def test_what_was_saved_is_what_is_loaded(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.encoder.config == TINY
    assert bundle.preprocessing == GRID
    assert bundle.provenance == PROVENANCE
    for name, weight in encoder().state_dict().items():
        assert torch.equal(bundle.encoder.state_dict()[name], weight)
    assert not bundle.encoder.training
    assert not any(p.requires_grad for p in bundle.encoder.parameters())
    assert sorted(f.name for f in folder.parent.iterdir()) == ["bundle"]


def test_the_public_door_leads_here() -> None:
    assert headct.load_bundle is load_bundle
    assert headct.Bundle is Bundle


def test_hash_is_over_what_embeddings_depend_on(tmp_path: Path) -> None:
    same = {
        save_bundle(tmp_path / "a", encoder(), GRID, PROVENANCE),
        save_bundle(tmp_path / "b", encoder(), GRID, {"recipe": "other"}),
        load_bundle(tmp_path / "a").hash,
    }
    assert len(same) == 1
    others = {
        save_bundle(tmp_path / "c", encoder(1), GRID),
        save_bundle(tmp_path / "d", encoder(), GRID.model_copy(update={"vertex_margin_mm": 4.0})),
    }
    assert len(same | others) == 3


def test_saving_again_replaces_and_a_failure_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = save_bundle(folder, encoder(1), GRID)
    assert load_bundle(folder).hash == new

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "write_json", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_bundle(folder, encoder(2), GRID)
    assert load_bundle(folder).hash == new
    assert sorted(f.name for f in folder.parent.iterdir()) == ["bundle"]


def test_an_empty_folder_is_filled_and_another_bundle_may_be_kept(tmp_path: Path) -> None:
    first = save_bundle(tmp_path, encoder(), GRID, replace=False)
    assert save_bundle(tmp_path, encoder(), GRID, replace=False) == first
    with pytest.raises(UsageError, match="another bundle"):
        save_bundle(tmp_path, encoder(1), GRID, replace=False)
    assert load_bundle(tmp_path).hash == first


def test_the_description_names_the_preprocessing(folder: Path) -> None:
    assert json.loads((folder / "bundle.json").read_text())["preprocessing_hash"] == GRID.hash


def test_a_head_can_be_trained_on_what_comes_out(folder: Path) -> None:
    bundle = load_bundle(folder)
    channels = torch.rand(2, 3, *GRID.shape_zyx)
    for tokens in (bundle.encode_hu(some_hu(2)), bundle.encode_channels(channels)):
        head = torch.nn.Linear(TINY.width, 1)
        (head(tokens.cls).sum() + head(tokens.patches).sum()).backward()
        assert head.weight.grad is not None
        assert not tokens.cls.requires_grad


@pytest.mark.parametrize(
    "made",
    [
        lambda hu: np.ascontiguousarray(hu[..., ::-1])[..., ::-1],
        lambda hu: hu.astype(">i2"),
        lambda hu: hu.astype(np.float64),
        lambda hu: torch.from_numpy(hu).float(),
        lambda hu: np.asfortranarray(hu),
        lambda hu: hu.tolist(),
    ],
    ids=["backwards", "big-endian", "float64", "tensor", "fortran", "list"],
)
@pytest.mark.filterwarnings("error")
def test_arrays_come_in_any_form(folder: Path, made: Any) -> None:
    bundle = load_bundle(folder)
    hu = some_hu(2)
    torch.testing.assert_close(bundle.encode_hu(made(hu)).cls, bundle.encode_hu(hu).cls)


def test_arrays_that_are_unsigned_or_read_only(folder: Path) -> None:
    bundle = load_bundle(folder)
    hu = np.abs(some_hu(1))
    hu.setflags(write=False)
    expected = bundle.encode_hu(hu).cls
    for dtype in (np.uint16, np.uint32, np.uint64):
        torch.testing.assert_close(bundle.encode_hu(hu.astype(dtype)).cls, expected)
    bright = hu.astype(np.int64)
    bright[:, 4:8] = 40_000
    expected = bundle.encode_hu(bright).cls
    torch.testing.assert_close(bundle.encode_hu(bright.astype(np.uint16)).cls, expected)


def test_an_array_that_torch_takes_is_not_copied() -> None:
    hu = some_hu(1)
    assert embed_module._checked(hu).data_ptr() == hu.ctypes.data


def test_channels_in_double_precision(folder: Path) -> None:
    bundle = load_bundle(folder)
    channels = np.random.default_rng(0).random((1, 3, *GRID.shape_zyx))
    expected = bundle.encode_channels(channels.astype(np.float32)).cls
    torch.testing.assert_close(bundle.encode_channels(channels).cls, expected)


def test_no_scan_and_no_number(folder: Path) -> None:
    bundle = load_bundle(folder)
    channels = np.zeros((1, 3, *GRID.shape_zyx), np.float32)
    for encode, scans in ((bundle.encode_hu, some_hu(1)), (bundle.encode_channels, channels)):
        with pytest.raises(UsageError, match="no scan"):
            encode(scans[:0])
        holed = scans.astype(np.float32)
        holed.flat[7] = np.nan
        with pytest.raises(UsageError, match="NaN"):
            encode(holed)
        with pytest.raises(UsageError, match="no scan"):
            encode(np.float32(3))
        with pytest.raises(UsageError, match="cannot be complex"):
            encode(scans.astype(np.complex64))


def test_a_ruined_encoder_embeds_nothing(folder: Path, tmp_path: Path) -> None:
    ruined = load_bundle(folder)
    ruined.encoder.norm.weight.data.fill_(torch.nan)
    with StoreWriter(tmp_path / "store", GRID) as writer:
        names = {f"{what}_id": f"{what[0]}-{0:016x}" for what in ("patient", "study", "series")}
        row = {"scan_id": "c-1", "status": "accepted", "flags": [], **names}
        writer.append(some_hu(1)[0], row | {"affine_zyx": np.eye(4).ravel().tolist()})
    for source in (on_grid(some_hu(1)[0]), tmp_path / "store"):
        with pytest.raises(CheckpointError, match="no finite numbers"):
            ruined.embed(source)
    with pytest.raises(CheckpointError, match="no finite numbers"):
        encoder_vectors(ruined, some_hu(1))
    with pytest.raises(CheckpointError, match="no finite numbers"):
        write_tokens(tmp_path / "tokens", open_store(tmp_path / "store"), ruined)
    with pytest.raises(CheckpointError, match="not finite"):
        rounded(np.array([0.5, np.nan]))


def test_another_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no bundle"):
        save_bundle(tmp_path, encoder(), GRID)
    assert (tmp_path / "thesis.txt").exists()


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no bundle at 'nothing'"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("encoder.safetensors", lambda b: b[:-10]),
        ("encoder.safetensors", lambda b: b[:-10] + bytes(9) + b"\x01"),
        ("encoder.safetensors", lambda _: b""),
        ("bundle.json", lambda b: b[: len(b) // 2]),
        ("bundle.json", lambda _: b"[]"),
        ("bundle.json", lambda _: b"\xff\xfe"),
        ("bundle.json", lambda b: b.replace(b'"depth": 2', b'"depth": 3')),
        ("bundle.json", lambda b: b.replace(b'"level_hu": 40.0', b'"level_hu": 50.0')),
        ("bundle.json", lambda b: b.replace(b'"heads"', b'"haeds"')),
        ("bundle.json", lambda b: b.replace(b'"encoder"', b'"decoder"')),
    ],
)
def test_damage_is_said(folder: Path, name: str, damage: Any) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(content))
    assert (folder / name).read_bytes() != content
    with pytest.raises(CheckpointError, match="damaged"):
        load_bundle(folder)


def test_missing_weights_are_damage(folder: Path) -> None:
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        load_bundle(folder)


def test_a_newer_format_is_said(folder: Path) -> None:
    description = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_bundle(folder)


def test_weights_of_another_architecture_are_listed(folder: Path) -> None:
    weights = load_file(folder / "encoder.safetensors")
    other = ViT3D(TINY.model_copy(update={"depth": 3, "n_registers": 2}))
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    weights["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(other, weights, "the bundle")
    for fault in (
        "missing blocks.2.attn.qkv.weight",
        "unexpected extra",
        "registers is [1, 4, 48], not [1, 2, 48]",
    ):
        assert fault in caught.value.message
    assert all(torch.equal(before[name], weight) for name, weight in other.state_dict().items())


def test_a_description_of_another_architecture_is_refused(folder: Path) -> None:
    """Weights exchanged for others, with a hash that fits: still not loaded."""
    weights = load_file(folder / "encoder.safetensors")
    del weights["norm.bias"]
    save_file(weights, folder / "encoder.safetensors")
    description = json.loads((folder / "bundle.json").read_text())
    sha256 = bundle_module._sha256(folder / "encoder.safetensors")
    description["weights_sha256"] = sha256
    description["hash"] = bundle_module._identity(TINY, GRID, sha256)
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"missing norm\.bias"):
        load_bundle(folder)


def test_card_says_what_it_is_and_is_not(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for words in (
        "Research use only",
        "Not a medical device",
        "recipe: demo",
        "seed: 7",
        "tested: AUC 0.51",
        load_bundle(folder).hash,
        GRID.hash,
        "brain (level 40, width 80 HU)",
    ):
        assert words in card
    save_bundle(folder, encoder(), GRID)
    assert "not tested for this bundle" in (folder / "README.md").read_text()


def test_a_scan_has_the_same_tokens_in_any_company(folder: Path) -> None:
    bundle, hu = load_bundle(folder), some_hu(5)
    together = bundle.encode_hu(hu)
    assert together.patches.shape == (5, 8, 48)
    for i in range(5):
        alone = bundle.encode_hu(torch.from_numpy(hu[i : i + 1]))
        assert torch.equal(alone.cls[0], together.cls[i])
        assert torch.equal(alone.patches[0], together.patches[i])


def test_channels_and_hu_agree(folder: Path) -> None:
    bundle, hu = load_bundle(folder), torch.from_numpy(some_hu(2))
    channels = torch.stack([w.apply(hu.float()) for w in TINY.windows], dim=1)
    of_channels = bundle.encode_channels(channels)
    spacing = GRID.spacing_mm_zyx
    with torch.inference_mode():
        of_hu = bundle.encoder.forward_hu(hu, spacing)
    torch.testing.assert_close(of_channels.cls, of_hu.cls, atol=1e-5, rtol=1e-4)
    assert of_channels.patches.shape == (2, 12, 48)
    with pytest.raises(MismatchError, match="channels"):
        bundle.encode_channels(channels[:, :2])


def test_another_grid_is_refused(folder: Path) -> None:
    with pytest.raises(MismatchError, match=r"\(16, 24, 16\)"):
        load_bundle(folder).encode_hu(np.zeros((1, 16, 16, 16), np.int16))


def test_embedding_is_pooled_tokens(folder: Path) -> None:
    bundle, hu = load_bundle(folder), some_hu(1)
    tokens = bundle.encode_hu(hu)
    embedding = bundle.embed(on_grid(hu[0]))
    np.testing.assert_array_equal(embedding.cls, tokens.cls[0].numpy())
    np.testing.assert_allclose(embedding.mean, tokens.patches[0].numpy().mean(0), rtol=1e-5)
    np.testing.assert_array_equal(embedding.max, tokens.patches[0].numpy().max(0))
    np.testing.assert_allclose(embedding.region, tokens.regions()[0].numpy())
    assert embedding.region.shape == (36, 48)


def test_canonical_volumes_are_taken_as_they_are_or_refused(folder: Path) -> None:
    bundle, hu = load_bundle(folder), some_hu(1)[0]
    volume = on_grid(hu, {"step": "canonical", "preprocessing": GRID.hash})
    assert bundle.canonical(volume) is volume
    other = on_grid(hu, {"step": "canonical", "preprocessing": PRESETS["demo"].hash})
    with pytest.raises(MismatchError, match=PRESETS["demo"].hash):
        bundle.embed(other)


@pytest.mark.parametrize("wrong", [some_hu(1), torch.zeros(1, 2), [Path("scan")], None])
def test_embed_says_which_method_takes_arrays(folder: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match=type(wrong).__name__) as caught:
        load_bundle(folder).embed(wrong)
    assert "encode_hu" in caught.value.remedy


def test_a_store_is_embedded_in_its_order(folder: Path, tmp_path: Path) -> None:
    hu = some_hu(3)
    row = {"patient_id": "p-0", "study_id": "s-0", "series_id": "e-0", "status": "accepted"}
    with StoreWriter(tmp_path / "store", GRID) as writer:
        for i in range(3):
            row_i = {"scan_id": f"c-{i}", "affine_zyx": np.diag([3.3, 3.3, 3.3, 1.0])}
            writer.append(hu[i], row | row_i)
    bundle = load_bundle(folder)
    embedding = bundle.embed(tmp_path / "store")
    assert embedding.scan_ids == ("c-0", "c-1", "c-2")
    np.testing.assert_array_equal(embedding.cls, bundle.encode_hu(hu).cls.numpy())
    store = open_store(tmp_path / "store")
    np.testing.assert_array_equal(bundle.embed(store["c-1"]).cls, embedding.cls[1])


def test_a_store_of_another_preprocessing_is_refused(folder: Path, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", PRESETS["demo"]):
        pass
    with pytest.raises(MismatchError, match="preprocessing"):
        load_bundle(folder).embed(tmp_path / "store")


def test_attention_map_lies_on_the_patch_grid(folder: Path) -> None:
    bundle, hu = load_bundle(folder), some_hu(2)
    maps = bundle.attention_map(hu)
    assert maps.shape == (2, 3, 2, 3, 2)
    kept = bundle.encode_hu(hu).index.numpy()
    assert ((maps > 0).reshape(2, 3, -1).sum(-1) == 8).all()
    assert (maps.reshape(2, 3, -1)[0][:, kept[0]] > 0).all()


def test_bf16_is_near_on_request_only(folder: Path) -> None:
    hu = some_hu(1)
    full = load_bundle(folder).encode_hu(hu).cls
    reduced = load_bundle(folder, dtype=torch.bfloat16).encode_hu(hu).cls
    assert torch.cosine_similarity(full, reduced.float()).item() > 0.999


def test_real_series_and_nifti_embed(tmp_path: Path, real_data: Path) -> None:
    config = TINY.model_copy(update={"n_tokens": 170})
    torch.manual_seed(0)
    save_bundle(tmp_path / "b", ViT3D(config), PRESETS["demo"])
    bundle = load_bundle(tmp_path / "b")
    scans = sorted((real_data / "real").rglob("*.nii.gz"))[:1]
    assert scans, "the folder of real scans holds no NIfTI"
    embedding = bundle.embed(scans[0])
    assert embedding.cls.shape == (48,)
    assert np.isfinite(embedding.region).all()
