"""Metadata and the two packages: `mmsada_hpc`, and `kernels/` under its installed name `mmsada_kernels`.

Version ranges live here, exact pins in constraints.txt, tool settings in pyproject.toml.
"""

from pathlib import Path

from setuptools import find_packages, setup

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
    "dev": ["hypothesis>=6.100", "mypy>=1.13", "pytest>=8.2", "pytest-timeout>=2.3", "ruff>=0.8", "types-PyYAML>=6.0"],
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
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mmsada = mmsada_hpc.cli:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
