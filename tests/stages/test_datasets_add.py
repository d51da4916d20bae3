"""A log is taken in whole, with its version and its entry, or nothing has changed."""

from __future__ import annotations

import gzip
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from noise2next.config import load_params
from noise2next.errors import UserError
from noise2next.stages import datasets, ingest
from noise2next.workspace import Workspace

PARAMS = """\
# Every choice.
seed: 1   # everywhere

datasets:
  old:                # the first
    path: old/log.csv
    format: delimited
    columns: {user: user, item: item, time: time}
    time_unit: s
    k_core: 3
    presets:          # its own
      pop: {trainer: {epochs: 2}}   # few

# how it is trained
trainer:
  epochs: 7           # rounds

variants:
  pop: {model: noise2next.models.popularity.MostPop}
"""
LOG = "user,item,time\n" + "".join(f"u{k % 7},i{k % 5},{1_200_000_000 + k}\n" for k in range(60))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "data" / "old").mkdir(parents=True)
    (tmp_path / "data" / "old" / "log.csv").write_text(LOG)
    return tmp_path


@pytest.fixture
def unversioned(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without DVC, which takes seconds to start."""
    monkeypatch.setattr(datasets, "version", lambda space: None)
    return root


@pytest.fixture
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "shop.csv"
    path.write_text(LOG)
    return path


def state(root: Path) -> dict[str, bytes]:
    files = [root / "params.yaml", root / "data.dvc", *(root / "data").rglob("*")]
    return {str(one.relative_to(root)): one.read_bytes() for one in files if one.is_file()}


def test_the_log_is_copied_versioned_and_entered(root: Path, log: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    report = datasets.add(root, "shop", log)
    assert (root / "data" / "shop" / "shop.csv").read_text() == LOG
    pointer = YAML(typ="safe").load((root / "data.dvc").read_text())
    assert pointer["outs"][0]["nfiles"] == 2
    entry = load_params(root / "params.yaml").dataset("shop")
    assert (entry.path, entry.time_unit, entry.k_core, entry.split.kind) == ("shop/shop.csv", "s", 1, "global_time")
    assert report.next == "noise2next run --dataset shop"
    assert report.first_time == "2008-01-10 21:20:00 UTC"
    first = (root / "data.dvc").read_bytes()
    log.write_text(LOG + "u1,i1,1300000000\n")
    datasets.add(root, "shop", log)
    assert (root / "data.dvc").read_bytes() != first
    assert YAML(typ="safe").load((root / "data.dvc").read_text())["outs"][0]["nfiles"] == 2


def test_where_dvc_fails_nothing_has_changed(root: Path, log: Path) -> None:
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("this is no configuration\n")
    before = state(root)
    with pytest.raises(UserError, match=r"`dvc add --quiet data` failed"):
        datasets.add(root, "shop", log)
    assert state(root) == before


def test_comments_and_order_of_the_file_stay(unversioned: Path, log: Path) -> None:
    datasets.add(unversioned, "shop", log, positive=None, k_core=2)
    text = (unversioned / "params.yaml").read_text()
    lines = text.splitlines()
    assert [line for line in PARAMS.splitlines() if line not in lines] == []
    assert lines.index("  shop:") < lines.index("# how it is trained") < lines.index("trainer:")
    assert lines[lines.index("# how it is trained") - 1] == ""


def test_an_old_dataset_gets_new_data_and_keeps_what_was_decided(unversioned: Path, log: Path) -> None:
    log.write_text(LOG.replace(",", "\t"))
    datasets.add(unversioned, "old", log)
    entry = load_params(unversioned / "params.yaml").dataset("old")
    assert (entry.path, entry.separator, entry.k_core) == ("old/shop.csv", "\t", 3)
    assert entry.presets["pop"].trainer == {"epochs": 2}
    assert [one.name for one in (unversioned / "data" / "old").iterdir()] == ["shop.csv"]
    assert "# few" in (unversioned / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LOG, "global_time"),
        ("user,item\n" + "".join(f"u{k % 7},i{k % 5}\n" for k in range(60)), "random"),
        ("".join(f"{k} " + " ".join(str(j) for j in range(k % 5 + 3)) + "\n" for k in range(60)), "leave_one_out"),
    ],
)
def test_the_split_is_the_most_honest_that_the_log_allows(
    unversioned: Path, log: Path, content: str, kind: str
) -> None:
    log.write_text(content)
    assert datasets.add(unversioned, "shop", log).split["kind"] == kind


def test_a_folder_is_taken_with_all_its_files(unversioned: Path, log: Path) -> None:
    folder = log.parent / "days"
    folder.mkdir()
    for name in ("a.csv", "b.csv", "_SUCCESS"):
        (folder / name).write_text(LOG if name.endswith(".csv") else "")
    assert datasets.add(unversioned, "shop", folder).path == "shop"
    assert sorted(one.name for one in (unversioned / "data" / "shop").iterdir()) == ["a.csv", "b.csv"]


def test_separator_and_encoding_may_be_said(unversioned: Path, log: Path) -> None:
    rows = [f"u{k % 7}\tcaf\u00e9 \u20ac{k % 5}\t{1_200_000_000 + k}\n" for k in range(60)]
    log.write_bytes(("user\titem\ttime\n" + "".join(rows)).encode("cp1252"))
    report = datasets.add(unversioned, "shop", log, separator="\\t", encoding="cp1252")
    assert (report.separator, report.encoding) == ("\t", "cp1252")
    space = Workspace(unversioned, "shop")
    ingested = ingest.run(load_params(space.params), space)
    assert (ingested.accepted, ingested.items) == (60, 5)
    for said, sentence in (
        ({"encoding": "klingon"}, "'klingon' is no encoding of text"),
        ({"encoding": "ascii"}, "not ascii text"),
        ({"separator": ";"}, "line 1 holds no ';'"),
        ({"separator": ""}, "--separator is empty"),
    ):
        with pytest.raises(UserError, match=sentence):
            datasets.add(unversioned, "shop", log, **{"encoding": "cp1252", **said})


def test_ratings_without_a_threshold_are_spoken_of(unversioned: Path, log: Path) -> None:
    log.write_text("user,item,rating,time\n" + "".join(f"u{k},i{k},{k % 5},{10**9 + k}\n" for k in range(50)))
    assert any("--positive" in note for note in datasets.add(unversioned, "shop", log).notes)
    report = datasets.add(unversioned, "shop", log, positive="rating >= 4")
    assert report.positive == "rating >= 4"
    assert not any("--positive" in note for note in report.notes)


def test_a_format_without_ratings_takes_no_threshold(unversioned: Path, tmp_path: Path) -> None:
    log = tmp_path / "lists.txt"
    log.write_text("1 5 6 7\n2 5 8\n3 6 7 8 9\n" * 20)
    with pytest.raises(UserError, match="the format sequences has none; leave --positive out"):
        datasets.add(unversioned, "shop", log, positive="rating >= 4")


def test_a_rating_that_is_not_read_is_spoken_of_and_no_threshold_is_set_on_it(unversioned: Path, log: Path) -> None:
    log.write_text("user;item;rating;time\n" + "".join(f"u{k};i{k};{k % 5},5;{10**9 + k}\n" for k in range(50)))
    with pytest.raises(UserError, match=r"needs a rating, and column 'rating' holds '0,5', which is no number"):
        datasets.add(unversioned, "shop", log, positive="rating >= 4")
    report = datasets.add(unversioned, "shop", log)
    assert report.other_columns == ["rating"]
    assert any("'0,5' is no number: every row counts as liking" in note for note in report.notes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "Shop!"}, r"'Shop!' is no usable name"),
        ({"time_unit": "hours"}, r"'hours' is none of s, ms, us, iso, order"),
        ({"format": "xml"}, r"'xml' is none of delimited"),
        ({"positive": "rating >= 4"}, r"needs a rating, and no column is told as one .*; name it with --rating"),
        ({"split": "official"}, r"split official needs"),
        ({"user": "customer"}, r"no column 'customer'"),
        ({"path": Path("/nowhere/log.csv")}, r"no such file"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_changes_nothing(
    unversioned: Path, log: Path, change: dict[str, object], sentence: str
) -> None:
    before = state(unversioned)
    with pytest.raises(UserError, match=sentence) as raised:
        datasets.add(unversioned, **{"name": "shop", "path": log, **change})  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert state(unversioned) == before


def test_a_log_without_time_may_not_take_a_split_that_needs_one(unversioned: Path, log: Path) -> None:
    log.write_text("user,item\n" + "".join(f"u{k % 7},i{k % 5}\n" for k in range(60)))
    for kind in ("global_time", "leave_one_out", "per_user_ratio"):
        with pytest.raises(UserError, match=f"split {kind} needs"):
            datasets.add(unversioned, "shop", log, split=kind)


@pytest.mark.parametrize("shape", ["gz", "zip"])
def test_a_compressed_log_that_was_cut_off_is_not_taken_in(unversioned: Path, log: Path, shape: str) -> None:
    text = ("user,item,time\n" + "".join(f"u{k},i{k * k},{10**9 + k**2}\n" for k in range(200_000))).encode()
    broken = log.with_suffix(f".{shape}")
    if shape == "gz":
        broken.write_bytes(gzip.compress(text, 1)[:-1000])
    else:
        with zipfile.ZipFile(broken, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("log.csv", text)
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 0xFF
        broken.write_bytes(content)
    before = state(unversioned)
    with pytest.raises(UserError, match=r"ends too early|damaged"):
        datasets.add(unversioned, "shop", broken)
    assert state(unversioned) == before


def test_logs_that_are_not_here_are_not_lost_from_the_version(unversioned: Path, log: Path) -> None:
    (unversioned / "data.dvc").write_text("outs: []\n")
    (unversioned / "data" / "old" / "log.csv").unlink()
    with pytest.raises(UserError, match=r"dataset old is not here.*dvc pull"):
        datasets.add(unversioned, "shop", log)


def _with_sample(root: Path, path: str) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("  old:", "  sample:").replace("old/log.csv", path))


def test_the_sample_lies_where_its_entry_says(unversioned: Path) -> None:
    _with_sample(unversioned, "sample/interactions.csv")
    report = datasets.sample(unversioned, seed=3)
    assert Path(report.path) == unversioned / "data" / "sample" / "interactions.csv"
    assert Path(report.path).read_text().startswith("user_id,item_id,timestamp\n")


def test_the_generated_log_never_takes_the_place_of_a_persons(unversioned: Path, log: Path) -> None:
    with pytest.raises(UserError, match="generated log's name"):
        datasets.add(unversioned, "sample", log)
    _with_sample(unversioned, "old/log.csv")
    with pytest.raises(UserError, match=r"datasets\.sample\.path is old/log\.csv"):
        datasets.sample(unversioned)
    assert (unversioned / "data" / "old" / "log.csv").read_text() == LOG


@pytest.mark.parametrize(("name", "where"), [("shop", "shop"), ("old", "old")])
def test_files_that_the_dataset_does_not_read_are_never_removed(unversioned: Path, name: str, where: str) -> None:
    folder = unversioned / "data" / where
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text(LOG)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    before = state(unversioned)
    with pytest.raises(UserError, match=r"mine\.txt, which the dataset .* move them out"):
        datasets.add(unversioned, name, folder / "log.csv")
    assert state(unversioned) == before
    (folder / "notes" / "mine.txt").unlink()
    datasets.add(unversioned, name, folder / "log.csv")
    assert (folder / "log.csv").read_text() == LOG


def test_data_may_be_a_volume_of_its_own(unversioned: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, moved = unversioned / "data", []
    rename = os.replace

    def within_a_volume(old: Path, new: Path) -> None:
        moved.append(Path(new))
        assert Path(old).is_relative_to(data) == Path(new).is_relative_to(data)
        rename(old, new)

    monkeypatch.setattr(os, "replace", within_a_volume)
    datasets.add(unversioned, "old", log)
    assert data / "old" in moved
    assert [one.name for one in data.iterdir()] == ["old"]
