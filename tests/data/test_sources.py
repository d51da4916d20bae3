"""A log is recognised by looking, and nothing is executed on the way."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.data.sources import Hints, Source, recognise
from noise2next.errors import UserError

N = 200
ROWS = [(f"{1000 + k % 37}", f"{5000 + k % 61}", f"{k % 5 + 1}", f"{1_200_000_000 + 977 * k}") for k in range(N)]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def delimited(rows: list[tuple[str, ...]], separator: str, header: tuple[str, ...] = (), end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in ([header] if header else []) + rows)


def roles(source: Source) -> tuple[str, str, str | None, str | None]:
    columns = source.columns
    return columns.user, columns.item, columns.rating, columns.time


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::", " ", "\x01", "^"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_any_separator_is_told_with_and_without_header(tmp_path: Path, separator: str, end: str) -> None:
    bare = recognise(written(tmp_path / "a", delimited(ROWS, separator, end=end)))
    named = recognise(
        written(tmp_path / "b", delimited(ROWS, separator, ("userId", "movieId", "rating", "timestamp"), end))
    )
    assert (bare.separator, bare.header, roles(bare)) == (separator, False, ("1", "2", "3", "4"))
    assert (named.separator, named.header) == (separator, True)
    assert roles(named) == ("userId", "movieId", "rating", "timestamp")
    assert bare.time_unit == named.time_unit == "s"
    assert bare.first_time == "2008-01-10 21:20:00 UTC"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2), (0, 1, 3, 2), (2, 0, 1, 3), (3, 2, 0, 1)])
def test_columns_without_names_are_told_by_their_contents(tmp_path: Path, order: tuple[int, ...]) -> None:
    source = recognise(written(tmp_path / "log", delimited([tuple(row[k] for k in order) for row in ROWS], "\t")))
    places = {role: str(order.index(k) + 1) for k, role in enumerate(("user", "item", "rating", "time"))}
    assert roles(source) == (places["user"], places["item"], places["rating"], places["time"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("reviewerID,asin,overall,unixReviewTime", "reviewerID,asin,overall,unixReviewTime"),
        ("timestamp,visitorid,itemid,stars", "visitorid,itemid,stars,timestamp"),
        ("uid,track,plays,created_at", "uid,track,plays,created_at"),
        ("Customer,Product,Score,Date", "Customer,Product,Score,Date"),
        ("user_id:token,item_id:token,rating:float,timestamp:float", "user_id,item_id,rating,timestamp"),
    ],
)
def test_columns_are_told_by_their_names(tmp_path: Path, names: str, expected: str) -> None:
    header = tuple(names.split(","))
    by_role = {"user": 0, "item": 1, "rating": 2, "time": 3}
    order = ["time", "user", "item", "rating"] if header[0] == "timestamp" else ["user", "item", "rating", "time"]
    rows = [tuple(row[by_role[role]] for role in order) for row in ROWS]
    assert (
        ",".join(str(one) for one in roles(recognise(written(tmp_path / "log", delimited(rows, ",", header)))))
        == expected
    )


@pytest.mark.parametrize(("user", "time"), [("b{}", "13/09/2020 12:26"), ("{}", "2020-09-13"), ("b{}", "1")])
def test_a_header_in_another_language_is_no_row(tmp_path: Path, user: str, time: str) -> None:
    rows = [(user.format(row[0]), f"a{row[1]}", "4,0", time) for row in ROWS]
    path = written(tmp_path / "log.csv", delimited(rows, ";", ("utilisateur", "produit", "note", "quand")))
    with pytest.raises(UserError, match="no column told as the user among utilisateur, produit, note, quand"):
        recognise(path)
    source = recognise(path, Hints(user="utilisateur", item="produit"))
    assert (source.header, source.rows_peeked) == (True, N)


def test_a_first_row_without_digits_is_no_header_where_columns_are_said_by_place(tmp_path: Path) -> None:
    rows = [("ann", "milk", "soon"), *((f"ann{k}", "milk", f"2020-01-{k % 28 + 1:02}") for k in range(N))]
    path = written(tmp_path / "log.csv", delimited(rows, ","))
    assert recognise(path, Hints(user="1", item="2")).header is False


def test_a_first_row_that_lacks_a_value_is_no_header(tmp_path: Path) -> None:
    rows = [("ann", "milk", ""), *((("ann", "bob")[k % 2], "milk", f"2020-01-{k % 28 + 1:02}") for k in range(N))]
    source = recognise(written(tmp_path / "log.csv", delimited(rows, ",")))
    assert (source.header, source.columns.time, source.time_unit) == (False, "3", "iso")


def test_names_of_people_are_no_header(tmp_path: Path) -> None:
    people = ("ada", "bob", "cleo")
    rows = [(people[k % 3], f"thing {people[k % 2]}") for k in range(N)]
    assert recognise(written(tmp_path / "log.csv", delimited(rows, ","))).header is False


def test_a_rating_that_is_no_number_is_no_silent_loss(tmp_path: Path) -> None:
    rows = [(row[0], row[1], f'"{row[2]},0"') for row in ROWS]
    path = written(tmp_path / "log.csv", delimited(rows, ",", ("user", "item", "rating")))
    source = recognise(path)
    assert (source.columns.rating, source.unread_rating) == (None, ("rating", "1,0"))
    with pytest.raises(UserError, match=r"'rating' holds '1,0', which is no number; write ratings with a decimal"):
        recognise(path, Hints(rating="rating"))


def test_seconds_among_milliseconds_are_no_clock(tmp_path: Path) -> None:
    rows = [(*row[:2], row[3] + "000" * (k % 3 == 0)) for k, row in enumerate(ROWS)]
    path = written(tmp_path / "log.csv", delimited(rows, ",", ("user", "item", "time")))
    assert (recognise(path).time_unit, recognise(path).unread_time) == (None, "time")
    bare = recognise(written(tmp_path / "bare.csv", delimited(rows, ",")))
    assert (bare.columns.rating, bare.columns.time, bare.unread_time) == (None, None, "3")


def test_zeros_among_seconds_stand_for_no_time(tmp_path: Path) -> None:
    rows = [(*row[:2], row[3] if k % 3 else "0") for k, row in enumerate(ROWS)]
    assert recognise(written(tmp_path / "log.csv", delimited(rows, ","))).time_unit == "s"


def test_a_rating_that_nobody_gave_is_passed_over(tmp_path: Path) -> None:
    rows = [(*row[:2], "", row[2]) for row in ROWS]
    path = written(tmp_path / "log.csv", delimited(rows, ",", ("user", "item", "rating", "score")))
    assert recognise(path).columns.rating == "score"
    some = [(*row[:2], row[2] if k % 5 else "NULL") for k, row in enumerate(ROWS)]
    path = written(tmp_path / "some.csv", delimited(some, ",", ("user", "item", "rating")))
    assert recognise(path, Hints(rating="rating")).columns.rating == "rating"


def test_an_object_is_no_id(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"user": {"id": user}, "sku": item}) + "\n" for user, item, *_ in ROWS)
    path = written(tmp_path / "log.json", lines)
    with pytest.raises(UserError, match=r"'user', told as the user, holds \{\"id\": \"1000\"\} and no single value"):
        recognise(path)
    plain = "".join(json.dumps({"user": user, "sku": item}) + "\n" for user, item, *_ in ROWS)
    assert recognise(written(path, plain + lines.splitlines()[0] + "\n")).columns.user == "user"


def test_what_a_person_says_stands_above_what_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", delimited(ROWS, ",", ("userId", "movieId", "rating", "timestamp")))
    source = recognise(path, Hints(user="movieId", item="userId", time="rating", time_unit="order"))
    assert (source.columns.user, source.columns.item, source.columns.time) == ("movieId", "userId", "rating")
    assert source.time_unit == "order"


@pytest.mark.parametrize(
    ("unit", "spelled"),
    [
        ("s", lambda t: f"{t}"),
        ("s", lambda t: f"{t}.0"),
        ("s", lambda t: f"{t:.9e}"),
        ("ms", lambda t: f"{t * 1000}"),
        ("us", lambda t: f"{t * 10**6}"),
        ("iso", lambda t: str(np.datetime64(t, "s"))),
        ("iso", lambda t: str(np.datetime64(t, "s").astype("datetime64[D]"))),
        ("iso", lambda t: f"{np.datetime64(t, 's')}+02:00".replace("T", " ")),
        ("order", lambda t: f"{t - 1_200_000_000}"),
    ],
)
def test_units_of_time_are_told_apart(tmp_path: Path, unit: str, spelled) -> None:  # type: ignore[no-untyped-def]
    rows = [(user, item, spelled(int(time))) for user, item, _, time in ROWS]
    assert recognise(written(tmp_path / "log", delimited(rows, ",", ("user", "item", "time")))).time_unit == unit


def test_a_log_without_time_has_none(tmp_path: Path) -> None:
    source = recognise(written(tmp_path / "log", delimited([row[:2] for row in ROWS], "\t", ("userID", "artistID"))))
    assert (source.time_unit, source.columns.time) == (None, None)


def test_a_time_that_is_not_understood_is_no_silent_loss(tmp_path: Path) -> None:
    rows = [(user, item, "28 Feb 14") for user, item, *_ in ROWS]
    path = written(tmp_path / "log", delimited(rows, ",", ("user", "item", "date")))
    source = recognise(path)
    assert (source.time_unit, source.unread_time) == (None, "date")
    with pytest.raises(UserError, match=r"'date' holds '28 Feb 14'.*--time-unit"):
        recognise(path, Hints(time="date"))


@pytest.mark.parametrize(("unit", "spelled"), [("s", "2020-01-05"), ("iso", "1578195662"), ("order", "2020-01-05")])
def test_a_said_unit_that_reads_no_time_is_refused(tmp_path: Path, unit: str, spelled: str) -> None:
    path = written(tmp_path / "log", delimited([(*row[:2], spelled) for row in ROWS], ",", ("user", "item", "date")))
    for time in (None, "date"):
        with pytest.raises(UserError, match=rf"'date' holds '{spelled}', which is no time in {unit}"):
            recognise(path, Hints(time=time, time_unit=unit))  # type: ignore[arg-type]


def test_eight_digits_are_dates_where_their_column_is_named_so(tmp_path: Path) -> None:
    rows = [(*row[:2], f"2020{k % 12 + 1:02d}{k % 28 + 1:02d}") for k, row in enumerate(ROWS)]
    source = recognise(written(tmp_path / "log", delimited(rows, ",", ("user", "item", "date"))))
    assert (source.columns.time, source.time_unit, source.first_time) == ("date", "iso", "2020-01-01")
    rows = [(*row[:2], f"{20_201_399 + k}") for k, row in enumerate(ROWS)]
    assert recognise(written(tmp_path / "log", delimited(rows, ",", ("user", "item", "ts")))).time_unit == "order"


def test_one_column_is_not_said_for_two_roles(tmp_path: Path) -> None:
    path = written(tmp_path / "log", delimited(ROWS, ",", ("user", "item", "rating", "time")))
    with pytest.raises(UserError, match="'item' is said for --user and --item"):
        recognise(path, Hints(user="item", item="item"))


@pytest.mark.parametrize(
    ("encoding", "bom", "expected"),
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8", b"\xef\xbb\xbf", "utf-8"),
        ("latin-1", b"", "latin-1"),
        ("utf-16-le", b"\xff\xfe", "utf-16"),
        ("utf-16-be", b"\xfe\xff", "utf-16"),
        ("utf-16-le", b"", "utf-16-le"),
    ],
)
def test_encodings_are_told(tmp_path: Path, encoding: str, bom: bytes, expected: str) -> None:
    rows = [(f"Jos\xe9{k % 9}", f"caf\xe9{k % 7}", time) for k, (*_, time) in enumerate(ROWS)]
    content = bom + delimited(rows, ",", ("user", "item", "time")).encode(encoding)
    source = recognise(written(tmp_path / "log.csv", content))
    assert (source.encoding, source.columns.user, source.time_unit) == (expected, "user", "s")


def test_json_lines_and_parquet_and_their_gzip_are_told(tmp_path: Path) -> None:
    table = pa.table(
        {name: [row[k] for row in ROWS] for k, name in enumerate(("reviewerID", "asin", "overall", "time"))}
    )
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    pq.write_table(table, tmp_path / "log.parquet")
    written(tmp_path / "log.json.gz", gzip.compress(lines))
    written(tmp_path / "log.parquet.gz", gzip.compress((tmp_path / "log.parquet").read_bytes()))
    for name, kind in {"log.parquet": "parquet", "log.json.gz": "json", "log.parquet.gz": "parquet"}.items():
        source = recognise(tmp_path / name)
        assert source.format == kind
        assert roles(source) == ("reviewerID", "asin", "overall", "time")


def test_the_log_of_a_publishers_zip_is_chosen_and_the_rest_is_named(tmp_path: Path) -> None:
    members = {
        "ml/README": "Some words about the data.\nThey go on.\n",
        "ml/u.user": "".join(f"{k}|{20 + k % 50}|M|writer|{10000 + k}\n" for k in range(1, 99)),
        "ml/u.item": "".join(f"{k}|Film {k}, The|01-Jan-1995|0|1\n" for k in range(1, 99)),
        "ml/u.data": delimited(ROWS, "\t"),
        "ml/u1.base": delimited(ROWS[:150], "\t"),
        "ml/u1.test": delimited(ROWS[150:], "\t"),
    }
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    source = recognise(tmp_path / "ml.zip")
    assert source.member == "ml/u.data"
    assert set(source.left_out) == set(members) - {"ml/u.data"}


def test_a_zip_with_two_likely_logs_asks_which(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("train.csv", delimited(ROWS, ","))
        archive.writestr("test.csv", delimited(ROWS, ","))
    with pytest.raises(UserError, match=r"train\.csv, test\.csv .* --member"):
        recognise(tmp_path / "two.zip")
    assert recognise(tmp_path / "two.zip", Hints(member="test.csv")).member == "test.csv"


def test_ragged_lines_of_ids_are_sequences(tmp_path: Path) -> None:
    lines = "".join(" ".join(str(j) for j in (k, *range(k % 9 + 3))) + "\n" for k in range(1, 99))
    source = recognise(written(tmp_path / "log.txt.gz", gzip.compress(lines.encode())))
    assert (source.format, source.time_unit) == ("sequences", "order")


def test_official_splits_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "ml_clean"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        np.save(folder / f"{part}_list.npy", np.arange(8).reshape(4, 2))
    assert recognise(folder).format == "diffrec"
    rows = {"user_id": [0, 0, 0, 1, 1, 1], "item_id": [1, 2, 3, 2, 1, 3], "position": [0, 1, 2, 0, 1, 2]}
    pq.write_table(pa.table({**rows, "split": ["train", "val", "test"] * 2}), tmp_path / "toys.parquet")
    source = recognise(tmp_path / "toys.parquet")
    assert (source.format, source.time_unit, source.columns.time, source.one_each) == (
        "diffurec",
        "order",
        "position",
        True,
    )


def test_the_first_time_that_can_be_read_is_shown(tmp_path: Path) -> None:
    text = "user,item,time\nu,i,soon\nu,i,\n" + delimited([(user, item, time) for user, item, _, time in ROWS], ",")
    assert recognise(written(tmp_path / "log", text)).first_time == "2008-01-10 21:20:00 UTC"


def test_a_member_is_for_archives_and_folders(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", delimited(ROWS, ","))
    with pytest.raises(UserError, match=r"is no zip.*--member"):
        recognise(path, Hints(member="log.csv"))
    assert recognise(tmp_path, Hints(member="log.csv")).path == path


def test_a_folder_of_one_make_is_one_log_and_of_many_makes_is_searched(tmp_path: Path) -> None:
    alike, mixed = tmp_path / "alike", tmp_path / "mixed"
    for folder in (alike, mixed):
        folder.mkdir()
        written(folder / "_SUCCESS", "")
        written(folder / "ratings.csv", delimited(ROWS, ",", ("userId", "movieId", "rating", "timestamp")))
    written(alike / "more.csv", delimited(ROWS, ",", ("userId", "movieId", "rating", "timestamp")))
    written(mixed / "movies.csv", "movieId,title\n1,Heat\n2,Ran\n")
    assert recognise(alike).path == alike
    assert recognise(mixed).path == mixed / "ratings.csv"


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT)


@pytest.mark.parametrize("shape", ["log.pkl", "log.csv", "log.csv.gz", "log.zip", "lists.zip"])
def test_a_pickle_is_refused_and_never_opened(tmp_path: Path, shape: str) -> None:
    mark = tmp_path / "mark"
    content = pickle.dumps([Trap(mark)] * 3)
    path = tmp_path / shape
    if shape == "log.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("log.pkl", content)
    elif shape == "lists.zip":
        stream = io.BytesIO()
        np.save(stream, np.array([Trap(mark)], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(path, "w") as archive:
            for part in ("train", "valid", "test"):
                archive.writestr(f"{part}_list.npy", stream.getvalue())
    else:
        written(path, gzip.compress(content) if shape.endswith(".gz") else content)
    with pytest.raises(UserError, match="pickl"):
        recognise(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("missing.csv", None, "no such file"),
        ("empty.csv", b"", "is empty"),
        ("empty.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("blank.csv", b"\n\r\n  \n", "only blank lines"),
        ("noise.bin", bytes(range(1, 32)) * 50, "neither text nor Parquet"),
        ("cut.csv.gz", gzip.compress(os.urandom(5000))[:2000], "ends too early"),
        ("broken.parquet", b"PAR1" + b"x" * 100, "not readable as Parquet"),
        ("list.json", b'[\n{"user": 1}\n]', "JSON array"),
        ("other.csv", "u,i,5\n\u65e5,\u672c,6\n".encode("shift-jis") * 9, "line 2 and 8 more.*UTF-8"),
        ("head.csv", b"user,item,time\n", "no line below"),
        ("uneven.csv", b"user,item,time\n" + b"1,u,i,5\n" * 20, "no line below"),
        ("mac.csv", b"user,item,time\r1,2,3\r4,5,6\r", "carriage returns alone"),
        ("log.csv.bz2", bz2.compress(b"user,item\n1,2\n"), "compressed with bzip2; give gzip or zip"),
        ("log.csv.xz", lzma.compress(b"user,item\n1,2\n"), "compressed with xz; give gzip or zip"),
        ("log.csv.zst", b"\x28\xb5\x2f\xfd" + bytes(50), "compressed with zstd; give gzip or zip"),
        ("twins.csv", b"user,item,item\n1,2,3\n4,5,6\n", "more than one column 'item' for the item"),
        ("prose.txt", b"words\nwithout\nany\norder\n", "no separator"),
        ("names.csv", b"first,second\na,b\nc,d\n", None),
        ("users.csv", b"user,age\nu1,33\nu2,44\n", "--item"),
    ],
)
def test_what_is_no_log_is_told_with_path_and_remedy(
    tmp_path: Path, name: str, content: bytes | None, sentence: str | None
) -> None:
    path = tmp_path / name
    if content is not None:
        written(path, content)
    if sentence is None:
        assert not recognise(path).header  # nothing tells names from ids here
        return
    with pytest.raises(UserError, match=sentence) as raised:
        recognise(path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_column_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path / "log.csv", delimited(ROWS, ",", ("user", "item", "rating", "time")))
    with pytest.raises(UserError, match=r"no column 'customer' .* user, item, rating, time"):
        recognise(path, Hints(user="customer"))
