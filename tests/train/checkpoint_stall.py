"""How long a checkpoint holds the training loop: `python -m tests.train.checkpoint_stall FOLDER [SAVES]`.

A state as large as two-stream I3D's (24.6 M parameters in fp32, and as much momentum: 197 MB) is saved amid small
convolutions, in the foreground and in the background by turns, with memory kept as a run keeps it.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from mmsada_hpc.cluster.host import keep_freed_memory
from mmsada_hpc.train.checkpoint import Checkpoints, Position, TrainState

TENSORS, SIZE = 300, 82_000
STEPS_BETWEEN = 40


def main(folder: Path, saves: int) -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    state = TrainState(
        Position(),
        {str(n): torch.randn(SIZE) for n in range(TENSORS)},
        {str(n): torch.randn(SIZE) for n in range(TENSORS)},
    )
    network = torch.nn.Sequential(*[torch.nn.Conv3d(32, 32, 3, padding=1) for _ in range(4)])
    x_NCTHW = torch.randn(2, 32, 8, 28, 28)

    def step() -> float:
        begin = time.perf_counter()
        network(x_NCTHW).square().mean().backward()
        return time.perf_counter() - begin

    alone = statistics.median(step() for _ in range(STEPS_BETWEEN))
    held: dict[bool, list[float]] = {False: [], True: []}
    beside: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * saves + 2):
        background = number % 2 == 1
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            checkpoints = Checkpoints(Path(run_dir), keep=1, config_hash="", background=background)
            seconds = checkpoints.save(state)
            steps = [step() for _ in range(STEPS_BETWEEN)]
            checkpoints.close()
        if number >= 2:  # the first ones meet memory that was never used
            held[background].append(seconds)
            beside[background].append(statistics.mean(steps))
    print(f"{torch.get_num_threads()} threads; a step alone {1000 * alone:.0f} ms")
    for background, name in ((False, "foreground"), (True, "background")):
        found = held[background]
        print(
            f"{name}: held {statistics.median(found):.3f} s (median of {saves}; {min(found):.3f} to {max(found):.3f}); "
            f"a step in the {STEPS_BETWEEN} after it {1000 * statistics.median(beside[background]):.0f} ms"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
