"""Metadata and the two packages: `mmsada_hpc`, and `kernels/` under its installed name `mmsada_kernels`.

Version ranges live here, exact pins in constraints.txt, tool settings in pyproject.toml.

The C++ operators in kernels/cpu are built where torch is installed already (`--no-build-isolation`) and a C++ compiler
works; elsewhere the package installs without them and computes in plain PyTorch. After an edit of a .cpp,
`python setup.py build_ext --inplace` rebuilds what changed, as `make` does.
"""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent

REQUIRES = [
    "av>=16",
    "deepspeed>=0.16",
    "mpi4py>=4.0",
    "numpy>=1.26",
    "opencv-contrib-python-headless>=4.9",
    "pillow>=10.1",
    "psutil>=5.9",
    "pydantic>=2.7",
    "pydantic-core>=2.18",
    "pytorch-optimizer>=4.0",
    "pyyaml>=6.0",
    "safetensors>=0.4.3",
    "submitit>=1.5.2",
    "torch>=2.6",
    "tqdm>=4.66",
]
EXTRAS = {
    # DALI has one wheel per CUDA release; either of them also runs on a machine without a GPU.
    "cuda12": ["nvidia-dali-cuda120>=1.48"],
    "cuda13": ["nvidia-dali-cuda130>=1.52"],
    # An MPI from PyPI, with its own mpiexec; leave it out where the cluster has one.
    "mpi": ["mpich>=4.2"],
    "report": ["matplotlib>=3.8", "scikit-learn>=1.4"],
    "tensorboard": ["tensorboard>=2.16"],
    "dev": [
        "hypothesis>=6.100",
        "mypy>=1.13",
        "pytest>=8.2",
        "pytest-timeout>=2.3",
        "ruff>=0.8",
        "triton>=3.3; platform_system == 'Linux'",
        "types-PyYAML>=6.0",
    ],
}


def version() -> str:
    """`__version__` of the package, read without importing it."""
    for line in (HERE / "mmsada_hpc" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("mmsada_hpc/__init__.py: no __version__ line")


def kernel_packages() -> list[str]:
    """`kernels/` and what is below it, under the installed name."""
    return ["mmsada_kernels", *(f"mmsada_kernels.{name}" for name in find_packages(str(HERE / "kernels")))]


# One library per instruction set, all of the same sources: the host that builds is often not the host that computes.
# kernels/cpu/__init__.py knows which flags of /proc/cpuinfo each of them needs.
LEVELS = {
    "v3": ["-mavx2", "-mfma", "-mf16c"],
    "v4": ["-mavx2", "-mfma", "-mf16c", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "bf16"))],
}
# OpenMP as torch's headers use it; its symbols come from the OpenMP that torch itself has loaded, so none is linked.
COMPILE = ["-std=c++20", "-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]


def libraries() -> list[Extension]:
    """One for each level: none where torch is missing, or where MMSADA_KERNELS=reference says so."""
    if os.environ.get("MMSADA_KERNELS") == "reference":
        return []
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        _tell("torch is not installed yet, or hidden from the build (use --no-build-isolation)")
        return []
    levels = LEVELS if platform.machine() in ("x86_64", "AMD64") else {"plain": []}
    folder = HERE / "kernels" / "cpu"
    return [
        CppExtension(
            name=f"mmsada_kernels.cpu._cpu_{level}",
            sources=sorted(str(path.relative_to(HERE)) for path in folder.glob("*.cpp")),
            depends=sorted(str(path.relative_to(HERE)) for path in folder.glob("*.h")),
            extra_compile_args=COMPILE + flags,
            py_limited_api=True,  # there is no Python in them: torch loads them
            optional=True,
        )
        for level, flags in levels.items()
    ]


def build_command() -> type:
    """Torch's builder, which leaves out what this compiler cannot build and keeps objects for the next time."""
    from torch.utils.cpp_extension import BuildExtension, include_paths

    class Build(BuildExtension):
        extensions: list[Extension]

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, no_python_abi_suffix=True, **kwargs)

        def run(self) -> None:
            self.extensions = [ext for ext in self.extensions if _compiles(ext.extra_compile_args, include_paths())]
            if not self.extensions:
                _tell("no C++ compiler here builds against torch's headers")
            super().run()

        def build_extension(self, ext: Extension) -> None:
            self.build_temp = str(HERE / "build" / "kernels" / ext.name.rpartition(".")[2])
            try:
                super().build_extension(ext)
            except RuntimeError as error:  # of ninja; an optional extension that does not compile is left out
                _tell(f"{ext.name} does not compile with this compiler (GCC 11 or newer is known to)")
                raise CompileError(str(error)) from error

    return Build


def _compiles(flags: list[str], folders: list[str]) -> bool:
    compiler, includes = shlex.split(os.environ.get("CXX", "c++")), [f"-I{folder}" for folder in folders]
    command = [*compiler, *flags, *includes, "-c", "probe.cpp"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cpp").write_text("#include <ATen/core/Tensor.h>\nat::Tensor probe;\n")
        try:
            return subprocess.run(command, cwd=folder, capture_output=True, timeout=120).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def _tell(reason: str) -> None:
    print(f"mmsada_kernels: the compiled operators are left out: {reason}", file=sys.stderr)


LIBRARIES = libraries()

setup(
    name="mmsada-hpc",
    version=version(),
    description="Multi-node training of MM-SADA: multi-modal domain adaptation for action recognition in video",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["mmsada_hpc", "mmsada_hpc.*"]), "mmsada_hpc.configs", *kernel_packages()],
    package_dir={"mmsada_hpc.configs": "configs", "mmsada_kernels": "kernels"},
    package_data={
        "mmsada_hpc": ["py.typed", "**/*.json", "**/*.csv", "**/*.html", "**/*.css"],
        "mmsada_hpc.configs": ["*.yaml", "**/*.yaml"],
        "mmsada_kernels": ["py.typed", "**/*.cpp", "**/*.h"],
    },
    ext_modules=LIBRARIES,
    cmdclass={"build_ext": build_command()} if LIBRARIES else {},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mmsada = mmsada_hpc.cli:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
