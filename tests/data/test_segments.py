"""Tables of segments are read in full or refused with file and line."""

from collections import Counter
from pathlib import Path

import pytest

from mmsada_hpc.cli import main
from mmsada_hpc.data.epic_tables import parse_tables, read_epic_segments, read_epic_tables
from mmsada_hpc.data.segments import SegmentRow, read_labels
from mmsada_hpc.data.store import Store
from mmsada_hpc.errors import UserError
from tests.data.test_epic import SEGMENTS, folders
from tests.data.test_pickles import frame

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


# Spec 4.1: take, put, open, close, wash, cut, mix, pour.
PUBLISHED = {
    ("D1", "train"): (421, 383, 231, 128, 223, 71, 42, 44),
    ("D1", "test"): (124, 104, 52, 34, 66, 13, 20, 22),
    ("D2", "train"): (715, 692, 245, 214, 298, 89, 113, 129),
    ("D2", "test"): (208, 217, 68, 56, 136, 14, 26, 25),
    ("D3", "train"): (919, 1121, 450, 367, 808, 110, 53, 69),
    ("D3", "test"): (241, 280, 102, 71, 245, 29, 1, 5),
}
ACTION_HEADER = (
    "uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame,verb,verb_class,noun,"
    "noun_class,all_nouns,all_noun_classes"
)


def counts(rows: list[SegmentRow]) -> dict[tuple[str, str], tuple[int, ...]]:
    """Segments per class, by (domain, split)."""
    found = Counter((row.domain, row.split, row.label) for row in rows)
    return {key: tuple(found[*key, label] for label in range(8)) for key in {(r.domain, r.split) for r in rows}}


@pytest.mark.parametrize("suffix", ["pkl", "csv"])
def test_the_published_tables_give_the_published_counts(shared_data: Path, suffix: str) -> None:
    specs = [f"{d}/{s}={shared_data}/epic_splits/{d}_{s}.{suffix}" for d, s in PUBLISHED]
    rows = read_epic_segments(parse_tables(specs))
    assert counts(rows) == PUBLISHED
    assert sum(r.split == "train" for r in rows) == 7935
    assert sum(r.split == "test" for r in rows) == 2159
    assert len({r.video for r in rows if r.split == "train"}) == 49
    assert len({r.video for r in rows if r.split == "test"}) == 15


def test_pickle_and_csv_give_the_same_rows(shared_data: Path) -> None:
    for domain, split in PUBLISHED:
        tables = [[(domain, split, shared_data / f"epic_splits/{domain}_{split}.{x}")] for x in ("pkl", "csv")]
        assert read_epic_segments(tables[0]) == read_epic_segments(tables[1])


def test_a_pickle_is_known_by_its_contents(shared_data: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "D1_test.csv"
    disguised.write_bytes((shared_data / "epic_splits/D1_test.pkl").read_bytes())
    assert len(read_epic_segments([("D1", "test", disguised)])) == 435


def test_epics_own_table_gives_the_published_training_counts_by_rule(shared_data: Path, tmp_path: Path) -> None:
    lines = [ACTION_HEADER]
    for domain in ("D3", "D1", "D2"):
        text = (shared_data / f"epic_splits/{domain}_train.csv").read_text()
        lines += [f"{line},cup,9,\"['cup', 'tap']\",\"[9, 7]\"" for line in text.splitlines()[1:]]
    lines += [action(90_000 + i, "P30", "P30_01", verb_class=i % 8) for i in range(50)]
    lines += [action(95_000 + i, "P08", "P08_01", verb_class=8 + i) for i in range(20)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    rows = read_epic_segments(parse_tables([f"{d}/train={tmp_path}/labels.csv" for d in ("D1", "D2", "D3")]))
    assert counts(rows) == {key: value for key, value in PUBLISHED.items() if key[1] == "train"}
    alone = read_epic_segments([(d, "train", shared_data / f"epic_splits/{d}_train.pkl") for d in ("D1", "D2", "D3")])
    assert rows == alone


def action(uid: int, participant: str, video: str, *, verb_class: int) -> str:
    """A row of EPIC's own table."""
    return f"{uid},{participant},{video},x y,00:00:01.00,00:00:02.00,60,120,x,{verb_class},y,3,['y'],[3]"


@pytest.fixture
def actions(tmp_path: Path) -> Path:
    """EPIC's own table in small: four rows of P08, one of them of another verb, and one each of P01 and P30."""
    rows = [action(i, "P08", "P08_01", verb_class=c) for i, c in enumerate((0, 3, 8, 7))]
    rows += [action(10, "P01", "P01_05", verb_class=2), action(11, "P30", "P30_01", verb_class=0)]
    path = tmp_path / "actions.csv"
    path.write_text("\n".join([ACTION_HEADER, *rows]) + "\n")
    return path


@pytest.mark.parametrize("domain", ["D1", "P08"])
def test_a_domain_takes_its_participants_rows_and_says_so(actions: Path, domain: str) -> None:
    (table,) = read_epic_tables([(domain, "train", actions)])
    assert [(row.uid, row.domain, row.label) for row in table.rows] == [
        ("0", domain, 0),
        ("1", domain, 3),
        ("3", domain, 7),
    ]
    assert table.note == (
        f"{domain}/train: 3 of 6 rows of actions.csv chosen: participant P08, verb_class 0 to 7 "
        "(left out: 1 other verbs of P08, 2 rows of other participants)"
    )


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("east", r"'east' does not say which; write D1 .= P08., D2 .= P01., D3 .= P22., or a part.* P01, P08, P30"),
        ("D4", "'D4' does not say which"),
        ("D3", "no rows of P22; the table has P01, P08, P30"),
    ],
)
def test_a_domain_that_chooses_nothing_is_told_what_would(actions: Path, domain: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"--segments {domain}/train=.*actions\.csv: .*{message}"):
        read_epic_segments([(domain, "train", actions)])


def test_another_kitchens_table_is_not_taken_for_the_domains(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{EPIC_HEADER}1,P01,P01_01,8,80,open,2\n")
    with pytest.raises(UserError, match=r"--segments D1/train=.*t\.csv: D1 is P08, its rows are of P01"):
        read_epic_segments([("D1", "train", tmp_path / "t.csv")])
    assert read_epic_segments([("my kitchen", "train", tmp_path / "t.csv")])[0].domain == "my kitchen"


def test_a_table_of_the_same_columns_is_taken_whole_and_without_a_note(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{EPIC_HEADER}1,P01,P01_01,8,80,open,2\n")
    assert read_epic_tables([("D2", "train", tmp_path / "t.csv")])[0].note == ""


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pkl: cannot be read"):
        read_epic_segments([("D1", "train", tmp_path / "absent.pkl")])


@pytest.mark.parametrize("form", ["pickle", "csv", "EPIC's own table"])
def test_a_store_is_prepared_from_each_kind_of_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    folders(tmp_path / "epic")
    table = tmp_path / "table"
    if form == "pickle":
        texts = {"participant_id": ["P01", "P01"], "video_id": ["P01_01", "P01_01"]}
        numbers = {"uid": [7, 8], "start_frame": [10, 40], "stop_frame": [60, 80], "verb_class": [5, 4]}
        table.write_bytes(frame(texts=texts, numbers=numbers))
    elif form == "csv":
        table.write_text(SEGMENTS)
    else:
        own = [
            "7,P01,P01_01,cut it,0,1,10,60,cut,5,it,3,['it'],[3]",
            "8,P01,P01_01,wash it,0,1,40,80,wash,4,it,3,['it'],[3]",
        ]
        others = [action(9, "P30", "P30_01", verb_class=0), action(10, "P01", "P01_77", verb_class=30)]
        table.write_text("\n".join([ACTION_HEADER, *own, *others]) + "\n")
    command = ["prepare", "--epic-frames", f"{tmp_path}/epic", "--segments", f"D2/train={table}", "--workers", "1"]
    command += ["--out", f"{tmp_path}/store"]
    assert main([*command, "--dry-run"]) == 0
    assert "would pack 1 videos, about 80 frames" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()
    assert main(command) == 0
    told = capsys.readouterr().err
    assert ("2 of 4 rows of table chosen: participant P01" in told) == (form == "EPIC's own table")
    segments = Store.open(tmp_path / "store").segments
    assert (segments.uid.tolist(), segments.start.tolist(), segments.stop.tolist(), segments.label.tolist()) == (
        ["7", "8"],
        [10, 40],
        [60, 80],
        [5, 4],
    )
