"""The four layouts of I3D weights as names -> arrays, read and written (spec 9.1, 9.2, 9.3).

What is missing, unknown or of a wrong shape is named.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import mode

import numpy as np

from mmsada_hpc.errors import UserError
from mmsada_hpc.model.weights.names import FEATURES, STEM, UNITS, Array, I3dArrays, UnitName

TF_PREFIXES = {"rgb": "RGB/inception_i3d/", "flow": "Flow/inception_i3d/"}
_DOMAINS = 2  # a GroupBatchNorm keeps running statistics of source and target


@dataclass(frozen=True)
class Layout:
    """How one project names the parts of a unit, and its classifier."""

    title: str
    parts: Mapping[str, str]
    """Field of `I3dArrays` -> what follows the unit's name."""
    logits: tuple[str, str]

    def names(self, unit: UnitName) -> dict[str, str]:
        """Field of `I3dArrays` -> the tensor's name."""
        base = {"tf": unit.tf, "hassony2": unit.hassony2}.get(self.title, unit.ours)
        return {part: base + end for part, end in self.parts.items()}


def _torch_parts(norm: str) -> dict[str, str]:
    ends = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
    return {"w": ".conv3d.weight"} | {part: f".{norm}.{end}" for part, end in ends.items()}


LAYOUTS = {
    layout.title: layout
    for layout in (
        Layout(
            "tf",
            {"w": "/conv_3d/w"}
            | {
                k: f"/batch_norm/{v}"
                for k, v in (("beta", "beta"), ("mean", "moving_mean"), ("var", "moving_variance"))
            },
            ("Logits/Conv3d_0c_1x1/conv_3d/w", "Logits/Conv3d_0c_1x1/conv_3d/b"),
        ),
        Layout("piergiaj", _torch_parts("bn"), ("logits.conv3d.weight", "logits.conv3d.bias")),
        Layout("hassony2", _torch_parts("batch3d"), ("conv3d_0c_1x1.conv3d.weight", "conv3d_0c_1x1.conv3d.bias")),
        Layout(
            "ours",
            {"w": ".conv3d.weight", "beta": ".bn.bias", "mean": ".bn.running_mean_DC", "var": ".bn.running_var_DC"},
            ("logits.weight", "logits.bias"),
        ),
    )
}
_MARKS = {
    "tf": "/conv_3d/w",
    "hassony2": ".batch3d.running_mean",
    "ours": ".bn.running_mean_DC",
    "piergiaj": ".bn.bias",
}


def find_layout(names: Collection[str], *, where: str) -> str:
    """The layout that some of the names are of.

    Raises:
        UserError: of none.
    """
    for title, mark in _MARKS.items():
        if any(name.endswith(mark) for name in names):
            return title
    first = ", ".join(sorted(names)[:3]) or "nothing"
    raise UserError(
        f"{where}: holds no I3D weights in a layout known here (DeepMind TensorFlow, piergiaj, hassony2, ours); it "
        f"holds {first}"
    )


def read_layout(
    title: str, given: Mapping[str, Array], *, where: str, stream: str | None = None
) -> tuple[I3dArrays, str]:
    """Arrays by a layout's names as `I3dArrays`, and the stream they are of.

    Args:
        stream: rgb or flow; None = as the contents say.
        where: the file, for errors.

    Raises:
        UserError: a tensor is missing, unknown, of a wrong shape or not finite, or the stream is another one.
    """
    layout, prefix = LAYOUTS[title], ""
    if title == "tf":
        prefix = _tf_prefix(given, where=where, stream=stream)
        given = _tf_relevant(given, prefix)
    else:
        given = {n: a for n, a in given.items() if not n.endswith((".num_batches_tracked", ".groups_D"))}
    wanted = {name for unit in UNITS for name in layout.names(unit).values()} | set(layout.logits)
    _check_names(wanted, set(given), where=where, prefix=prefix)
    found = _collect(layout, given, where=where)
    _check_shapes(layout, found, where=where)
    if stream is not None and found.stream != stream:
        raise UserError(
            f"{where}: its first convolution takes {found.w[STEM].shape[1]} channels, so it is {found.stream}, not "
            f"--stream {stream}"
        )
    return found, found.stream


def write_layout(title: str, arrays: I3dArrays) -> dict[str, Array]:
    """`I3dArrays` without gamma by the names of `ours`, `piergiaj` or `hassony2` (where gamma is 1)."""
    layout, out = LAYOUTS[title], {}
    for unit in UNITS:
        for part, name in layout.names(unit).items():
            if part == "gamma":
                out[name] = np.ones_like(arrays.beta[unit.ours])
                continue
            value = getattr(arrays, part)[unit.ours]
            out[name] = np.stack([value] * _DOMAINS) if name.endswith("_DC") else value
        if title == "ours":
            out[f"{unit.ours}.bn.groups_D"] = np.ones(_DOMAINS, arrays.beta[unit.ours].dtype)
    logits_w = arrays.logits_w if title == "ours" else arrays.logits_w[:, :, None, None, None]
    return out | dict(zip(layout.logits, (logits_w, arrays.logits_b), strict=True))


def _tf_prefix(names: Collection[str], *, where: str, stream: str | None) -> str:
    """`RGB/inception_i3d/`, `Flow/inception_i3d/`, or nothing as in the rgb_scratch_kin600 checkpoint."""
    there = {s: p for s, p in TF_PREFIXES.items() if any(name.startswith(p) for name in names)}
    if not there:
        return ""
    if stream is None and len(there) > 1:
        raise UserError(f"{where}: holds both streams; say --stream rgb or --stream flow")
    chosen = stream or next(iter(there))
    if chosen not in there:
        raise UserError(f"{where}: holds {' and '.join(there)} alone, not --stream {chosen}")
    return there[chosen]


def _tf_relevant(given: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The network's own tensors, without prefix: no momentum, step counters or heads beside it."""
    tops = {unit.tf.partition("/")[0] for unit in UNITS} | {"Logits"}
    inside = {n.removeprefix(prefix): a for n, a in given.items() if n.startswith(prefix)}
    return {
        name: array
        for name, array in inside.items()
        if not name.endswith("/Momentum") and (prefix or name.partition("/")[0] in tops)
    }


def _check_names(wanted: set[str], given: set[str], *, where: str, prefix: str) -> None:
    missing, extra = sorted(wanted - given), sorted(given - wanted)
    if missing:
        near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.8)
        hint = f"; it has {prefix}{near[0]} instead" if near else ""
        raise UserError(f"{where}: {prefix}{missing[0]} is missing{_more(missing)}{hint}")
    if extra:
        near = difflib.get_close_matches(extra[0], wanted, n=1)
        hint = f"; the nearest that does is {prefix}{near[0]}" if near else ""
        raise UserError(f"{where}: {prefix}{extra[0]} does not belong to I3D{_more(extra)}{hint}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _collect(layout: Layout, given: Mapping[str, Array], *, where: str) -> I3dArrays:
    parts: dict[str, dict[str, Array]] = {"w": {}, "beta": {}, "mean": {}, "var": {}, "gamma": {}}
    for unit in UNITS:
        for part, name in layout.names(unit).items():
            array = given[name]
            if name.endswith("_DC"):
                array = _one_set(array, name, where=where)
            elif layout.title == "tf":
                array = _from_tf(array, part)
            parts[part][unit.ours] = array
    logits_w, logits_b = (given[name] for name in layout.logits)
    if layout.title == "tf" and logits_w.ndim == 5:
        logits_w = logits_w.transpose(4, 3, 0, 1, 2)
    if logits_w.ndim == 5 and logits_w.shape[2:] == (1, 1, 1):
        logits_w = logits_w[:, :, 0, 0, 0]
    return I3dArrays(**parts, logits_w=logits_w, logits_b=logits_b)


def _from_tf(array: Array, part: str) -> Array:
    """`[kT, kH, kW, in, out]` to `(out, in, kT, kH, kW)`; batch norms `[C]` and `[1, 1, 1, 1, C]` to `(C,)`."""
    if part == "w":
        return array.transpose(4, 3, 0, 1, 2) if array.ndim == 5 else array
    return array.reshape(-1) if array.shape[:-1] in ((), (1, 1, 1, 1)) else array


def _one_set(array_DC: Array, name: str, *, where: str) -> Array:
    if array_DC.ndim != 2 or not np.array_equal(array_DC[0], array_DC[-1]):
        raise UserError(
            f"{where}: {name} keeps other running statistics for source than for target; other layouts have room for "
            f"one set"
        )
    row: Array = array_DC[0]
    return row


def _check_shapes(layout: Layout, found: I3dArrays, *, where: str) -> None:
    def check(name: str, array: Array, want: tuple[int, ...]) -> None:
        if array.shape != want:
            raise UserError(f"{where}: {name} has the shape {array.shape} where {want} is needed (PyTorch's order)")
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {name} holds a value that is not finite")

    channels: dict[str, int] = {}
    for unit in UNITS:
        names, own = layout.names(unit), {p: getattr(found, p).get(unit.ours) for p in layout.parts}
        out = mode(
            [*own["w"].shape[:1], *(a.size for p, a in own.items() if p != "w")]
        )  # so that the odd one out is named
        clip = own["w"].shape[1] if own["w"].ndim == 5 and own["w"].shape[1] == 2 else 3
        inputs = sum(channels[i] for i in unit.inputs) or clip
        for part, array in own.items():
            check(names[part], array, (out, inputs, *[unit.kernel] * 3) if part == "w" else (out,))
        if (own["var"] < 0).any():
            raise UserError(f"{where}: {names['var']} holds a negative variance")
        channels[unit.ours] = out
    classes = found.logits_b.size
    check(layout.logits[0], found.logits_w, (classes, sum(channels[name] for name in FEATURES)))
    check(layout.logits[1], found.logits_b, (classes,))
