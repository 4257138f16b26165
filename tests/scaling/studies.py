"""Small studies that tests write and run."""

from pathlib import Path
from typing import Any

import yaml

from mmsada_hpc.data.store import Store
from tests.train.test_law1 import tiny_run


def real_study(store: Store, folder: Path, parts: dict[str, Any], **more: Any) -> Path:
    """A study of base batch 8 that trains on the tiny store; SGD and LARS."""
    pairs = [word.partition("=") for word in tiny_run(store, folder) if not word.startswith("run.dir")]
    settings = {key: yaml.safe_load(text) for key, _, text in pairs if key != "train.global_batch"}
    values = {
        "base": "default.yaml",
        "folder": str(folder / "runs"),
        "base_batch": 8,
        "set": {**settings, **more.pop("set", {})},
        "optimizers": {"sgd": {"train.optimizer": "sgd"}, "lars": {"train.optimizer": "lars"}},
        "parts": parts,
        **more,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
