"""Tables of segments are read in full or refused with file and line."""

from pathlib import Path

import pytest

from mmsada_hpc.data.segments import parse_tables, read_epic_segments, read_labels
from mmsada_hpc.errors import UserError

HEADER = "file,domain,split,class\n"
EPIC_HEADER = "uid,participant_id,video_id,start_frame,stop_frame,verb,verb_class\n"


def labels(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_classes_are_in_alphabetical_order_unless_given(tmp_path: Path) -> None:
    path = labels(tmp_path, HEADER + "a.mp4,x,train,wash\nb.mp4,x,train,cut\n")
    assert read_labels(path)[1] == ("cut", "wash")
    assert read_labels(path, classes=("wash", "cut", "mix"))[1] == ("wash", "cut", "mix")


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    rows, _ = read_labels(labels(tmp_path, "\ufeffclass, fps,split,domain,file\ncut,30,train,x,deep/a.b.mp4\n"))
    assert (rows[0].file, rows[0].video, rows[0].domain, rows[0].split) == ("deep/a.b.mp4", "deep/a.b", "x", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "a.mp4,x,train,cut\n\nb.mp4,x,train,cut\n", "line 3: empty row"),
        (HEADER + "a.mp4,x,train,cut\n , ,,\n", "line 3: empty row"),
        (HEADER + "a.mp4,,train,cut\n", "line 2: domain is empty"),
        (HEADER + "a.mp4,x,  ,cut\n", "line 2: split is empty"),
        (HEADER + "a.mp4,x\n", "line 2: split, class is empty"),
        ("file,domain,spilt,class\na.mp4,x,train,cut\n", "no column 'split' .did you mean 'spilt'"),
        (HEADER, "no rows"),
        ("", "no column 'file'"),
        (HEADER + "a.mp4,x,train,cut\na.mp4,y,test,cut\n", "line 3: a.mp4 is named again .first in line 2"),
        (HEADER + "a.mp4,x,train,cut\na.avi,y,test,cut\n", "differ only in their suffix"),
        (HEADER + "../a.mp4,x,train,cut\n", "inside the folder"),
        (HEADER + "a.mp4,x,train,washh\n", "line 2: unknown class 'washh' .did you mean 'wash'.*cut, wash"),
    ],
)
def test_a_bad_label_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"labels\.csv.*{message}"):
        read_labels(labels(tmp_path, text), classes=("cut", "wash"))


def test_a_file_that_is_not_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00garbage\x80")
    with pytest.raises(UserError, match=r"labels\.csv: not a csv file in UTF-8"):
        read_labels(tmp_path / "labels.csv")
    with pytest.raises(UserError, match=r"absent\.csv: cannot be read"):
        read_labels(tmp_path / "absent.csv")


@pytest.mark.parametrize("spec", ["D1=a.csv", "a.csv", "/train=a.csv", "D1/train="])
def test_a_segments_option_must_name_domain_split_and_file(spec: str) -> None:
    with pytest.raises(UserError, match=r"--segments .*DOMAIN/SPLIT=FILE"):
        parse_tables([spec])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,P01,P01_01,8,x2,open,2", "line 2: stop_frame must be a whole number, found 'x2'"),
        ("1,P01,P01_01,80,8,open,2", "line 2: frames 80 to 8"),
        ("1,P01,P01_01,0,8,open,2", "line 2: frames 0 to 8"),
        ("1,P01,P01_01,8,80,peel,9", "line 2: unknown class: verb_class 9"),
        ("1,P01,../P01,8,80,open,2", "not the name of a video"),
        ("1,P01,P01_01,8,80,open,2\n1,P01,P01_02,8,80,open,2", "line 3: uid 1 occurs again"),
        ("1,P01,P01_01,8,80,open,", "line 2: verb_class is empty"),
    ],
)
def test_a_bad_epic_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(f"{EPIC_HEADER}{row}\n")
    with pytest.raises(UserError, match=rf"t\.csv, {message}" if message.startswith("line") else message):
        read_epic_segments([("D2", "train", tmp_path / "t.csv")])


def test_the_published_tables_are_read_in_full(shared_data: Path) -> None:
    specs = [f"{d}/{s}={shared_data}/epic_splits/{d}_{s}.csv" for d in ("D1", "D2", "D3") for s in ("train", "test")]
    rows = read_epic_segments(parse_tables(specs))
    counts = {
        (d, s): sum(r.domain == d and r.split == s for r in rows) for d in ("D1", "D2", "D3") for s in ("train", "test")
    }
    assert counts == {
        ("D1", "train"): 1543, ("D1", "test"): 435, ("D2", "train"): 2495,
        ("D2", "test"): 750, ("D3", "train"): 3897, ("D3", "test"): 974,
    }  # fmt: skip
    assert sum(r.label == 0 for r in rows if r.split == "train") == 2055
