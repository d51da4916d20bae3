"""The command line as a person meets it: one sentence for what they can mend, one document for --json."""

import gzip
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from tests.shop import command as noise2next

from noise2next import cli
from noise2next.data import sample

PARAMS = """# a person's own comment
seed: 3
datasets:
  shop:
    path: shop/log.csv   # beside it
    format: delimited
    separator: ","
    columns: {user: user_id, item: item_id, time: timestamp}
    time_unit: s
    k_core: 5
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  recent_pop: {model: noise2next.models.popularity.MostPop, weighting: {kind: exponential, half_life_days: 30}}
  ease: {model: noise2next.models.ease.EASE, options: {l2: 100}}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory, repository):
    """A project with a short log, taken all the way once."""
    root = tmp_path_factory.mktemp("shop")
    (root / "params.yaml").write_text(PARAMS)
    (root / "mlflow").mkdir()
    policy = (repository / "mlflow" / "promotion.yaml").read_text()
    (root / "mlflow" / "promotion.yaml").write_text(policy)
    sample.write(root / "data" / "shop" / "all.csv", seed=5)
    lines = (root / "data" / "shop" / "all.csv").read_text().splitlines(keepends=True)
    (root / "data" / "shop" / "log.csv").write_text(lines[0] + "".join(lines[-12_000:]))
    (root / "data" / "shop" / "all.csv").unlink()
    done = noise2next(root, "run", "--dataset", "shop", "--json")
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def test_run_ends_in_a_champion_and_prints_one_document(shop):
    _, report = shop
    assert report["registration"]["promoted"]
    assert report["trained"] == ["most_pop", "recent_pop", "ease"]
    assert {row["variant"] for row in report["leaderboard"]["rows"]} == set(report["trained"])


def test_ingest_as_json_says_what_was_read_and_why_some_was_not(shop):
    root, _ = shop
    document = json.loads(noise2next(root, "ingest", "--dataset", "shop", "--json").stdout)
    assert document["read"] == 12_000 == document["accepted"] + document["quarantined"]
    assert sum(document["reasons"].values()) == document["quarantined"]


def test_leaderboard_as_json_has_intervals(shop):
    root, _ = shop
    document = json.loads(noise2next(root, "leaderboard", "--dataset", "shop", "--json").stdout)
    assert document["dataset"] == "shop"
    assert document["split"] == "global_time"
    assert document["history"] == "train+valid"
    for row in document["rows"]:
        interval = row["metrics"]["recall@20"]
        assert interval["low"] <= interval["mean"] <= interval["high"]


def test_a_known_user_and_a_bare_history_get_unseen_items(shop):
    root, _ = shop
    log = (root / "data" / "shop" / "log.csv").read_text().splitlines()[1:]
    user = log[-1].split(",")[0]
    taken = {line.split(",")[1] for line in log if line.startswith(f"{user},")}
    known = json.loads(noise2next(root, "recommend", "-d", "shop", "--user", user, "-k", "5", "--json").stdout)
    assert len(known["items"]) == 5
    assert not taken & set(known["items"])
    history = sorted(taken)[:3]
    bare = json.loads(
        noise2next(root, "recommend", "-d", "shop", "--history", ",".join(history), "-k", "5", "--json").stdout
    )
    assert len(bare["items"]) == 5
    assert not set(history) & set(bare["items"])


def test_everyone_gets_a_table_written_whole(shop):
    import pyarrow.parquet as pq

    root, _ = shop
    done = noise2next(root, "recommend", "-d", "shop", "--all", "--out", "out/lists.parquet", "-k", "3", "--json")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(root / "out" / "lists.parquet").to_pandas()
    assert (table.groupby("user")["rank"].agg(list).map(tuple) == (1, 2, 3)).all()
    assert sorted(path.name for path in (root / "out").iterdir()) == ["lists.parquet"]


def test_everyones_table_is_kept_and_drift_is_told_in_sentences_and_as_a_document(shop):
    root, _ = shop
    kept = json.loads(noise2next(root, "recommend", "-d", "shop", "--all", "--json").stdout)
    assert (kept["k"], kept["version"]) == (20, "1")
    assert json.loads(noise2next(root, "recommend", "-d", "shop", "--all", "--json").stdout) == kept
    told = noise2next(root, "drift", "-d", "shop")
    assert told.returncode == 0, told.stderr
    assert "item_mix: not judged" in told.stdout
    assert "shop could not be held against champion version 1" in told.stdout
    document = json.loads(noise2next(root, "drift", "-d", "shop", "--json").stdout)
    assert document.keys() >= {"dataset", "data_version", "drifted", "reasons"}
    assert (document["dataset"], document["drifted"], document["reasons"]) == ("shop", False, [])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--dataset", "nowhere"], "there is no dataset 'nowhere'"),
        (["run", "-d", "shop", "--variants", "nothing"], "there is no variant 'nothing'"),
        (["run", "-d", "shop", "--set", "variants.ease.options.lambda=3"], "options.lambda"),
        (["run", "-d", "shop", "--set", "trainer.colour=red"], "trainer.colour: unknown key"),
        (["train", "-d", "shop", "-v", "nothing"], "there is no variant 'nothing'"),
        (["recommend", "-d", "shop", "--user", "nobody"], "nobody"),
        (["recommend", "-d", "shop", "--history", "nothing"], "nothing"),
        (["recommend", "-d", "shop"], "exactly one of"),
        (["recommend", "-d", "shop", "--user", "u1", "--out", "x.parquet"], "give --all with it"),
        (["recommend", "-d", "shop", "--all", "-k", "5"], "recommendations.k"),
        (["recommend", "-d", "shop", "--all", "-v", "ease"], "leave --variant and -k out"),
        (["drift", "-d", "nowhere"], "there is no dataset 'nowhere'"),
        (["recommend", "-d", "shop", "--all", "--out", "/proc/x.parquet"], "/proc/"),
        (["recommend", "-d", "shop", "--all", "--out", "x.parquet", "--draws", "3"], "--draws looks at one list"),
        (["recommend", "-d", "shop", "--history", "i0500", "-v", "ease", "--draws", "3"], "leave --draws out"),
        (["denoise", "-d", "shop", "--user", "u1", "--out", "list.gif"], "end it in .svg or .png"),
        (["datasets", "add", "x", "missing.csv"], "missing.csv"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence_and_exit_code_2(shop, arguments, sentence):
    root, _ = shop
    done = noise2next(root, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        ("PermissionError(errno.EACCES, 'Permission denied', '/there')", 2, "/there: Permission denied; give"),
        ("OSError(errno.EROFS, 'Read-only file system', '/there')", 2, "/there: Read-only file system; name"),
        ("OSError(errno.ENOSPC, 'No space left on device')", 2, "a disk: No space left on device; make room"),
        ("KeyboardInterrupt", 130, ""),
        ("OSError(errno.EIO, 'a fault', '/there')", 1, "Traceback"),
        ("FileNotFoundError('a fault without a place')", 1, "Traceback"),
    ],
)
def test_what_the_system_refuses_is_a_sentence_and_an_interruption_is_silent(tmp_path, raised, code, sentence):
    code_of_it = "import errno, noise2next.cli as cli\ndef app(): raise " + raised + "\ncli.app = app; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code_of_it],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert sentence in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


def bad_empty(path):
    path.write_bytes(b"")


def bad_header_only(path):
    path.write_text("user_id,item_id,timestamp\n")


def bad_missing_column(path):
    path.write_text("user_id,thing,timestamp\n" + "u1,i1,1600000000\n" * 3)


def bad_gzip(path):
    path.write_bytes(gzip.compress(b"user_id,item_id,timestamp\n" + b"u1,i1,1600000000\n" * 9999)[:60])


def bad_pickle(path):
    path.write_bytes(pickle.dumps({"user_id": [1]}))


def bad_encoding(path):
    path.write_bytes("user_id,item_id,timestamp\nu1,i1,1600000000\n".encode("utf-16"))


def bad_future(path):
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n},i{n},99999999999\n" for n in range(50)))


def bad_poison(path):
    lines = path.read_text().splitlines(keepends=True)
    choice = np.random.default_rng(0).random(len(lines)) < 0.3
    path.write_text(
        lines[0] + "".join("??" + "\n" if bad else line for line, bad in zip(lines[1:], choice[1:], strict=True))
    )


@pytest.mark.parametrize(
    "spoil",
    [bad_empty, bad_header_only, bad_missing_column, bad_gzip, bad_pickle, bad_encoding, bad_future, bad_poison],
    ids=lambda spoil: spoil.__name__.removeprefix("bad_"),
)
def test_a_bad_log_stops_the_run_with_a_sentence_and_leaves_the_champion(shop, spoil):
    root, _ = shop
    path = root / "data" / "shop" / "log.csv"
    good = path.read_bytes()
    before = noise2next(
        root, "recommend", "-d", "shop", "--user", good.splitlines()[-1].split(b",")[0].decode(), "--json"
    )
    spoil(path)
    try:
        done = noise2next(root, "run", "--dataset", "shop")
    finally:
        path.write_bytes(good)
    assert done.returncode == 2, done.stderr
    (sentence,) = re.findall(r"^error: .*", done.stderr, re.MULTILINE)
    assert "shop" in sentence
    assert "Traceback" not in done.stderr
    after = noise2next(
        root, "recommend", "-d", "shop", "--user", good.splitlines()[-1].split(b",")[0].decode(), "--json"
    )
    assert after.stdout == before.stdout != ""


def test_params_with_an_unknown_key_are_refused_and_stay_as_they_were(shop):
    root, _ = shop
    path = root / "params.yaml"
    good = path.read_text()
    path.write_text(good + "colour: red\n")
    try:
        done = noise2next(root, "run", "-d", "shop")
        assert path.read_text() == good + "colour: red\n"
    finally:
        path.write_text(good)
    assert done.returncode == 2
    assert "colour: unknown key" in done.stderr


def test_help_names_every_command_and_loads_nothing_heavy(tmp_path):
    done = noise2next(tmp_path, "--help")
    assert done.returncode == 0
    for command in (
        "run",
        "ingest",
        "validate",
        "prepare",
        "train",
        "evaluate",
        "leaderboard",
        "register",
        "recommend",
        "drift",
    ):
        assert command in done.stdout
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, noise2next.cli; print([m for m in ('torch', 'mlflow', 'ibis') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "[]"


def test_a_misspelt_dataset_is_told_before_anything_heavy_is_loaded(shop):
    program = (
        "import sys, noise2next.cli\n"
        "sys.argv = ['noise2next', 'run', '--dataset', 'nowhere']\n"
        "try:\n    noise2next.cli.main()\n"
        "finally:\n    print([m for m in ('torch', 'mlflow', 'great_expectations') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=shop[0], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "[]")
    assert "there is no dataset 'nowhere'" in done.stderr


def test_a_wrong_table_and_missing_official_files_are_one_sentence(tmp_path):
    done = noise2next(tmp_path, "reproduce", "ml-1m")
    assert done.returncode == 2
    assert "there is no table 'ml-1m'; there are diffrec-ml1m-clean, " in done.stderr
    done = noise2next(tmp_path, "reproduce", "diffrec-ml1m-clean", "--variants", "ease", "--data", "elsewhere")
    assert done.returncode == 2
    assert "elsewhere/diffrec_official/ml-1m_clean.zip: no such file; name the folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_entry_that_a_search_found_can_be_copied_from_the_terminal(capsys):
    from noise2next.cli import _show
    from noise2next.stages.tune import TuneReport

    options = {f"option_{number}": [number, 600] for number in range(12)}
    entry = f"diffrec:\n  options: {json.dumps(options)}\n  weighting: [linear]\n"
    told = {"dataset": "shop", "variant": "diffrec", "metric": "recall@5", "valid": 0.5, "settings": {}, "written": "x"}
    _show(TuneReport(trials=2, pruned=0, diverged=0, entry=entry, **told), as_json=False)
    above, below = capsys.readouterr().out.split("\nentry\n")
    assert below == entry
    assert "recall@5" in above


def test_ids_stand_between_commas_and_one_with_a_comma_in_quotes():
    assert cli._ids(' a,"b,c", d e ,,日本') == ["a", "b,c", "d e", "日本"]
    assert cli._ids('"Heroes" LP,5" disk\n') == ['"Heroes" LP', '5" disk']
    assert cli._ids("") == []
