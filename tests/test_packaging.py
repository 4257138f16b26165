"""What is built, what lands in site-packages, and that it works far away from the checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from mmsada_kernels import cpu

CHECKOUT = Path(__file__).resolve().parents[1]
PACKED = ("mmsada_hpc", "kernels", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
# One step of the heads on random features, far from the checkout.
ADAPTATION_HEADS = """
import torch, mmsada_kernels as k
from mmsada_kernels.reference import Linear, Mlp
n, d, rand = 4, 6, torch.rand
mlp = lambda inputs: Mlp(rand(5, inputs), rand(5), rand(2, 5), rand(2))
x = [rand(n, d, requires_grad=True) for _ in range(2)]
found = k.adaptation_heads(
    x, [torch.ones(n, d)] * 2, classifier_S=[Linear(rand(3, d), rand(3))] * 2, discriminator_S=[mlp(d)] * 2,
    correspondence_head=mlp(2 * d), label_N=torch.zeros(n, dtype=torch.long), domain_N=torch.tensor([0, 0, 1, 1]),
    corresponds_N=torch.tensor([True, False] * 2), weight_ce_N=rand(n), weight_corr_N=rand(n), weight_domain_N=rand(n),
    reversal=torch.tensor(0.1), num_classes=3)
(found.classified.scored.loss + found.corresponds.loss + sum(s.loss for s in found.domain_S)).backward()
assert all(v.grad.abs().sum() > 0 for v in x)
print(k.__file__)
"""
RUN = "run: {dir: runs/packaged}\ntrain: {global_batch: 64, micro_batch: 32}\n"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the compiled operators, which take a minute to build."""
    return build_wheel(tmp_path_factory.mktemp("wheel"), MMSADA_KERNELS="reference")


def build_wheel(folder: Path, **environ: str) -> Path:
    """From a copy: setuptools leaves its build/ beside setup.py, and old files in it would go into the wheel."""
    for name in PACKED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(source, folder / "src" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--use-pep517"]
    done = subprocess.run(
        [*pip, "-w", str(folder), str(folder / "src")],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@dataclass(frozen=True)
class Elsewhere:
    """A second environment with the wheel in it, and an empty folder to work in."""

    bin: Path
    site_packages: Path
    work: Path

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        program = str(self.bin / command[0])
        environ = {"PATH": f"{self.bin}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(self.work)}
        return subprocess.run(
            [program, *command[1:]], cwd=self.work, env=environ, capture_output=True, text=True, timeout=60
        )


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    return install(wheel, tmp_path_factory.mktemp("elsewhere"))


def install(wheel: Path, folder: Path) -> Elsewhere:
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = folder / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=60)
    # A plain path lends it the dependencies; its .pth files (its editable install!) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = folder / "work"
    work.mkdir()
    (work / "run.yaml").write_text(RUN)
    return Elsewhere(bin=folder / "venv" / "bin", site_packages=site, work=work)


def test_site_packages_gets_two_names_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"mmsada_hpc", "mmsada_kernels"}


def test_every_module_and_every_config_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for folder, name, pattern in (
        ("mmsada_hpc", "mmsada_hpc", "*.py"),
        ("kernels", "mmsada_kernels", "*.py"),
        ("configs", "mmsada_hpc/configs", "*.yaml"),
    ):
        files = {f"{name}/{path.relative_to(CHECKOUT / folder)}" for path in (CHECKOUT / folder).rglob(pattern)}
        assert files and files <= packed, f"left out: {sorted(files - packed)}"


def test_every_import_is_a_declared_dependency(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    declared = {canonical(match) for match in re.findall(r"^Requires-Dist: ([A-Za-z0-9._-]+)", metadata, re.MULTILINE)}
    providers = packages_distributions()
    for module in sorted(imported_modules()):
        names = {canonical(name) for name in providers.get(module, [module])}
        assert names & declared, f"`import {module}` needs {sorted(names)}, which setup.py does not name"


def imported_modules() -> set[str]:
    """Top-level names of all that the two packages and the launcher import from elsewhere."""
    found: set[str] = set()
    for folder in ("mmsada_hpc", "kernels", "launch"):
        for path in (CHECKOUT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"mmsada_hpc", "mmsada_kernels"}


def test_constraints_pin_everything_that_setup_names() -> None:
    pins = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line.partition("==")[0]) for line in pins if line and not line.startswith("#")}
    named = re.findall(r'"([A-Za-z0-9._-]+)>=', (CHECKOUT / "setup.py").read_text())
    assert {canonical(name) for name in named} <= pinned
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=\s]+", line) for line in pins if line and not line.startswith("#"))


def test_the_heads_run_far_from_the_checkout(elsewhere: Elsewhere) -> None:
    done = elsewhere.run("python", "-c", ADAPTATION_HEADS)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(elsewhere.site_packages)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(cpu.level() == "reference", reason="the compiled operators are not built here")
def test_a_plain_install_has_the_compiled_operators(tmp_path: Path) -> None:
    elsewhere = install(build_wheel(tmp_path / "wheel"), tmp_path / "elsewhere")
    done = elsewhere.run("python", "-c", f"{ADAPTATION_HEADS}\nprint(k.cpu.level())")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.splitlines()[1] == cpu.level()
    assert (elsewhere.site_packages / f"mmsada_kernels/cpu/_cpu_{cpu.level()}.so").is_file()


def test_config_command_finds_the_packed_defaults(elsewhere: Elsewhere) -> None:
    done = elsewhere.run("mmsada", "config", "--config", "run.yaml")
    assert done.returncode == 0, done.stderr
    assert "dir: runs/packaged" in done.stdout and "lambda_c: 5.0" in done.stdout


def test_dry_run_finds_the_packed_cluster_profiles(elsewhere: Elsewhere) -> None:
    command = ["submit", "--config", "run.yaml", "--cluster", "slurm", "--tasks-per-node", "2", "--dry-run"]
    done = elsewhere.run("mmsada", *command)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --ntasks-per-node=2" in done.stdout
    assert f"{elsewhere.bin}/python -u -m submitit" in done.stdout


def test_the_package_comes_from_the_wheel(elsewhere: Elsewhere) -> None:
    done = elsewhere.run("python", "-c", "import mmsada_hpc; print(mmsada_hpc.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(elsewhere.site_packages)
