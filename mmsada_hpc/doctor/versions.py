"""Versions of what matters, and pairs that are known to be bad (D25)."""

import platform
import re
from dataclasses import dataclass
from importlib import metadata

import mmsada_hpc
from mmsada_hpc.doctor.report import Ask, Level, Line

Version = tuple[int, ...]
_LAST: Version = (10**6,)
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
_OPENCV = (
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
    "opencv-python-headless",
    "opencv-python",
)
_TOLD = ("deepspeed", "mpi4py", "submitit", "numpy")


@dataclass(frozen=True)
class BadPair:
    """Versions of torch and cuDNN, each from the first to before the second, that go badly together."""

    torch: tuple[Version, Version]
    cudnn: tuple[Version, Version]
    level: Level
    what: str
    remedy: str

    def holds(self, torch: Version, cudnn: Version) -> bool:
        return self.torch[0] <= torch < self.torch[1] and self.cudnn[0] <= cudnn < self.cudnn[1]


# pytorch#163539 and its pull requests 163581, 166122, 166480, 167024.
BAD_PAIRS = (
    BadPair(
        ((2, 9, 0), (2, 9, 1)),
        ((9, 8), _LAST),
        "fail",
        "torch 2.9.0 leaves cuDNN out of every bf16 conv3d: 4-20 times slower, with many times the memory",
        "install torch 2.10 or later, or 2.9.1 with cuDNN 9.15 or later",
    ),
    BadPair(
        ((2, 9, 1), (2, 10)),
        ((9, 8), (9, 15)),
        "fail",
        "torch 2.9 leaves cuDNN 9.8-9.14 out of every bf16 conv3d: 4-20 times slower, with many times the memory",
        "install torch 2.10 or later, or cuDNN 9.15 or later (pip install -U nvidia-cudnn-cu13)",
    ),
    BadPair(
        ((2, 10), _LAST),
        ((9, 8), (9, 15)),
        "warn",
        "cuDNN 9.8-9.14 is older than what this torch was made for: it goes round it in bf16 conv3d, which is slow",
        "install the cuDNN that torch names as its requirement (9.15 or later)",
    ),
    BadPair(
        ((0,), (2, 9, 0)),
        ((9, 8), (9, 15)),
        "fail",
        "cuDNN 9.8-9.14 gives wrong results in some bf16 conv3d, and this torch does not know",
        "install torch 2.10 or later, or cuDNN 9.15 or later",
    ),
    BadPair(
        ((0,), (2, 9, 1)),
        ((9, 10, 2), (9, 16)),
        "warn",
        "cuDNN 9.10.2-9.15 has a broken TF32 kernel for conv3d, and this torch does not know",
        "leave train.tf32 off, or install torch 2.9.1 or later",
    ),
)


def check(ask: Ask) -> list[Line]:
    """Python, torch with CUDA and cuDNN, then the packages."""
    return [_torch_line(), _packages_line()]


def bad_pair(torch: str, cudnn: int | None) -> BadPair | None:
    """The worst thing known about the two; `cudnn` as `torch.backends.cudnn.version()` gives it."""
    if cudnn is None:
        return None
    hits = [pair for pair in BAD_PAIRS if pair.holds(parse(torch), cudnn_version(cudnn))]
    return min(hits, key=lambda pair: pair.level == "warn", default=None)


def parse(version: str) -> Version:
    """Leading numbers: `2.13.0+cpu` -> (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def cudnn_version(number: int) -> Version:
    """91002 -> (9, 10, 2); before cuDNN 9, 8902 -> (8, 9, 2)."""
    unit = 10_000 if number >= 90_000 else 1_000
    return number // unit, number % unit // 100, number % 100


def problems(requirement: str, installed: str | None) -> str | None:
    """What is wrong with an installed version, in view of `name>=1.2`."""
    name, _, least = requirement.partition(">=")
    if installed is None:
        return f"{name} is missing"
    return f"{name} {installed} is older than {least}" if least and parse(installed) < parse(least) else None


def _torch_line() -> Line:
    import torch

    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    numbers = "" if cudnn is None else f", cuDNN {'.'.join(map(str, cudnn_version(cudnn)))}"
    text = (
        f"mmsada {mmsada_hpc.__version__}, python {platform.python_version()}, torch {torch.__version__}, "
        f"{build}{numbers}"
    )
    bad = bad_pair(torch.__version__, cudnn)
    if bad is None:
        return Line("versions", "ok", text)
    return Line("versions", bad.level, f"{text}: {bad.what}", bad.remedy)


def _packages_line() -> Line:
    dali = [name for name in _DALI if _installed(name)]
    text = ", ".join(f"{name} {_installed(name) or 'missing'}" for name in (*_TOLD, *(dali or ("DALI",))))
    wrong = [found for need in _requirements() if (found := problems(need, _installed(need.partition(">=")[0])))]
    if wrong:
        return Line("packages", "fail", f"{text}; {', '.join(wrong)}", "pip install -U -c constraints.txt -e .")
    if not dali:
        return Line("packages", "fail", text, "install DALI: the extra cuda13 or cuda12, also without a GPU")
    both = [name for name in _OPENCV if _installed(name)]
    if len(both) > 1:
        return Line(
            "packages",
            "warn",
            f"{text}; {' and '.join(both)} overwrite each other",
            f"pip uninstall {' '.join(both)}, then pip install {_OPENCV[0]}",
        )
    return Line("packages", "ok", text)


def _requirements() -> list[str]:
    """What the installed package requires without extras, as `name>=version`; nothing where it is not installed."""
    try:
        return [need.replace(" ", "") for need in metadata.requires("mmsada-hpc") or [] if ";" not in need]
    except metadata.PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
