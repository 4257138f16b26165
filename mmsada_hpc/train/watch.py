"""What stands beside the loop of a rank: its heart, its watchdog, and what is said when another rank is lost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from mmsada_hpc.cluster.heartbeat import Heart
from mmsada_hpc.cluster.join import set_patience
from mmsada_hpc.cluster.watchdog import Watchdog
from mmsada_hpc.cluster.world import World
from mmsada_hpc.config import Config
from mmsada_hpc.errors import UserError
from mmsada_hpc.observe.screen import Screen
from mmsada_hpc.train.stop import Interrupted, Stopped

# Collectives give up a little later than the watchdog, which also says where each rank waits.
_MARGIN_S = 30.0
_SIGNS_OF_LOSS = ("connection", "peer", "gloo", "nccl", "timed out", "broken pipe", "socket")


class LostRankError(RuntimeError):
    """Another rank is gone; says which, where, and what goes on from where."""


@dataclass(frozen=True)
class Watch:
    """Of one start of a run on one rank."""

    heart: Heart
    dog: Watchdog
    step_seconds: float

    def first_update_done(self) -> None:
        """From now on a step that takes long is a fault: the start has compiled, decoded and connected (D28)."""
        if self.dog.patience_s != self.step_seconds:
            self.dog.patience_s = self.step_seconds
            set_patience(timedelta(seconds=self.step_seconds + max(_MARGIN_S, 6 * self.heart.seconds)))


@contextmanager
def watching(config: Config, world: World, screen: Screen, *, start: str) -> Iterator[Watch]:
    """Beat and watch while a run trains; a lost rank is told by name.

    Raises:
        LostRankError: in place of the communication library's own words.
    """
    begin = time.monotonic()
    heart = Heart(config.run.dir, world, start=start, seconds=config.watch.heartbeat_seconds)
    patience_s = 60 * config.watch.start_minutes
    dog = Watchdog(heart, config.run.dir, patience_s=patience_s, say=screen.alarm)
    try:
        yield Watch(heart, dog, config.watch.step_seconds)
    except (Stopped, Interrupted):
        heart.close("end")  # the ranks now wait for Slurm, which may take its time
        dog.close()
        raise
    except Exception as error:
        dog.expect_end()
        if not _is_loss(error):
            heart.close("failed", why=f"{error}")
            screen.alarm(f"error: rank {world.rank} on {world.host}: {error}")
            dog.close()
            raise
        who = dog.blame()
        heart.close("lost", why=who)
        lost = (
            f"rank {world.rank} on {world.host} lost contact after {time.monotonic() - begin:.0f} s: {who}; "
            f"`submit.py resume {config.run.dir}` goes on from the last checkpoint"
        )
        screen.alarm(f"error: {lost}")
        # The dog stays: what libraries do at exit may wait for the rank that is gone.
        raise LostRankError(lost) from error
    else:
        heart.close("end")
    dog.close()


def _is_loss(error: Exception) -> bool:
    """Whether the communication library gave up, which tells of the other end at best by its address."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in words for sign in _SIGNS_OF_LOSS)
