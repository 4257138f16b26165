"""Real TensorFlow checkpoints, read without TensorFlow: what lands where, and what damage is found (spec 9.1)."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmsada_hpc.errors import UserError
from mmsada_hpc.model.weights.convert import convert
from mmsada_hpc.model.weights.crc32c import crc32c, masked_crc32c
from mmsada_hpc.model.weights.files import read_weights
from mmsada_hpc.model.weights.names import STEM, UNITS
from mmsada_hpc.model.weights.sstable import DamagedError, uncompress_snappy
from tests.model.tf_bundle.narrow import CLASSES, narrow_params

BUNDLES = Path(__file__).resolve().parent / "tf_bundle"


def refused(path: Path, *, match: str) -> None:
    with pytest.raises(UserError, match=match):
        read_weights(path)


@pytest.mark.parametrize(("name", "stem_in"), [("rgb", 3), ("flow_no_prefix", 2)])
def test_a_real_tensorflow_checkpoint_lands_under_our_names(name: str, stem_in: int, tmp_path: Path) -> None:
    """With the prefix, `[1, 1, 1, 1, C]`, Momentum and a step counter; without it and `[C]`."""
    given = convert(BUNDLES / name, tmp_path / "out.safetensors").tensors
    params = narrow_params(stem_in)
    assert len(given) == 57 * 5 + 2
    for ours, tf in ((STEM, STEM), ("Mixed_5b.b2b", "Mixed_5b/Branch_2/Conv3d_0a_3x3")):
        np.testing.assert_array_equal(
            given[f"{ours}.conv3d.weight"], params[f"{tf}/conv_3d/w"].transpose(4, 3, 0, 1, 2)
        )
    for unit in UNITS:
        np.testing.assert_array_equal(given[f"{unit.ours}.bn.bias"], params[f"{unit.tf}/batch_norm/beta"])
        for ours, tf in (("running_mean_DC", "moving_mean"), ("running_var_DC", "moving_variance")):
            want = params[f"{unit.tf}/batch_norm/{tf}"]
            np.testing.assert_array_equal(given[f"{unit.ours}.bn.{ours}"], np.stack([want, want]))
    np.testing.assert_array_equal(given["logits.weight"], params["Logits/Conv3d_0c_1x1/conv_3d/w"][0, 0, 0].T)
    assert given["logits.bias"].shape == (CLASSES,)


def test_any_file_of_a_checkpoint_names_it() -> None:
    first = read_weights(BUNDLES / "rgb.index")
    second = read_weights(BUNDLES / "rgb.data-00000-of-00001")
    assert first.path == second.path == BUNDLES / "rgb" and first.sha256 == second.sha256
    assert "RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w/Momentum" in first.arrays


def copied(folder: Path, *, index: str = "rgb.index") -> Path:
    shutil.copy(BUNDLES / index, folder / "model.ckpt.index")
    shutil.copy(BUNDLES / "rgb.data-00000-of-00001", folder / "model.ckpt.data-00000-of-00001")
    return folder / "model.ckpt"


def test_a_compressed_index_reads_the_same(tmp_path: Path) -> None:
    plain, packed = read_weights(BUNDLES / "rgb"), read_weights(copied(tmp_path, index="rgb_snappy.index"))
    assert plain.arrays.keys() == packed.arrays.keys()
    assert all(np.array_equal(array, packed.arrays[name]) for name, array in plain.arrays.items())


@pytest.mark.parametrize("at", [0, 700, 6000, -1])
def test_a_flipped_byte_of_the_index_is_found(at: int, tmp_path: Path) -> None:
    index = copied(tmp_path).with_name("model.ckpt.index")
    damaged = bytearray(index.read_bytes())
    damaged[at] ^= 4
    index.write_bytes(damaged)
    refused(tmp_path / "model.ckpt", match=r"model\.ckpt\.index: not a whole checkpoint index")


@pytest.mark.parametrize("keep", [0, 20, 47, 48, 5000])
def test_a_cut_index_is_found(keep: int, tmp_path: Path) -> None:
    index = copied(tmp_path).with_name("model.ckpt.index")
    index.write_bytes(index.read_bytes()[:keep])
    refused(tmp_path / "model.ckpt", match=r"model\.ckpt\.index: not a whole checkpoint index")


def test_damaged_data_name_the_tensor(tmp_path: Path) -> None:
    data = copied(tmp_path).with_name("model.ckpt.data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    refused(tmp_path / "model.ckpt", match=r"differs from its checksum at RGB/inception_i3d/Conv3d_1a")
    data.write_bytes(whole[:-20])
    refused(tmp_path / "model.ckpt", match="ends too early for")
    data.unlink()
    refused(tmp_path / "model.ckpt", match=r"data-00000-of-00001: no such file")


def test_the_checksum_has_its_published_values() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43  # RFC 3720, B.4
    assert masked_crc32c(b"") == 0xA282EAD8
    data = np.random.default_rng(0).bytes(1_000_003)
    cut = crc32c(data[:500_000]), crc32c(data)
    flipped = crc32c(data[:900_000] + bytes([data[900_000] ^ 1]) + data[900_001:])
    assert len({*cut, flipped}) == 3
    long = bytes(4_096_000)  # through the lanes, against a table-free statement
    assert crc32c(long) == crc32c_of_zeros(len(long))


def crc32c_of_zeros(count: int) -> int:
    """By squaring "one more zero bit", which is division by x."""
    matrix = [0x82F63B78, *(1 << bit for bit in range(31))]
    register, steps = 0xFFFFFFFF, 8 * count
    while steps:
        if steps & 1:
            register = times(matrix, register)
        matrix, steps = [times(matrix, column) for column in matrix], steps >> 1
    return register ^ 0xFFFFFFFF


def times(matrix: list[int], register: int) -> int:
    found = 0
    for bit, column in enumerate(matrix):
        found ^= column * (register >> bit & 1)
    return found


def test_a_compressed_block_that_lies_is_refused() -> None:
    assert uncompress_snappy(b"\x08\x04ab\x09\x02") == b"abababab"
    for damaged in (
        b"\x08\x04ab\x09\x03",
        b"\x09\x04ab\x09\x02",
        b"\x08\x04a",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ):
        with pytest.raises(DamagedError):
            uncompress_snappy(damaged)
