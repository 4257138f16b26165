"""The lines of several nodes as one, and how that looks."""

import io

from mmsada_hpc.doctor.merge import merge
from mmsada_hpc.doctor.report import Line
from mmsada_hpc.doctor.show import Findings, show


def cores(number: int) -> Line:
    return Line("cores", "ok", f"{number} cores for this process")


def printed(hosts: dict[str, list[Line]], between: list[Line] | None = None) -> str:
    screen = io.StringIO()
    show(Findings(hosts, between or []), screen)
    return screen.getvalue()


def test_what_all_nodes_say_is_said_once() -> None:
    (one,) = merge({f"mn{i}": [cores(8)] for i in range(4)})
    assert (one.level, one.text, one.odd) == ("ok", "8 cores for this process (all 4 nodes)", ())


def test_the_odd_node_is_named_with_what_the_others_have() -> None:
    hosts = {f"mn{i}": [cores(2 if i == 2 else 8)] for i in range(1, 9)}
    assert printed(hosts) == (
        "warn  cores  8 cores for this process (7 of 8 nodes)\n"
        "             mn2: 2 cores for this process; the others: 8 cores for this process\n"
        "             -> one node unlike the others slows or breaks a run: repair it, or leave it out"
        " (sbatch --exclude)\n"
        "\n8 nodes: no failures, 1 warning, 0 ok\n"
    )


def test_of_a_list_only_what_differs_is_repeated() -> None:
    def line(torch: str) -> Line:
        return Line("versions", "ok", f"python 3.11.7, torch {torch}, CPU build")

    (one,) = merge({"a": [line("2.13.0")], "b": [line("2.9.1")], "c": [line("2.13.0")]})
    assert one.odd == ("b: torch 2.9.1; the others: torch 2.13.0",)


def test_a_node_that_fails_decides_the_level_and_its_remedy_is_told() -> None:
    bad = Line("mpi", "fail", "no answer within 60 s, so it was ended", "give it longer")
    (one,) = merge({"a": [bad], "b": [Line("mpi", "ok", "adds up")]})
    assert (one.level, one.text) == ("fail", "adds up (1 of 2 nodes)")
    assert one.odd == ("a: no answer within 60 s, so it was ended; b: adds up",)
    assert one.remedies == ("give it longer",)


def test_measured_figures_are_a_range_and_no_difference() -> None:
    def line(ms: float) -> Line:
        return Line("conv3d", "ok", "fp32 {fp32_ms:.0f} ms on {place}", seen={"fp32_ms": ms, "place": f"p{ms:.0f}"})

    (one,) = merge({"a": [line(20)], "b": [line(31)]})
    assert (one.level, one.text, one.odd) == ("ok", "fp32 20-31 ms on p20, p31 (both nodes)", ())
    (one,) = merge({"a": [line(20)], "b": [line(301)]})
    assert (one.level, one.odd) == ("warn", ("fp32 ms: 20 on a, 301 on b",))


def test_a_node_without_the_line_is_named() -> None:
    (one,) = merge({"a": [cores(8)], "b": [cores(8)], "c": []})
    assert (one.level, one.odd) == ("warn", ("c: nothing said",))


def test_a_failure_is_the_exit_code_and_a_warning_is_not() -> None:
    assert Findings({"a": [Line("x", "warn", "w")]}).exit_code == 0
    assert Findings({"a": [Line("x", "ok", "w")]}, [Line("y", "fail", "f")]).exit_code == 1


def test_a_line_comes_back_from_json_as_it_was() -> None:
    line = Line("folder", "warn", "{MB_per_s:.0f} MB/s {not_seen}", "a remedy", {"MB_per_s": 12.3})
    assert line.text == "12 MB/s {not_seen}"
    assert Line.from_json(line.to_json()) == line


def test_one_host_is_shown_without_counting_and_without_colours_in_a_file() -> None:
    text = printed({"here": [cores(2), Line("slurm", "warn", "no answer", "run it on a login node")]})
    assert text == (
        "ok    cores  2 cores for this process\n"
        "warn  slurm  no answer\n"
        "             -> run it on a login node\n"
        "\nhere: no failures, 1 warning, 1 ok\n"
    )
