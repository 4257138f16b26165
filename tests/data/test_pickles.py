"""A pickled table is read without pandas, and nothing that a pickle names is ever run."""

import pickle
import struct
from pathlib import Path

import pytest

from mmsada_hpc.data.epic_tables import read_epic_segments
from mmsada_hpc.data.restricted_pickle import read_frame
from mmsada_hpc.errors import UserError

# Pieces of a pickle of protocol 4, as bytes.
FALSE, NONE = b"\x89", b"N"


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def raw(value: bytes) -> bytes:
    return b"C" + bytes([len(value)]) + value


def a_tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def a_list(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def a_dict(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key.replace("__", ".")) + value for key, value in entries.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def array(shape: tuple[int, ...], code: str, payload: bytes) -> bytes:
    made = name("numpy.core.multiarray", "_reconstruct") + a_tuple(
        name("numpy", "ndarray"), a_tuple(number(0)), raw(b"b")
    )
    dtype = name("numpy", "dtype") + a_tuple(text(code), number(0), number(1)) + b"R"
    dtype += a_tuple(number(3), text("<"), NONE, NONE, NONE, number(-1), number(-1), number(0)) + b"b"
    return made + b"R" + a_tuple(number(1), a_tuple(*map(number, shape)), dtype, FALSE, payload) + b"b"


def index(names: list[str]) -> bytes:
    data = array((len(names),), "O8", a_list(*map(text, names)))
    made = a_tuple(name("pandas.core.indexes.base", "Index"), a_dict(data=data, name=NONE))
    return name("pandas.core.indexes.base", "_new_Index") + made + b"R"


def block(values: bytes, places: list[int]) -> bytes:
    return a_dict(values=values, mgr_locs=array((len(places),), "i8", raw(struct.pack(f"<{len(places)}q", *places))))


def frame(*, texts: dict[str, list[str]], numbers: dict[str, list[int]], numbers_code: str = "i8") -> bytes:
    """A table as pandas 0.24 pickles it: text columns in one block, whole numbers in another."""
    names, rows = [*numbers, *texts], len(next(iter(texts.values())))
    whole = b"".join(struct.pack(f"<{rows}q", *values) for values in numbers.values())
    objects = a_list(*(text(value) for values in texts.values() for value in values))
    blocks = a_list(
        block(array((len(numbers), rows), numbers_code, raw(whole)), [names.index(n) for n in numbers]),
        block(array((len(texts), rows), "O8", objects), [names.index(n) for n in texts]),
    )
    manager = a_tuple(
        a_list(), a_list(), a_list(), a_dict(**{"0__14__1": a_dict(axes=a_list(index(names)), blocks=blocks)})
    )
    inner = name("pandas.core.internals.managers", "BlockManager") + b")\x81" + manager + b"b"
    outer = name("pandas.core.frame", "DataFrame") + b")\x81" + a_dict(_data=inner, _typ=text("dataframe")) + b"b"
    return b"\x80\x04" + outer + b"."


TEXTS = {"participant_id": ["P08", "P08"], "video_id": ["P08_01", "P08_02"]}
NUMBERS = {"uid": [7, 9], "start_frame": [10, 50], "stop_frame": [60, 130], "verb_class": [5, 0]}
TABLE = frame(texts=TEXTS, numbers=NUMBERS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "D1_train.pkl"


def test_a_table_is_read_column_by_column(path: Path) -> None:
    path.write_bytes(TABLE)
    assert read_frame(path) == {**NUMBERS, **TEXTS}
    rows = read_epic_segments([("D1", "train", path)])
    assert [(r.uid, r.video, r.start, r.stop, r.label) for r in rows] == [
        ("7", "P08_01", 10, 60, 5),
        ("9", "P08_02", 50, 130, 0),
    ]


def test_every_column_of_the_published_pickles_is_read(shared_data: Path) -> None:
    for file in sorted((shared_data / "epic_splits").glob("*.pkl")):
        found = read_frame(file)
        header, *lines = (file.with_suffix(".csv")).read_text().splitlines()
        assert ",".join(found) == header
        assert [",".join(map(str, row)) for row in zip(*found.values(), strict=True)] == [
            line.replace('"', "") for line in lines
        ]


def test_a_bad_row_of_a_pickle_is_named(path: Path) -> None:
    path.write_bytes(frame(texts=TEXTS, numbers={**NUMBERS, "stop_frame": [60, 20]}))
    with pytest.raises(UserError, match=r"D1_train\.pkl, row 1 .from 0.: frames 50 to 20"):
        read_epic_segments([("D1", "train", path)])


def test_a_pickle_without_a_needed_column_is_named(path: Path) -> None:
    path.write_bytes(frame(texts=TEXTS, numbers={"uid": [7, 9], "start": [1, 2]}))
    with pytest.raises(UserError, match=r"D1_train\.pkl: no column 'start_frame' .did you mean 'start'"):
        read_epic_segments([("D1", "train", path)])


def call(function: bytes, *arguments: bytes) -> bytes:
    return b"\x80\x04" + function + a_tuple(*arguments) + b"R."


def test_a_pickle_that_would_run_a_program_is_refused(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    path.write_bytes(call(name("os", "system"), text(f"touch '{marker}'")))
    with pytest.raises(UserError, match=r"D1_train\.pkl: refused: it names os\.system") as caught:
        read_epic_segments([("D1", "train", path)])
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # what plain pickle does with the same file


def test_a_program_inside_a_proper_table_is_refused_too(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    program = name("os", "system") + a_tuple(text(f"touch '{marker}'")) + b"R"
    path.write_bytes(TABLE.replace(text("dataframe"), program))
    with pytest.raises(UserError, match=r"refused: it names os\.system"):
        read_frame(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("posix", "system"),
        ("numpy", "core.multiarray.sys.modules"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy", "ndarray.__class__.__subclasses__"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("pandas.core.frame", "DataFrame.__init__.__globals__"),
        ("pandas.io.pickle", "read_pickle"),
        ("pandas", "eval"),
    ],
)
def test_any_other_name_is_refused(path: Path, module: str, attribute: str) -> None:
    path.write_bytes(call(name(module, attribute), text("1")))
    with pytest.raises(UserError, match=rf"refused: it names {module}\.{attribute}, .*nothing was run"):
        read_frame(path)


OTHER_WAYS = {
    "protocol 0": b"cos\nsystem\n(S'touch it_ran'\ntR.",
    "INST": b"\x80\x04(S'touch it_ran'\nios\nsystem\n.",
    "OBJ": b"\x80\x04(" + name("os", "system") + text("touch it_ran") + b"o.",
    "NEWOBJ_EX": b"\x80\x04" + name("subprocess", "Popen") + a_tuple(text("touch it_ran")) + b"}\x92.",
    "an extension code": b"\x80\x04\x82\x01.",
    "a persistent id": b"\x80\x04Pos.system\n.",
    "an attribute of a stand-in": b"\x80\x04" + name("numpy", "ndarray") + b"N}" + text("state") + NONE + b"s\x86b.",
    "a call of text": b"\x80\x04" + text("os.system") + a_tuple(text("touch it_ran")) + b"R.",
}


@pytest.mark.parametrize("way", list(OTHER_WAYS))
def test_no_other_opcode_gets_around_it(path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_bytes(OTHER_WAYS[way])
    with pytest.raises(UserError, match=r"D1_train\.pkl"):
        read_frame(path)
    with pytest.raises(UserError, match=r"D1_train\.pkl"):
        read_epic_segments([("D1", "train", path)])
    assert [entry.name for entry in path.parent.iterdir()] == ["D1_train.pkl"]


def test_a_pickle_that_is_cut_off_is_one_line(path: Path) -> None:
    for length in range(1, len(TABLE), 3):
        path.write_bytes(TABLE[:length])
        with pytest.raises(UserError, match=r"D1_train\.pkl: a damaged or cut off pickle") as caught:
            read_frame(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_byte_gives_a_table_or_one_line(path: Path) -> None:
    messages = []
    for place in range(2, len(TABLE), 3):
        path.write_bytes(TABLE[:place] + bytes([TABLE[place] ^ 0x41]) + TABLE[place + 1 :])
        try:
            read_frame(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > len(TABLE) // 6
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x04" + a_list(number(1)) + b".",
        b"\x80\x04N.",
        frame(texts=TEXTS, numbers=NUMBERS, numbers_code="f8"),
        frame(texts={**TEXTS, "verb": ["take"]}, numbers=NUMBERS),
        frame(texts=TEXTS, numbers=NUMBERS).replace(text("0.14.1"), text("9.99.9")),
    ],
)
def test_a_pickle_of_something_else_is_named(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)
    with pytest.raises(UserError, match=r"D1_train\.pkl: a pickle, but not a table as MM-SADA's .*use the csv"):
        read_frame(path)
