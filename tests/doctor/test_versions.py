"""Which versions are known to be bad together."""

import pytest

from mmsada_hpc.doctor.report import Ask
from mmsada_hpc.doctor.versions import bad_pair, check, cudnn_version, parse, problems


@pytest.mark.parametrize(
    ("torch", "cudnn", "level"),
    [
        ("2.13.0+cpu", None, "ok"),
        ("2.13.0+cu130", 91501, "ok"),
        ("2.10.0", 91500, "ok"),
        ("2.10.0", 91002, "warn"),
        ("2.9.1+cu128", 91500, "ok"),
        ("2.9.1+cu128", 91400, "fail"),
        ("2.9.1", 91002, "fail"),
        ("2.9.0", 91500, "fail"),
        ("2.9.0", 90701, "ok"),
        ("2.8.0", 90800, "fail"),
        ("2.8.0", 91002, "fail"),
        ("2.8.0", 91500, "warn"),
        ("2.8.0", 91600, "ok"),
        ("2.6.0+cu124", 90100, "ok"),
        ("2.6.0", 8902, "ok"),
    ],
)
def test_torch_and_cudnn_are_judged_as_a_pair(torch: str, cudnn: int | None, level: str) -> None:
    pair = bad_pair(torch, cudnn)
    assert (pair.level if pair else "ok") == level


def test_version_numbers_are_read_as_numbers() -> None:
    assert parse("2.13.0+cpu") == (2, 13, 0)
    assert parse("2.10.0a0+git1") > parse("2.9.1")
    assert cudnn_version(91002) == (9, 10, 2)
    assert cudnn_version(8902) == (8, 9, 2)


def test_a_package_that_is_missing_or_old_is_named() -> None:
    assert problems("deepspeed>=0.16", None) == "deepspeed is missing"
    assert problems("deepspeed>=0.16", "0.9.5") == "deepspeed 0.9.5 is older than 0.16"
    assert problems("deepspeed>=0.16", "0.19.8") is None


def test_this_environment_meets_its_own_requirements() -> None:
    lines = check(Ask())
    assert [line.name for line in lines] == ["versions", "packages"]
    assert [line.level for line in lines] == ["ok", "ok"]
    assert "deepspeed 0." in lines[1].text
