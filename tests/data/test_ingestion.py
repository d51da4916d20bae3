"""Accepted and quarantined rows together are the rows that were read; each bad one is told, no good one is lost."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import os
import tracemalloc
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noise2next.config import Dataset, Params, load_params
from noise2next.data import delimited, guesses, ingestion, logs, pieces
from noise2next.errors import UserError
from noise2next.stages import datasets, ingest
from noise2next.workspace import Workspace, read_json

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = {"user": "user", "item": "item", "time": "time", "rating": "rating"}
HEADER = "user,item,time,rating\n"
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Log:
    """One log under a root of its own."""

    def __init__(self, root: Path, content: bytes | str, name: str = "log.csv", **entry: Any) -> None:
        self.space = Workspace(root, "log")
        self.space.data.mkdir(parents=True, exist_ok=True)
        (self.space.data / name).write_bytes(content.encode() if isinstance(content, str) else content)
        defaults: dict[str, Any] = {"format": "delimited", "separator": ",", "columns": COLUMNS, "time_unit": "s"}
        given = {"path": name, "split": {"kind": "random"}, **defaults, **entry}
        self.params = Params(datasets={"log": Dataset.model_validate(given)}, variants={})

    def ingest(self) -> ingest.IngestReport:
        return ingest.run(self.params, self.space, NOW)

    @property
    def accepted(self) -> list[dict[str, Any]]:
        return pq.read_table(self.space.ingested / "interactions.parquet").to_pylist()

    @property
    def quarantine(self) -> list[tuple[int, str]]:
        table = pq.read_table(self.space.ingested / "quarantine.parquet")
        return [(row["line"], row["reason"]) for row in table.to_pylist()]


BAD = [
    ("u1,i1,5", "wrong column count"),
    ("u1,i1,5,1,1", "wrong column count"),
    (",i1,5,1", "missing user"),
    ("nan,i1,5,1", "missing user"),
    ("  ,,5,1", "missing user"),
    ("u1,,5,1", "missing item"),
    ("u1,null,x,y", "missing item"),
    ("u1,\\N,5,1", "missing item"),
    ("u1,i1,yesterday,1", "unparsable time"),
    ("u1,i1,,1", "unparsable time"),
    ("u1,i1,nan,1", "unparsable time"),
    ("u1,i1,inf,1", "unparsable time"),
    ("u1,i1,1_000,1", "unparsable time"),
    ("u1,i1,-1,1", "impossible time"),
    ("u1,i1,1e300,1", "impossible time"),
    ("u1,i1,978300760000,1", "impossible time"),
    ("u1,i1,1767400000,1", "time in the future"),
    ("u1,i1,9999999999,1", "time in the future"),
    ("u1,i1,5,good", "unparsable rating"),
    ("u1,i1,5,nan", "rating is not finite"),
    ("u1,i1,5,-inf", "rating is not finite"),
    ("u1,i1,5,1e999", "rating is not finite"),
    ("u1,i\\xff,5,1", "undecodable text"),
    ("u1,i\\x00,5,1", "undecodable text"),
]


def test_each_bad_row_is_kept_aside_with_its_line_its_first_reason_and_its_text(tmp_path: Path) -> None:
    raw = "\n\n".join(line for line, _ in BAD).encode().replace(b"\\xff", b"\xff").replace(b"\\x00", b"\x00")
    log = Log(tmp_path, HEADER.encode() + b"a,b,7,1\r\n" + raw + b"\nc,d,8,2")
    report = log.ingest()
    assert log.quarantine == [(3 + 2 * place, reason) for place, (_, reason) in enumerate(BAD)]
    assert [(row["user"], row["time"]) for row in log.accepted] == [("a", 7_000_000), ("c", 8_000_000)]
    assert (report.read, report.accepted, report.quarantined) == (len(BAD) + 2, 2, len(BAD))
    assert report.reasons == Counter(reason for _, reason in BAD)
    assert report.bad_share == len(BAD) / (len(BAD) + 2)
    kept = pq.read_table(log.space.ingested / "quarantine.parquet").to_pylist()
    assert [row["raw"] for row in kept] == [line for line, _ in BAD]
    assert {row["file"] for row in kept} == {"log.csv"}


@pytest.mark.parametrize(
    "line",
    [
        " a ,b,7,1",
        "a,b,7.0,1.0",
        "a,b,7e0,1",
        '"a","b","7","1"',
        '"a",b,7,1',
        "a,b,7,1\r",
        "a, b,7 , 1",
    ],
)
def test_forms_of_one_row_are_one_row(tmp_path: Path, line: str) -> None:
    log = Log(tmp_path, f"{HEADER}{line}\na,b,7,1\n")
    assert log.ingest().reasons == {"duplicate": 1}
    assert log.quarantine == [(3, "duplicate")]
    assert log.accepted == [{"user": "a", "item": "b", "time": 7_000_000, "rating": 1.0, "row": 0}]


def test_only_rows_equal_in_everything_are_duplicates(tmp_path: Path) -> None:
    log = Log(tmp_path, HEADER + "a,b,7,1\na,b,8,1\na,b,7,2\na,b,7,\na,b,7,\nA,b,7,1\n0a,b,7,1\n")
    report = log.ingest()
    assert log.quarantine == [(6, "duplicate")]
    assert report.bad_share == 0
    assert [row["rating"] for row in log.accepted] == [1.0, 1.0, 2.0, None, 1.0, 1.0]


def test_ids_stay_the_text_that_they_were(tmp_path: Path) -> None:
    log = Log(tmp_path, HEADER + '007,1.0,5,1\n 7 ,1,5,1\n"x,y",Ünï,5,1\nN/A,NA,5,1\n')
    log.ingest()
    assert [(row["user"], row["item"]) for row in log.accepted] == [
        ("007", "1.0"),
        ("7", "1"),
        ("x,y", "Ünï"),
        ("N/A", "NA"),
    ]


def test_a_stray_quote_costs_no_other_row(tmp_path: Path) -> None:
    rows = [f"u{k},i{k},{k + 1},1" for k in range(50)]
    rows[10], rows[20], rows[30] = 'u10,"i10,11,1', 'u20,5" pipe,21,1', '"u30,i30,31'
    log = Log(tmp_path, HEADER + "\n".join(rows))
    log.ingest()
    assert log.quarantine == [(32, "wrong column count")]
    assert {row["user"] for row in log.accepted} == {f"u{k}" for k in range(50)} - {"u30"}


def test_a_quoted_field_may_span_lines_also_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLOCK", 64)
    records = [(f"u{k}", f"one\nline, and {k}", str(k + 1), "1") for k in range(40)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *records])
    log = Log(tmp_path, text.getvalue())
    assert log.ingest().quarantined == 0
    assert [(row["user"], row["item"]) for row in log.accepted] == [(user, item) for user, item, *_ in records]


@SLOW
@given(data=st.data(), separator=st.sampled_from([",", "\t", "::", "|"]), block=st.sampled_from([37, 1 << 20]))
def test_every_planted_fault_is_found_and_no_good_row_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, separator: str, block: int
) -> None:
    count = data.draw(st.integers(5, 60))
    planted = data.draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from(BAD), max_size=4))
    blank = data.draw(st.sets(st.integers(0, count - 1)))
    lines, expected, good = [HEADER.strip()], [], []
    for k in range(count):
        if k in blank:
            lines.append("")
        line, reason = planted.get(k, (f"u{k},i{k},{k + 1},3", None))
        lines.append(line)
        if reason is None:
            good.append(f"u{k}")
        else:
            expected.append((len(lines), reason))
    raw = "\n".join(lines).replace(",", separator).encode()
    raw = raw.replace(b"\\xff", b"\xff").replace(b"\\x00", b"\x00")
    log = Log(tmp_path_factory.mktemp("log"), raw, separator=separator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BLOCK", block)
        if not good or _mostly_undecodable(expected, block):
            return
        report = log.ingest()
    assert report.accepted + report.quarantined == report.read == count
    assert [row["user"] for row in log.accepted] == good
    assert sorted(log.quarantine) == expected


def _mostly_undecodable(expected: list[tuple[int, str]], block: int) -> bool:
    """Many undecodable lines in one block mean a file of another encoding, which is refused as a whole."""
    return sum(reason == "undecodable text" for _, reason in expected) > 2


@SLOW
@given(noise=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=3)), max_size=3))
def test_whatever_is_done_to_the_bytes_rows_are_accepted_or_told(
    tmp_path_factory: pytest.TempPathFactory, noise: list[tuple[float, bytes]]
) -> None:
    content = (HEADER + "".join(f"u{k},i{k},{k + 1},3\n" for k in range(40))).encode()
    body = len(HEADER)
    for share, some in noise:
        at = body + int(share * (len(content) - body))
        content = content[:at] + some + content[at + len(some) :]
    log = Log(tmp_path_factory.mktemp("log"), content)
    with contextlib.suppress(UserError):  # many odd lines are told as another encoding, nothing is written then
        log.ingest()
    if not log.space.ingested.exists():
        assert any(not some.isascii() or b"\0" in some for _, some in noise)
        return
    report = ingest.IngestReport.model_validate(read_json(log.space.ingested / "report.json"))
    assert report.accepted + report.quarantined == report.read
    assert report.accepted == len(log.accepted)
    assert report.quarantined == len(log.quarantine) == sum(report.reasons.values())
    assert report.accepted >= 40 - 2 * 3 * max(len(noise), 1) - 6


@given(st.lists(st.lists(st.text(alphabet='ab",; ', max_size=5), min_size=3, max_size=3), min_size=1, max_size=20))
def test_quoted_records_are_read_as_they_were_written(records: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(records)
    lines = text.getvalue().splitlines()
    found = delimited.fields(np.arange(len(lines)), pa.array(lines, pa.string()), ",", 3, [0, 1, 2])
    assert found.right.all()
    assert [list(row) for row in zip(*(column.to_pylist() for column in found.columns), strict=True)] == records


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "text", "microseconds"),
    [
        ("s", "978300760", 978_300_760_000_000),
        ("s", "978300760.25", 978_300_760_250_000),
        ("s", "1.0e9", 10**15),
        ("ms", "1238536800123", 1_238_536_800_123_000),
        ("us", "1238536800123456", 1_238_536_800_123_456),
        ("iso", "2009-03-31", 1_238_457_600_000_000),
        ("iso", "2009-03-31 22:00:00", 1_238_536_800_000_000),
        ("iso", "2009-03-31T22:00:00.123456Z", 1_238_536_800_123_456),
        ("iso", "2009-04-01T00:00:00+02:00", 1_238_536_800_000_000),
        ("order", "17", 17),
    ],
)
def test_times_become_microseconds_in_utc(tmp_path: Path, unit: str, text: str, microseconds: int) -> None:
    log = Log(tmp_path, f"{HEADER}a,b,{text},1\n", time_unit=unit)
    log.ingest()
    assert log.accepted[0]["time"] == microseconds


def test_every_form_of_time_that_is_recognised_is_read(tmp_path: Path) -> None:
    offsets = {"": 0, "Z": 0, "UTC": 0, "+05": 300, "+0530": 330, "+05:30": 330, "-0800": -480}
    clocks = {"9:01": 0, "09:01": 0, "09:01:02": 2_000_000, "9:01:02.5": 2_500_000, "09:01:02.123456": 2_123_456}
    day, minute = 1_578_182_400 * 10**6, 60 * 10**6
    forms = {"20200105": day}
    for date in ("2020-01-05", "2020/1/5"):
        forms[date] = day
        for mark, (clock, rest), gap, (zone, ahead) in itertools.product(
            " T", clocks.items(), ("", " ", "  "), offsets.items()
        ):
            forms[f"{date}{mark}{clock}{gap if zone else ''}{zone}"] = day + (541 - ahead) * minute + rest
    assert [form for form in forms if guesses.date(form, "iso") is None] == []
    log = Log(tmp_path, HEADER + "".join(f"u,i{k},{form},1\n" for k, form in enumerate(forms)), time_unit="iso")
    log.ingest()
    assert log.quarantine == []
    assert [row["time"] for row in log.accepted] == list(forms.values())


def test_the_future_begins_a_day_after_now(tmp_path: Path) -> None:
    day = 86_400
    now = int(NOW.timestamp())
    log = Log(tmp_path, f"{HEADER}a,b,{now + day - 1},1\na,b,{now + day + 1},1\n")
    log.ingest()
    assert log.quarantine == [(3, "time in the future")]


def test_a_log_in_order_but_without_times_is_numbered_by_row(tmp_path: Path) -> None:
    log = Log(tmp_path, "user,item\nb,x\na,x\nb,x\n", columns={"user": "user", "item": "item"}, time_unit="order")
    assert log.ingest().time_from is None
    assert [(row["user"], row["time"]) for row in log.accepted] == [("b", 0), ("a", 1), ("b", 2)]


def test_a_log_without_time_and_rating_has_no_such_columns(tmp_path: Path) -> None:
    log = Log(tmp_path, "user,item\nb,x\n", columns={"user": "user", "item": "item"}, time_unit=None)
    report = log.ingest()
    assert log.accepted == [{"user": "b", "item": "x", "row": 0}]
    assert (report.time_from, report.time_to, report.time_unit) == (None, None, None)


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16", "utf-16-be"])
def test_text_of_any_named_encoding_is_read(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLOCK", 33)
    text = HEADER + "".join(f"Jos\xe9{k},caf\xe9,{k + 1},1\r\n" for k in range(20))
    log = Log(tmp_path, text.encode(encoding), encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    log.ingest()
    assert [row["user"] for row in log.accepted] == [f"Jos\xe9{k}" for k in range(20)]
    assert log.quarantine == []


def test_json_lines_keep_whole_numbers_whole(tmp_path: Path) -> None:
    lines = [
        '{"user": 1, "item": 12.0, "time": 5, "rating": 4.5}',
        '{"user": "01", "item": "x", "time": 6.0}',
        '{"user": 2, "item": "x", "time": 5, "rating": NaN}',
        '{"user": 2, "item": "x"',
        "[1, 2]",
        '{"user": null, "item": "x", "time": 5}',
    ]
    log = Log(tmp_path, gzip.compress("\n".join(lines).encode()), "log.json.gz", format="json", separator=None)
    log.ingest()
    assert [(row["user"], row["item"], row["rating"]) for row in log.accepted] == [("1", "12", 4.5), ("01", "x", None)]
    assert log.quarantine == [
        (3, "rating is not finite"),
        (4, "not valid JSON"),
        (5, "not valid JSON"),
        (6, "missing user"),
    ]


@pytest.mark.parametrize("wrap", ["plain", "gzip", "zip"])
def test_parquet_of_any_types_is_read(tmp_path: Path, wrap: str) -> None:
    times = np.array(["2020-01-01T00:00:00.5", "2020-01-02T00:00:00", "NaT"], dtype="datetime64[ms]")
    table = pa.table(
        {
            "user": pa.array([1.0, 2.0, None]),
            "item": pa.array(["a", "b", "c"]).dictionary_encode(),
            "time": pa.array(times, pa.timestamp("ms")),
            "rating": pa.array([1, 2, 3], pa.int8()),
            "other": pa.array([[1], [2], []]),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream)
    content = stream.getvalue()
    if wrap == "zip":
        content, plain = b"", io.BytesIO()
        with zipfile.ZipFile(plain, "w") as archive:
            archive.writestr("in/log.parquet", stream.getvalue())
        content = plain.getvalue()
    elif wrap == "gzip":
        content = gzip.compress(content)
    log = Log(tmp_path, content, "log.parquet", format="parquet", separator=None, time_unit="iso")
    log.ingest()
    assert [(row["user"], row["item"], row["rating"]) for row in log.accepted] == [("1", "a", 1.0), ("2", "b", 2.0)]
    assert log.accepted[0]["time"] == 1_577_836_800_500_000
    assert log.quarantine == [(3, "missing user")]


def test_sequences_are_unrolled_in_their_order(tmp_path: Path) -> None:
    log = Log(
        tmp_path, "7 3 1 3\n8\n9\t4\n", "log.txt", format="sequences", separator=None, columns={}, time_unit="order"
    )
    report = log.ingest()
    assert [(row["user"], row["item"], row["time"]) for row in log.accepted] == [
        ("7", "3", 0),
        ("7", "1", 1),
        ("7", "3", 2),
        ("9", "4", 0),
    ]
    assert (report.read, log.quarantine) == (5, [(2, "wrong column count")])


def test_diffrec_lists_keep_their_split_and_their_order(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for part, pairs in {"test": [[0, 9]], "train": [[0, 5], [0, 3], [1, 3]], "valid": [[1, 5]]}.items():
            with archive.open(f"ml/{part}_list.npy", "w") as member:
                np.lib.format.write_array(member, np.array(pairs))
    entry = {
        "format": "diffrec",
        "separator": None,
        "columns": {},
        "time_unit": "order",
        "split": {"kind": "official", "history": "train"},
    }
    log = Log(tmp_path, stream.getvalue(), "ml.zip", **entry)
    log.ingest()
    assert [(row["user"], row["item"], row["time"], row["split"]) for row in log.accepted] == [
        ("0", "5", 0, "train"),
        ("0", "3", 1, "train"),
        ("1", "3", 2, "train"),
        ("1", "5", 0, "valid"),
        ("0", "9", 0, "test"),
    ]


def test_diffurec_rows_name_their_split_as_we_do(tmp_path: Path) -> None:
    stream = io.BytesIO()
    rows = {"user_id": [0, 0, 0], "item_id": [4, 5, 6], "position": [0, 1, 2], "split": ["train", "val", "test"]}
    pq.write_table(pa.table(rows), stream)
    columns = {"user": "user_id", "item": "item_id", "time": "position"}
    entry = {"format": "diffurec", "separator": None, "columns": columns, "time_unit": "order"}
    log = Log(tmp_path, stream.getvalue(), "toys.parquet", **entry, split={"kind": "official"})
    log.ingest()
    assert [(row["time"], row["split"]) for row in log.accepted] == [(0, "train"), (1, "valid"), (2, "test")]


@pytest.mark.parametrize("change", ["appended", "replaced", "joined", "removed"])
def test_a_log_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (tmp_path / "data" / "days").mkdir(parents=True)
    log = Log(tmp_path, HEADER + "u1,i1,5,1\n", name="days/a.csv", path="days")
    log.ingest()
    kept = read_json(log.space.ingested / "report.json")
    one, other = log.space.data / "days" / "a.csv", log.space.data / "days" / "b.csv"
    read = ingestion.ingest

    def changed(*given: Any) -> ingestion.Ingested:
        found = read(*given)
        if change == "appended":
            one.write_text(one.read_text() + "u2,i1,5,1\n")
        elif change == "replaced":  # as many bytes of the same age
            stat = one.stat()
            other.write_text(one.read_text().replace("i1", "i2"))
            os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            other.replace(one)
        elif change == "joined":
            other.write_text(HEADER + "u2,i1,5,1\n")
        else:
            one.unlink()
        return found

    monkeypatch.setattr(ingestion, "ingest", changed)
    with pytest.raises(UserError, match="days: the log changed while it was read; run again"):
        log.ingest()
    assert read_json(log.space.ingested / "report.json") == kept


def test_the_files_of_a_folder_are_read_in_name_order(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "days"
    folder.mkdir(parents=True)
    (folder / "b.csv").write_text("time,user,item,rating\n8,c,d,2\n,c,d,2\n")
    (folder / "a.csv").write_text(HEADER + "a,b,7,1\n")
    (folder / "_SUCCESS").write_text("")
    log = Log(tmp_path, "", path="days")
    report = log.ingest()
    assert [row["user"] for row in log.accepted] == ["a", "c"]
    table = pq.read_table(log.space.ingested / "quarantine.parquet").to_pylist()
    assert [(row["file"], row["line"]) for row in table] == [("days/b.csv", 3)]
    assert list(report.files) == ["days/a.csv", "days/b.csv"]


def test_a_header_without_header_is_counted_by_place(tmp_path: Path) -> None:
    columns = {"user": "2", "item": "1", "time": "4"}
    log = Log(tmp_path, "i1::u1::x::5\ni2::u2::x::6\n", header=False, separator="::", columns=columns)
    log.ingest()
    assert [(row["user"], row["item"]) for row in log.accepted] == [("u1", "i1"), ("u2", "i2")]


# --- refusals and promises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "entry", "sentence"),
    [
        (b"", {}, r"holds no row"),
        (HEADER.encode(), {}, r"holds no row"),
        (b"a,b,c\n1,2,3\n", {}, r"no column 'user'.*columns\.user"),
        (b"user,user,item,time,rating\n1,2,3,4,5\n", {}, r"more than one column 'user'"),
        (HEADER.encode("utf-16"), {}, r"UTF-16.*encoding"),
        ((HEADER + "\xe9,\xe9,5,1\n" * 9).encode("latin-1"), {}, r"line 2 and 8 more.*latin-1"),
        (HEADER.encode() + b"a,b,soon,1\n" * 3, {}, r"none of its 3 rows.*'unparsable time'"),
        (b"\x80\x04\x95log", {}, r"a pickle"),
        (gzip.compress(np.random.default_rng(0).bytes(9000))[:5000], {}, r"ends too early"),
        (b"PAR1", {"format": "parquet"}, r"not readable as Parquet"),
        (HEADER.encode() + b"a,b,5,1\n", {"encoding": "klingon"}, r"no encoding 'klingon'"),
        (HEADER.encode() + b"a,b,5,1\n", {"time_unit": None}, r"columns\.time.*time_unit"),
    ],
)
def test_a_log_that_cannot_be_used_is_one_sentence_and_changes_nothing(
    tmp_path: Path, content: bytes, entry: dict[str, Any], sentence: str
) -> None:
    Log(tmp_path, HEADER + "a,b,5,1\n").ingest()
    before = (tmp_path / "artifacts/log/ingest/interactions.parquet").read_bytes()
    with pytest.raises(UserError, match=sentence) as raised:
        Log(tmp_path, content, **entry).ingest()
    assert "log.csv" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "artifacts/log/ingest/interactions.parquet").read_bytes() == before
    assert [one.name for one in (tmp_path / "artifacts/log").iterdir() if one.is_dir()] == ["ingest"]


def test_equal_logs_give_equal_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 50, 5000), rng.integers(0, 90, 5000), rng.integers(1, 10**9, 5000), strict=True)
    text = HEADER + "".join(f"{user},{item},{time},1\n" for user, item, time in rows)
    first, second = Log(tmp_path / "1", text), Log(tmp_path / "2", text)
    assert first.ingest() == second.ingest()
    for name in ("interactions.parquet", "quarantine.parquet", "report.json"):
        assert (first.space.ingested / name).read_bytes() == (second.space.ingested / name).read_bytes()
    assert read_json(first.space.ingested / "report.json") == first.ingest().model_dump(mode="json")


def test_rows_keep_the_order_of_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path, HEADER + "".join(f"u{k * 7919 % 3000},i,{k + 1},1\n" for k in range(3000)))
    log.ingest()
    rows = [row["row"] for row in log.accepted]
    assert rows == sorted(set(rows))
    assert [row["user"] for row in log.accepted] == [f"u{k * 7919 % 3000}" for k in range(3000)]


def test_the_engine_is_silent_and_lives_in_utc(tmp_path: Path) -> None:
    with ingestion.engine_spilling_into(tmp_path) as engine:
        assert engine.settings["enable_progress_bar"] == "false"
        assert engine.settings["TimeZone"] == "UTC"


def test_a_log_is_never_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BLOCK", 1 << 16)
    text = HEADER + "".join(f"user{k},item{k},{k + 1},1\n" for k in range(200_000))
    log = Log(tmp_path, gzip.compress(text.encode(), 1))
    held = pa.total_allocated_bytes()
    highest = 0
    _, batches = logs.read(log.params.dataset("log"), log.space.data)
    tracemalloc.start()
    for _ in batches:
        highest = max(highest, pa.total_allocated_bytes() - held)
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert highest + python < len(text) / 2


# --- the real logs ----------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "read", "reasons", "users", "items", "newest"),
    [
        ("raw/ml-100k.zip", 100_000, {}, 943, 1_682, "1998-04-22"),
        ("raw/ml-latest-small.zip", 100_836, {}, 610, 9_724, "2018-09-24"),
        ("raw/ml-1m_partial.zip", 663_062, {}, 6_038, 3_613, "2003-02-28"),
        ("raw/amazon_2014_Musical_Instruments_5.json.gz", 10_261, {}, 1_429, 900, "2014-07-22"),
        ("raw/amazon_2018_All_Beauty_5.json.gz", 5_269, {"duplicate": 1_103}, 991, 85, "2018-08-23"),
        ("raw/hetrec2011-lastfm-2k_tags_ms.inter.gz", 64_286, {"impossible time": 2}, 1_362, 2_975, "2011-05-09"),
        ("raw/hetrec2011-lastfm-2k_no_timestamps.zip", 92_834, {}, 1_892, 17_632, None),
        ("sequences/yelp_s3rec.txt.gz", 316_354, {}, 30_431, 20_033, None),
        ("diffrec_official/ml-1m_clean.zip", 571_531, {}, 5_949, 2_810, None),
        ("diffurec_official/toys.parquet", 167_597, {}, 19_412, 11_924, None),
    ],
)
def test_published_logs_are_taken_as_they_come(
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    read: int,
    reasons: dict[str, int],
    users: int,
    items: int,
    newest: str | None,
) -> None:
    monkeypatch.setattr(datasets, "version", lambda space: None)
    (tmp_path / "params.yaml").write_text("datasets: {}\nvariants: {}\n")
    datasets.add(tmp_path, "log", shared / name)
    report = ingest.run(load_params(tmp_path / "params.yaml"), Workspace(tmp_path, "log"))
    assert (report.read, report.reasons, report.users, report.items) == (read, reasons, users, items)
    assert (report.time_to or "")[:10] == (newest or "")
