"""What Slurm does to a run that is in the way, and whether the time it leaves is enough to save (D32)."""

import os
import re
from collections.abc import Mapping, Sequence

from mmsada_hpc.cluster.squeue import SlurmSilentError, slurm
from mmsada_hpc.doctor.report import Ask, Line

_MORE_CHECKPOINTS = "checkpoint.minutes=5 keeps what is lost short"


def check(ask: Ask) -> list[Line]:
    """Slurm itself, requeueing, preemption in the partition asked for."""
    try:
        config = parse_config(slurm("scontrol", "show", "config", patience_s=ask.patience_s / 3))
        partitions = parse_partitions(
            slurm("scontrol", "show", "partition", "--oneliner", patience_s=ask.patience_s / 3)
        )
    except SlurmSilentError as error:
        return [_silent(str(error))]
    wanted = ask.partition or os.environ.get("SLURM_JOB_PARTITION")
    return judge(config, partitions, wanted)


def _silent(why: str) -> Line:
    if "not found" in why and "SLURM_JOB_ID" not in os.environ:
        return Line("slurm", "ok", "none on this host: runs are started by mpiexec, or `--cluster local`")
    if "configuration source" in why:
        why = "Slurm's clients are installed but find no cluster"
    remedy = "run it on a login node, or set SLURM_CONF; a run that cannot ask Slurm cannot requeue itself"
    return Line("slurm", "warn", why, remedy)


def parse_config(text: str) -> dict[str, str]:
    """`Key = value` lines of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines() if re.match(r"\w+\s*= ?", line))
    return {key.strip(): value.strip() for key, _, value in pairs}


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """`Key=value` words of `scontrol show partition --oneliner`, by the partition's name."""
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    return {fields["PartitionName"]: fields for fields in found if "PartitionName" in fields}


def judge(config: Mapping[str, str], partitions: Mapping[str, Mapping[str, str]], wanted: str | None) -> list[Line]:
    """Lines about this configuration, for the partition `wanted`, else the default one, else all of them."""
    head = Line("slurm", "ok", f"{config.get('SLURM_VERSION', '?')}, cluster {config.get('ClusterName', '?')}")
    names = (wanted or "").split(",") if wanted else [n for n, p in partitions.items() if p.get("Default") == "YES"]
    unknown = [name for name in names if name not in partitions]
    if unknown:
        what = f"{head.what}: no partition {', '.join(unknown)}"
        return [Line("slurm", "fail", what, f"--partition, one of {', '.join(partitions)}")]
    chosen = names or list(partitions)
    return [head, _requeue(config), *(preemption(config, partitions, name) for name in chosen)]


def _requeue(config: Mapping[str, str]) -> Line:
    if config.get("JobRequeue") == "0":
        remedy = "put `sbatch: {requeue: true}` into the profile, and `mmsada submit` asks for it"
        return Line("requeue", "warn", "JobRequeue=0: a job that does not ask for it is never requeued", remedy)
    return Line("requeue", "ok", "JobRequeue=1: a run that was preempted or reached its time limit goes on by itself")


def preemption(config: Mapping[str, str], partitions: Mapping[str, Mapping[str, str]], name: str) -> Line:
    """What happens to a job of the partition when another takes its place.

    `seen` holds `window_s`, the seconds from the first signal to the kill, where there is such a moment.
    """
    fields, title = partitions[name], f"partition {name}"
    kind = config.get("PreemptType", "preempt/none")
    mode = _mode(config, fields)
    if kind == "preempt/none" or mode == "OFF":
        return Line(title, "ok", f"jobs are not preempted ({kind}, PreemptMode={mode})")
    tiers = {other: int(p.get("PriorityTier", "1")) for other, p in partitions.items()}
    if kind == "preempt/partition_prio" and tiers[name] == max(tiers.values()):
        return Line(title, "ok", "no partition is above it, so its jobs are not preempted")
    grace, kill_wait = seconds(fields.get("GraceTime", "0")), seconds(config.get("KillWait", "30"))
    qos = "; its QOS may say otherwise (sacctmgr show qos format=name,preemptmode,gracetime)" * (kind == "preempt/qos")
    signal = "USR2" if "send_user_signal" in config.get("PreemptParameters", "") else "SIGTERM"
    warning = f"{signal}, {grace} s to save" if grace else f"no grace: SIGTERM, {kill_wait} s (KillWait) to save"
    what = f"PreemptMode={mode}: {warning}, then SIGKILL{qos}"
    seen: dict[str, float | str] = {"window_s": float(grace or kill_wait)}
    return _verdict(title, mode, what, seen, has_grace=grace > 0)


def _verdict(title: str, mode: str, what: str, seen: Mapping[str, float | str], *, has_grace: bool) -> Line:
    if mode == "SUSPEND":
        what = "PreemptMode=SUSPEND: a job in the way is stopped where it is and keeps its memory"
        remedy = "collectives may time out over the stop: choose a partition that requeues, or `mmsada resume` it"
        return Line(title, "warn", what, remedy)
    if mode == "CANCEL" and has_grace:
        remedy = f"a run asks for its requeue within the grace; {_MORE_CHECKPOINTS} where it cannot"
        return Line(title, "warn", what, remedy, seen)
    if mode == "CANCEL":
        remedy = f"it ends for good: go on by `launch/submit.py resume RUN`, and {_MORE_CHECKPOINTS}"
        return Line(title, "warn", what, remedy, seen)
    if not has_grace:
        return Line(title, "warn", what, f"ask the administrators for a GraceTime; {_MORE_CHECKPOINTS}", seen)
    return Line(title, "ok", what, seen=seen)


def _mode(config: Mapping[str, str], fields: Mapping[str, str]) -> str:
    """The partition's mode, else the cluster's; GANG is time slicing and preempts nobody by itself."""
    words = (fields.get("PreemptMode") or config.get("PreemptMode", "OFF")).upper().split(",")
    return next((word for word in words if word not in ("GANG", "WITHIN")), "OFF")


def seconds(text: str) -> int:
    """`20`, `30 sec`, `00:02:00` -> seconds; 0 for anything else."""
    match = re.match(r"(?:(?:(\d+)-)?(\d+):(\d+):)?(\d+)", text.strip())
    if match is None:
        return 0
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def room_to_save(lines: Sequence[Line], checkpoint_mb: float) -> list[Line]:
    """Whether a checkpoint can be written between the first signal and the kill, at the speed measured here."""
    speed = next((float(line.seen["MB_per_s"]) for line in lines if "MB_per_s" in line.seen), 0.0)
    windows = [float(line.seen["window_s"]) for line in lines if "window_s" in line.seen]
    if not windows or speed <= 0:
        return []
    window, needed = min(windows), checkpoint_mb / speed
    what = f"a checkpoint of {checkpoint_mb:.0f} MB takes {{save_s:.1f}} s here; preemption leaves {window:.0f} s"
    seen: dict[str, float | str] = {"save_s": needed}
    if needed > window:
        remedy = f"a preempted run cannot save in time: a faster folder, a longer GraceTime; {_MORE_CHECKPOINTS}"
        return [Line("time to save", "fail", what, remedy, seen)]
    if needed > window / 2:
        remedy = f"with the step in hand that is close: {_MORE_CHECKPOINTS}"
        return [Line("time to save", "warn", what, remedy, seen)]
    return [Line("time to save", "ok", what, seen=seen)]
