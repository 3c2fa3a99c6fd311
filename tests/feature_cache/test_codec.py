"""What is stored is what is read, or as near as its number type allows."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_core.feature_cache.codec import MapType, Packing, SampleFacts, pack, unpack
from flmm_core.feature_cache.store import Manifest, ShardWriter, Store
from flmm_core.pipeline.types import AttentionMaps, EncodedImage, Features, VlmShape


def observed(dtype: torch.dtype = torch.float32) -> Features:
    """Three phrases of 2, 1 and 3 tokens; maps as peaked as attention is."""
    chance = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 5, 6, generator=chance).mul(3).flatten(2).softmax(2).view(3, 4, 5, 6)
    hidden = torch.randn(2, 6, 8, generator=chance).to(dtype).float()
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    details = tuple(torch.randn(2, side, side, generator=chance) for side in (12, 6))
    image = EncodedImage(torch.randn(7, 3, 3, generator=chance), (20, 30), details)
    ends = torch.randn(3, 2, 4, 30, generator=chance).mul(3).softmax(3).view(3, 2, 4, 5, 6)
    stacked = AttentionMaps(maps, (-0.1, 0.0, 1.1, 1 / 3), ends)
    return Features(stacked, hidden, rows, image, (40, 60))


def there_and_back(features: Features, packing: Packing, dtype: torch.dtype) -> Features:
    facts = SampleFacts.of(features, "image")
    return unpack(pack(features, packing, dtype), facts, features.image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_maps_lose_nothing(dtype: torch.dtype) -> None:
    features, packing = observed(dtype), Packing("float32", hidden=True)
    back = there_and_back(features, packing, dtype)
    assert torch.equal(back.maps.maps, features.maps.maps)
    assert torch.equal(back.hidden, features.hidden)
    assert torch.equal(back.row_phrase, features.row_phrase)
    assert back.maps.image_box == features.maps.image_box
    assert pack(features, packing, dtype)["hidden"].dtype == dtype


@pytest.mark.parametrize(("maps", "apart"), [("float32", 0), ("float16", 1e-3), ("uint8", 4e-3)])
def test_the_maps_of_last_tokens_are_stored_if_they_are_wanted(maps: MapType, apart: float) -> None:
    features = observed()
    assert features.maps.ends is not None
    for count in (1, 2):
        packing = Packing(maps, hidden=False, ends=count)
        packed = pack(features, packing, torch.float32)
        assert {*packed} == {*packing.names}
        sizes = sum(each.nbytes for each in packed.values())
        assert sizes == 3 * 4 * packing.map_bytes(30)
        back = there_and_back(features, packing, torch.float32).maps.ends
        assert back is not None
        wanted = features.maps.ends[:, :count]
        assert ((back - wanted) / wanted.amax((3, 4), keepdim=True)).abs().max() <= apart
    assert there_and_back(features, Packing(maps, hidden=False), torch.float32).maps.ends is None


def test_hidden_rows_finer_than_the_model_are_not_rounded() -> None:
    features = observed(torch.float32)
    back = there_and_back(features, Packing("float32", hidden=True), torch.bfloat16)
    assert torch.equal(back.hidden, features.hidden)


@pytest.mark.parametrize(("maps", "apart"), [("float16", 5e-4), ("uint8", 2e-3)])
def test_smaller_maps_are_near(maps: MapType, apart: float) -> None:
    """uint8: half a step of the root is at most 1/255 of the largest value, near the top."""
    features = observed()
    back = there_and_back(features, Packing(maps, hidden=False), torch.float32)
    peak = features.maps.maps.amax((2, 3), keepdim=True)
    assert ((back.maps.maps - features.maps.maps) / peak).abs().max() <= 2 * apart
    assert back.hidden.shape == (0, 6, 0)
    share = features.maps.maps / peak
    small = (share > 1e-3) & (share < 1e-2)
    assert small.any()
    relative = (back.maps.maps / features.maps.maps - 1).abs()[small]
    assert relative.max() < 0.15  # in 255 equal steps it would be whole


def test_a_map_of_nothing_stays_nothing() -> None:
    features = observed()
    features.maps.maps[1, 2] = 0
    for maps in ("float16", "uint8"):
        back = there_and_back(features, Packing(maps, hidden=False), torch.float32)
        assert not back.maps.maps[1, 2].any()
        assert back.maps.maps.isfinite().all()


def test_a_store_gives_back_what_was_written_and_can_be_pickled(tmp_path: Path) -> None:
    vlm = VlmShape(2, 2, 8, ("image",))
    manifest = Manifest(
        key={"prompt": "p"}, model="toy", vlm=vlm, sha256="0" * 64, maps="float32", hidden=True,
        channels=(1, 4),
    )  # fmt: skip
    manifest.write(tmp_path)
    features, writer = observed(), ShardWriter(tmp_path)
    facts = SampleFacts.of(features, "sky")
    writer.add_sample("one", facts, pack(features, manifest.packing, torch.float32))
    assert features.image is not None
    writer.add_image("sky", features.image, torch.float32)
    writer.flush()
    store = Store(tmp_path)
    assert store.manifest == manifest
    for each in (store, pickle.loads(pickle.dumps(store))):
        back: Any = each.features("one")
        assert torch.equal(back.maps.maps, features.maps.maps)
        assert torch.equal(back.hidden, features.hidden)
        assert back.image.input_hw == features.image.input_hw
        for ours, theirs in zip(back.image.tensors, features.image.tensors, strict=True):
            assert torch.equal(ours, theirs)
        assert (back.image.input_hw, back.image_hw) == ((20, 30), (40, 60))
        with pytest.raises(KeyError):
            each.features("two")
