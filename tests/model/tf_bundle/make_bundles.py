"""Writes this folder's TensorFlow checkpoints, a narrow I3D each. Run once, from the repository's root, where
tensorflow-cpu 2.21 and cramjam are installed (torch is not needed):

    python -m tests.model.tf_bundle.make_bundles

`rgb`: as TensorFlow's Saver wrote the official checkpoints of a training run, batch norms `[1, 1, 1, 1, C]`, a Momentum
slot, a step counter, names under `RGB/inception_i3d/`. `flow_no_prefix`: batch norms `[C]`, names without a prefix.
`rgb_snappy.index`: the index of `rgb` with its block compressed, which the
format allows and TensorFlow reads.
"""

from pathlib import Path

import cramjam  # type: ignore[import-not-found]
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]

from mmsada_hpc.model.weights.crc32c import masked_crc32c
from mmsada_hpc.model.weights.sstable import MAGIC, varint
from tests.model.tf_bundle.narrow import CLASSES, narrow_params

HERE = Path(__file__).resolve().parent


def save(name: str, arrays: dict[str, np.ndarray]) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for key, value in arrays.items():
            tf.compat.v1.get_variable(key, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(HERE / name), write_meta_graph=False, write_state=False)


def number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def compressed(index: bytes) -> bytes:
    """The same table with its one data block compressed by Snappy."""
    footer = index[-48:]
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    top_offset, at = varint(footer, at)
    top_size, _ = varint(footer, at)
    top = index[top_offset : top_offset + top_size]
    at = 0
    shared, at = varint(top, at)
    added, at = varint(top, at)
    size, at = varint(top, at)
    key, handle = top[at : at + added], top[at + added : at + added + size]
    offset, at = varint(handle, 0)
    size, _ = varint(handle, at)
    assert shared == 0 and offset == 0, "one data block is expected"

    def block(contents: bytes, kind: int) -> bytes:
        stored = contents + bytes([kind])
        return stored + masked_crc32c(stored).to_bytes(4, "little")

    packed = bytes(cramjam.snappy.compress_raw(index[:size]))
    data = block(packed, 1)
    entry = number(0) + number(len(packed))
    top_new = number(0) + number(len(key)) + number(len(entry)) + key + entry + bytes(4) + (1).to_bytes(4, "little")
    handles = number(0) + number(0) + number(len(data)) + number(len(top_new))
    return data + block(top_new, 0) + handles.ljust(40, b"\0") + MAGIC


def main() -> None:
    rgb = {}
    for key, value in narrow_params(3).items():
        wide = value.ndim == 1 and value.size != CLASSES
        rgb[f"RGB/inception_i3d/{key}"] = value.reshape(1, 1, 1, 1, -1) if wide else value
    stem = "RGB/inception_i3d/Conv3d_1a_7x7/conv_3d/w"
    save("rgb", rgb | {f"{stem}/Momentum": np.full_like(rgb[stem], 9), "global_step": np.array(3001, np.int64)})
    save("flow_no_prefix", narrow_params(2))
    (HERE / "rgb_snappy.index").write_bytes(compressed((HERE / "rgb.index").read_bytes()))


if __name__ == "__main__":
    main()
