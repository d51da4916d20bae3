"""Files that are landed: taken whole and versioned, or refused with a reason and nothing else changed."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests import shop

from noise2next.cli import main
from noise2next.config import Params, load_params
from noise2next.errors import UserError
from noise2next.stages import datasets, land
from noise2next.workspace import Workspace

DAY = shop.HEADER + "".join(f"u{n % 40:04},i{n % 25:04},{1_700_000_000 + n}\n" for n in range(400))


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    root = tmp_path_factory.mktemp("versioned") / "project"
    shop.make(root, repository)
    datasets.version(Workspace(root, "shop"))
    return root


@pytest.fixture
def space(versioned: Path, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(versioned, tmp_path / "project"), "shop")


def landed(space: Workspace, name: str, content: str | bytes = DAY) -> Path:
    file = space.landing("landing") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def taken(space: Workspace, files: list[Path] | None = None) -> land.LandReport:
    return land.run(load_params(space.params), space, files)


def state(space: Workspace) -> dict[str, bytes]:
    """Everything that a refused file must leave as it was."""
    kept = [*(path for path in space.data.rglob("*") if path.is_file()), space.data_pointer, space.params]
    return {str(path): path.read_bytes() for path in kept}


# --- taken ------------------------------------------------------------------------------------------------------------


def test_all_that_waits_is_moved_into_the_log_and_versioned(space: Workspace) -> None:
    landed(space, "2.csv")
    landed(space, "3.csv.gz", gzip.compress(DAY.replace("u00", "v00").encode()))
    landed(space, ".4.csv")
    landed(space, "5.csv.part")
    before = space.data_pointer.read_bytes()
    report = taken(space)
    assert report.taken == ["shop/2.csv", "shop/3.csv.gz"]
    assert report.rows == shop.FIRST + 800
    assert space.data_pointer.read_bytes() != before
    assert pinned(space) == {"other/log.csv", "shop/1.csv", "shop/2.csv", "shop/3.csv.gz"}
    assert sorted(one.name for one in space.landing("landing").iterdir()) == [".4.csv", "5.csv.part"]
    assert not space.trial.exists()
    assert not space.ingested.exists()  # what the trial derived is not what the pipeline derived


def pinned(space: Workspace) -> set[str]:
    """The files that data.dvc pins, from DVC's own cache."""
    folder = re.search(r"md5: (\w+)\.dir", space.data_pointer.read_text())
    assert folder is not None
    place = space.versioning / "cache" / "files" / "md5" / folder[1][:2] / f"{folder[1][2:]}.dir"
    return {one["relpath"] for one in json.loads(place.read_text())}


def test_a_named_file_is_copied_and_stays_where_it_was(space: Workspace) -> None:
    file = space.root / "later" / "2.csv"
    assert taken(space, [file]).taken == ["shop/2.csv"]
    assert file.is_file()
    assert (space.data / "shop" / "2.csv").read_bytes() == file.read_bytes()


def test_a_log_of_one_file_becomes_a_folder_and_the_entry_keeps_its_comments(space: Workspace) -> None:
    other = Workspace(space.root, "other")
    log = (other.data / "other" / "log.csv").read_bytes()
    assert taken(other, [landed(other, "2.csv")]).rows == 3_400
    assert re.search(r"path: other +# beside it", other.params.read_text())
    assert re.search(r"shop: +# takes new files", other.params.read_text())
    assert (other.data / "other" / "log.csv").read_bytes() == log
    assert load_params(other.params).datasets.keys() == {"shop", "other"}


def test_what_a_kill_left_half_done_is_finished_by_the_next_call(space: Workspace) -> None:
    """Killed between laying the file into the log and versioning it."""
    file = landed(space, "2.csv")
    shutil.copy(file, space.data / "shop" / "2.csv")
    space.trial.mkdir(parents=True)
    assert taken(space).taken == ["shop/2.csv"]
    assert "shop/2.csv" in pinned(space)
    assert not file.exists()


# --- refused ----------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_refused(space: Workspace) -> None:
    refused(space, landed(space, "2.csv", ""), "no row|empty")


def test_a_file_without_the_columns_is_refused(space: Workspace) -> None:
    refused(space, landed(space, "2.csv", DAY.replace("item_id", "thing")), "shop/2.csv: no column 'item_id'")


def test_a_file_that_a_large_log_would_hide_is_refused_for_its_own_bad_rows(space: Workspace) -> None:
    lines = DAY.splitlines(keepends=True)
    poisoned = "".join("??\n" if n % 10 in (1, 4, 7) else line for n, line in enumerate(lines))
    refused(space, landed(space, "2.csv", poisoned), r"30\.0 % of its 400 rows are unreadable.*above max_bad_share")


def test_a_file_that_breaks_the_contract_of_the_whole_log_is_refused(space: Workspace) -> None:
    text = space.params.read_text().replace("time_unit: s\n", "time_unit: s\n    max_bad_share: 0.0\n", 1)
    space.params.write_text(text)
    with (space.data / "shop" / "1.csv").open("a") as log:
        log.write("??\n")
    datasets.version(space)
    refused(space, landed(space, "2.csv"), "with it the log breaks its contract: .* are unreadable")


def test_the_same_bytes_again_are_refused_under_whatever_name(space: Workspace) -> None:
    again = (space.data / "shop" / "1.csv").read_bytes()
    refused(space, landed(space, "2.csv", again), "holds these very bytes already, as .*/1.csv")


def test_a_taken_file_is_never_replaced(space: Workspace) -> None:
    refused(space, landed(space, "1.csv"), "is there with other content")


def test_a_name_that_a_folder_does_not_read_is_refused(space: Workspace) -> None:
    refused(space, landed(space, "_2.csv"), "not read in a folder")


def test_a_file_that_would_stand_before_others_of_an_order_without_clock_is_refused(space: Workspace) -> None:
    entry = "columns: {user: user_id, item: item_id, time: timestamp}\n    time_unit: s\n"
    ordered = "columns: {user: user_id, item: item_id}\n    time_unit: order\n    split: {kind: leave_one_out}\n"
    space.params.write_text(space.params.read_text().replace(entry, ordered, 1))
    refused(space, landed(space, "0.csv"), "0.csv would stand before 1.csv")
    assert taken(space, [landed(space, "2.csv")]).taken == ["shop/2.csv"]


def refused(space: Workspace, file: Path, reason: str) -> None:
    """The file lies aside with its reason, and nothing else has changed."""
    content, before = file.read_bytes(), state(space)
    with pytest.raises(UserError, match=reason) as told:
        taken(space)
    assert "1 of 1 files refused" in str(told.value)
    assert ".land" not in str(told.value)
    assert state(space) == before
    aside = file.parent / "refused"
    assert sorted(one.name for one in aside.iterdir()) == [file.name, f"{file.name}.reason.txt"]
    assert (aside / file.name).read_bytes() == content
    assert re.search(reason, (aside / f"{file.name}.reason.txt").read_text())
    assert not file.exists()


def test_a_bad_file_does_not_hold_up_the_good_ones_and_two_of_a_name_lie_aside_both(space: Workspace) -> None:
    landed(space, "2.csv", "nothing\n")
    with pytest.raises(UserError, match=r"1 of 1 files refused.*; the log is as it was"):
        taken(space)
    landed(space, "2.csv", "nothing at all\n")
    landed(space, "3.csv")
    with pytest.raises(UserError, match=r"1 of 2 files refused.*; taken: shop/3.csv"):
        taken(space)
    aside = sorted(one.name for one in (space.landing("landing") / "refused").iterdir())
    assert aside == ["2-2.csv", "2-2.csv.reason.txt", "2.csv", "2.csv.reason.txt"]


def test_a_named_file_that_is_refused_stays_where_it_was(space: Workspace) -> None:
    file = space.root / "later" / "bad.csv"
    file.write_text("nothing\n")
    with pytest.raises(UserError, match=r"bad\.csv"):
        taken(space, [file])
    assert file.read_text() == "nothing\n"


# --- what is no file's fault ------------------------------------------------------------------------------------------


def shared_folder(space: Workspace) -> str:
    (space.data / "other" / "titles.csv").write_text("item,title\n")
    return "other"


def lost_log(space: Workspace) -> str:
    shutil.rmtree(space.data / "other")
    return "shop"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shared_folder, "shares its folder with titles.csv"),
        (lost_log, "the log of dataset other is not here and would be lost"),
    ],
    ids=["a folder that others use", "another log that is not here"],
)
def test_what_is_not_the_files_fault_leaves_it_waiting(
    space: Workspace, spoil: Callable[[Workspace], str], sentence: str
) -> None:
    chosen = Workspace(space.root, spoil(space))
    file, before = landed(chosen, "2.csv"), state(space)
    with pytest.raises(UserError, match=sentence):
        taken(chosen)
    assert file.is_file()
    assert state(space) == before


def test_a_version_that_dvc_will_not_write_changes_nothing(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Workspace) -> None:
        raise UserError("dvc add failed")

    other = Workspace(space.root, "other")
    file, before = landed(other, "2.csv"), state(other)
    monkeypatch.setattr(land, "version", fail)
    with pytest.raises(UserError, match="dvc add failed"):
        taken(other)
    assert file.is_file()
    assert state(other) == before


def test_the_sample_and_an_official_split_take_no_files(space: Workspace, repository: Path) -> None:
    params = load_params(repository / "params.yaml")
    with pytest.raises(UserError, match="sample is the generated log"):
        land.run(params, Workspace(space.root, "sample"))
    official = {"path": "beauty.parquet", "format": "diffurec", "split": {"kind": "official"}}
    params = Params.model_validate({"datasets": {"beauty": official}, "variants": {}})
    with pytest.raises(UserError, match="beauty has an official split"):
        land.run(params, Workspace(space.root, "beauty"))


# --- the command ------------------------------------------------------------------------------------------------------


def command(space: Workspace, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("NOISE2NEXT_ROOT", str(space.root))
    monkeypatch.setattr(sys, "argv", ["noise2next", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_command_prints_one_document_or_one_sentence(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    landed(space, "2.csv")
    assert command(space, monkeypatch, "land", "--dataset", "shop", "--json") == 0
    assert json.loads(capfd.readouterr().out)["taken"] == ["shop/2.csv"]
    for arguments, sentence in (
        (["--dataset", "shop"], "no file waits there"),
        (["--dataset", "shop", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--dataset", "nowhere"], "there is no dataset 'nowhere'"),
    ):
        assert command(space, monkeypatch, "land", *arguments) == 2
        said = capfd.readouterr()
        assert sentence in said.err
        assert "Traceback" not in said.err
        assert said.out == ""
