"""`submit.py bench`: what would be queued, and what is refused before it."""

from pathlib import Path

import pytest

from mmsada_hpc.submit.command import main


def test_a_dry_run_shows_the_command_and_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--nodes", "3", "--time", "20", "--out", str(tmp_path), "--dry-run", "comm", "--sizes", "32K"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"mmsada bench comm --sizes 32K --json {tmp_path}/rows.jsonl" in shown
    assert "#SBATCH --nodes=3" in shown and "#SBATCH --no-requeue" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--json=mine.jsonl"], ["--json", "mine.jsonl"]])
def test_a_file_that_was_named_for_the_rows_is_kept(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--dry-run", "comm", *words]) == 0
    assert capsys.readouterr().out.splitlines()[0] == " ".join(["mmsada bench comm", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["comn"], "comn: not a benchmark; one of loader, step"),
        ([], "no name: not a benchmark"),
        (["compare", "a", "b"], "compare: not a benchmark"),
        (["--cluster", "local", "comm", "--quick"], "here it is `mpiexec -n N mmsada bench comm --quick`"),
        (["comm", "--json", "-"], "a job has no standard output"),
    ],
)
def test_what_cannot_run_is_told_before_the_queue(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_option_of_the_benchmark_is_told_before_the_queue(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "comm", "--quik"])
    assert "--quik" in capsys.readouterr().err
