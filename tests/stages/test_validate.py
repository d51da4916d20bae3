import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.config import Columns, Dataset, Params
from noise2next.errors import UserError
from noise2next.stages import validate
from noise2next.stages.validate import ValidationReport
from noise2next.workspace import Workspace, digest, read_json, verify, write_json, writing

SHOP = Dataset(path="log.csv", format="delimited", columns=Columns(time="t"), time_unit="s")
PARAMS = Params(datasets={"shop": SHOP}, variants={})


def ingest(space, bad=0, users=10):
    """60 accepted rows, and `bad` others that were quarantined."""
    with writing(space.ingested) as folder:
        table = {
            "user": [f"u{k % users}" for k in range(60)],
            "item": [f"i{k % 6}" for k in range(60)],
            "time": np.arange(60),
            "row": np.arange(60),
        }
        pq.write_table(pa.table(table), folder / "interactions.parquet")
        report = {"read": 60 + bad, "accepted": 60, "quarantined": bad, "bad_share": bad / (60 + bad), "reasons": {}}
        write_json(folder / "report.json", report | {"users": users, "items": 6, "time_from": None, "time_to": None})


@pytest.fixture
def space(tmp_path):
    return Workspace(tmp_path, "shop")


def test_a_good_log_gives_a_report_and_pages_that_its_manifest_knows(space):
    ingest(space)
    report = validate.run(PARAMS, space)
    assert report.success
    assert report.rows == 60
    assert set(verify(space.validation)) == {
        "report.json",
        "docs/index.html",
        "docs/profile.html",
        "docs/interactions.html",
    }
    assert ValidationReport.model_validate(read_json(space.validation / "report.json")) == report
    assert report.docs == str(space.validation / "docs" / "index.html")


def test_a_breach_stops_with_what_where_and_remedy_after_the_report_is_written(space):
    ingest(space, bad=20)
    with pytest.raises(UserError) as raised:
        validate.run(PARAMS, space)
    said = str(raised.value)
    assert said.startswith("shop: 25.0 % of 80 rows are unreadable, above max_bad_share 1.0 %: see ")
    assert str(space.ingested / "quarantine.parquet") in said
    assert str(space.validation / "docs" / "index.html") in said
    assert said.endswith("mend the log or raise max_bad_share in params.yaml")
    assert "\n" not in said
    verify(space.validation)
    kept = read_json(space.validation / "report.json")
    assert kept["success"] is False
    assert kept["ingested"] == digest(space.ingested)  # so that `prepare` knows which log it was


def test_of_several_breaches_the_cause_is_told_and_the_others_are_counted(space):
    ingest(space, bad=20, users=1)
    with pytest.raises(UserError, match=r"25\.0 % of 80 rows are unreadable.* \(and 1 more, see "):
        validate.run(PARAMS, space)


def test_a_raised_max_bad_share_lets_the_log_pass(space):
    ingest(space, bad=20)
    patient = Params(datasets={"shop": SHOP.model_copy(update={"max_bad_share": 0.25})}, variants={})
    assert validate.run(patient, space).success


def test_a_second_run_leaves_the_same_bytes_and_nothing_else(space):
    ingest(space)
    validate.run(PARAMS, space)
    first = digest(space.validation)
    validate.run(PARAMS, space)
    assert digest(space.validation) == first
    assert sorted(one.name for one in space.artifacts.iterdir() if one.is_dir()) == ["ingest", "validate"]


def test_without_an_ingested_log_the_command_that_makes_it_is_named(space):
    with pytest.raises(UserError, match="`noise2next ingest` makes it"):
        validate.run(PARAMS, space)
