"""Compile a Triton kernel for a GPU that is not there, and read what its machine code takes."""

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {80: GPUTarget("cuda", 80, 32), 90: GPUTarget("cuda", 90, 32)}
MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one block may have (CUDA C++ programming guide, technical specifications)."""

_LAUNCH_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion")
_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """What one compiled kernel takes: registers a thread, spilled bytes a thread, bytes of shared memory a block."""

    registers: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Described:
    """A launch as the compiler sees it."""

    signature: dict[str, Any]
    constexprs: dict[str, Any]
    attrs: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, int]


def describe(kernel: triton.JITFunction, args: Sequence[Any], options: Mapping[str, Any]) -> Described:
    """The compiler's view of `kernel[grid](*args, **options)`: numbers are 32-bit; a pointer or number divisible by 16
    is known to be, and a 1 and a None are constants, as when triton itself specialises a launch.
    """
    settings = {name: value for name, value in options.items() if name in _LAUNCH_OPTIONS}
    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {name: value for name, value in options.items() if name not in _LAUNCH_OPTIONS}
    constant = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    found = Described({}, {}, {}, settings)
    for i, name in enumerate(kernel.arg_names):
        value = given[name]
        if name in constant or value is None or (isinstance(value, int) and value == 1):
            found.signature[name], found.constexprs[name] = "constexpr", value
            continue
        found.signature[name] = _type(value)
        parts = {(i, j): part for j, part in enumerate(value)} if isinstance(value, tuple) else {(i,): value}
        found.attrs.update({at: [["tt.divisibility", 16]] for at, part in parts.items() if _divisible(part)})
    return found


def _type(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_type(part) for part in value)
    return "*" + _TYPES[value.dtype] if isinstance(value, Tensor) else "i32"


def _divisible(value: Any) -> bool:
    return (value.data_ptr() if isinstance(value, Tensor) else value) % 16 == 0


def build(
    kernel: triton.JITFunction,
    signature: Mapping[str, Any],
    constexprs: Mapping[str, Any],
    target: GPUTarget,
    *,
    attrs: Mapping[tuple[int, ...], list[list[Any]]] | None = None,
    options: Mapping[str, int] | None = None,
) -> Built:
    """Compile down to machine code, with triton's own assembler; raises what the compiler raises.

    Args:
        signature: type of every parameter in order: "*fp32", "i32", "constexpr", or a tuple of these.
        constexprs: values of the constant ones.
        attrs: what is known of an argument, by its place; `describe` makes it.
        options: num_warps and the like.
    """
    source = ASTSource(kernel, dict(signature), dict(constexprs), dict(attrs or {}))
    found = triton.compile(source, target=target, options=dict(options or {}))
    registers, spills = _taken(found.asm["cubin"])
    return Built(registers, spills, found.metadata.shared)


def build_launch(
    kernel: triton.JITFunction, args: Sequence[Any], options: Mapping[str, Any], target: GPUTarget
) -> Built:
    """`build` of what `kernel[grid](*args, **options)` would compile."""
    seen = describe(kernel, args, options)
    return build(kernel, seen.signature, seen.constexprs, target, attrs=seen.attrs, options=seen.options)


def _taken(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack (where spilled registers live, and nothing else here) of the kernel in `cubin`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    return int(registers), int(stack) + int(local)
