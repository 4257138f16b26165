"""`bench step` and `bench heads` measure the GPU, from a checkout that is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BENCH = """
import argparse, sys
from mmsada_hpc.bench import command
parser = argparse.ArgumentParser()
command.add_arguments(parser)
sys.exit(command.run(parser.parse_args(sys.argv[1:])))
"""


@pytest.mark.parametrize("name", ["step", "heads"])
def test_a_benchmark_measures_the_gpu(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", BENCH, name, "--quick", "--json", str(file)],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / '.mypy'}"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(done.stdout)
    assert rows and all(row["bench"] == name and row["device"] != "cpu" for row in rows)
