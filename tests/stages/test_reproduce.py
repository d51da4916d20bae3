"""A published table trained again: each run once, resumed where it was stopped, and told beside what was published."""

import contextlib
import io
import re
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from noise2next.config import OfficialSplit, Settings, UniformWeights
from noise2next.data.interactions import Split
from noise2next.errors import UserError
from noise2next.evaluation.evaluator import judge
from noise2next.evaluation.report import DrawsReport, ShareBin
from noise2next.evaluation.significance import Interval
from noise2next.models.artifact import Artifact
from noise2next.stages import evaluate, reproduce, results, train, tune
from noise2next.stages.tables import load_table, read_table, table_names
from noise2next.workspace import Reproduction, read_json, sha256

DIFFREC = """
title: a small table
file: official/small.zip
sha256: {sha256}
dataset_name: small
dataset: {{path: small.zip, format: diffrec, time_unit: order, split: {{kind: official, history: train}}}}
metrics: [recall@5, ndcg@5]
main: recall@5
evaluation: {{cutoffs: [5], bootstrap_samples: 50}}
trainer: {{epochs: 3, batch_size: 16, metric: recall@5}}
seeds: 2
variants:
  most_pop: {{model: noise2next.models.popularity.MostPop}}
  ease: {{model: noise2next.models.ease.EASE, options: {{l2: 1}}}}
  diffrec: {{model: noise2next.models.diffrec.DiffRec, options: {{steps: 3, hidden: [4]}}}}
rows:
  most_pop: {{digits: {{masked: {{recall@5: 0.9999}}}}}}
  ease: {{at_least: {{masked: {{recall@5: 0.0}}}}}}
  diffrec:
    published: {{masked: {{recall@5: 0.5}}}}
    source: a paper
    authors_code: 0.4 to 0.6
    at_least: {{masked: {{recall@5: 0.0}}}}
notes: [a note of the table's own]
"""


@pytest.fixture
def settings(tmp_path, untracked):
    return Settings(root=tmp_path / "project", device="cpu")


@pytest.fixture
def untracked(monkeypatch):
    """Training and judging without MLflow; the names of what is trained, in order."""
    opened = []

    class Silent:
        run_id = "run"

        def metrics(self, values, step=None):
            pass

    @contextlib.contextmanager
    def training_run(settings, space, card, params):
        opened.append((card.variant.name, card.seed))
        yield Silent()

    @contextlib.contextmanager
    def resume_run(settings, space, run_id):
        yield Silent()

    monkeypatch.setattr(train, "training_run", training_run)
    monkeypatch.setattr(evaluate, "resume_run", resume_run)
    return opened


@pytest.fixture
def data(tmp_path):
    """Two tastes: each user takes ten of the fifteen items of one, then two for test and two for validation."""
    draw = np.random.default_rng(0)
    lists = {"train": [], "test": [], "valid": []}
    for user in range(60):
        items = draw.permutation(15) + 15 * (user % 2)
        for part, some in (("train", items[:10]), ("test", items[10:12]), ("valid", items[12:14])):
            lists[part] += [[user, item] for item in some]
    file = tmp_path / "data" / "official" / "small.zip"
    file.parent.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        for part, pairs in lists.items():
            with archive.open(f"small/{part}_list.npy", "w") as member:
                np.lib.format.write_array(member, np.array(pairs))
    return tmp_path / "data"


@pytest.fixture
def table(tmp_path, data):
    return a_table(tmp_path, DIFFREC.format(sha256=sha256(data / "official" / "small.zip")))


def a_table(folder, text):
    path = folder / "small.yaml"
    path.write_text(text)
    return read_table("small", path)


def document(settings):
    return read_json(Reproduction(settings.root, "small").result(".json"))


def page(settings):
    return Reproduction(settings.root, "small").result(".md").read_text()


def test_every_row_is_trained_over_its_seeds_and_told_beside_what_was_published(table, settings, data, untracked):
    report = reproduce.run(table, settings, data)
    assert untracked == [("most_pop", 1), ("ease", 1), ("diffrec", 1), ("diffrec", 2)]
    assert (report.rows, report.runs, report.missed) == (3, 4, ["most_pop"])
    rows = {row["variant"]: row for row in document(settings)["rows"]}
    diffrec = rows["diffrec"]
    each = [run["test"]["recall@5"] for run in diffrec["runs"]]
    assert diffrec["mean"]["recall@5"] == pytest.approx(np.mean(each))
    assert diffrec["deviation"]["recall@5"] == pytest.approx(np.std(each, ddof=1))
    low, high = diffrec["interval"]["recall@5"]
    assert low < diffrec["mean"]["recall@5"] < high
    assert diffrec["references"]["published"] == {"recall@5": 0.5}
    assert rows["ease"]["deviation"] is None
    assert [row["reached"] for row in rows.values()] == [False, True, True]
    assert min(diffrec[key] for key in ("seconds_training", "seconds_evaluation", "peak_memory_mb", "parameters")) > 0
    text = page(settings)
    assert all(f"\n| {name} |" in text for name in table.rows)
    assert "a note of the table's own" in text
    assert "| _published_ | _0.5000_ |" in text
    assert "0.4 to 0.6" in text
    assert "Published figures of diffrec: a paper." in text
    assert "<svg" in Reproduction(settings.root, "small").result(".svg").read_text()
    assert document(settings)["untrained"] == []
    assert "Not trained yet" not in text


def test_the_page_names_the_rows_that_nobody_has_trained(table, settings, data, untracked):
    reproduce.run(table, settings, data, ["most_pop"])
    assert document(settings)["untrained"] == ["ease", "diffrec"]
    assert "ease, diffrec. `noise2next reproduce small --variants NAME` trains one." in page(settings)


def test_the_page_says_which_simple_row_is_ahead_paired_over_users(table, settings, data):
    reproduce.run(table, settings, data)
    means = {row["variant"]: row["mean"]["recall@5"] for row in document(settings)["rows"]}
    assert means["ease"] > means["diffrec"]
    (ahead,) = document(settings)["ahead"]
    assert ahead["low"] < ahead["gain"] < ahead["high"]
    found = re.search(r"\| diffrec \| ease by (\S+) \((\S+) to ([^ ,)]+)", page(settings))
    assert [float(one) for one in found.groups()] == pytest.approx(
        [means["ease"] - means["diffrec"], ahead["low"], ahead["high"]], abs=1e-4
    )


@pytest.mark.parametrize(("trainer", "fixed"), [({"epochs": 7}, False), ({"epochs": 7, "evaluate_every": 7}, True)])
def test_a_row_that_chose_no_epoch_is_said_to_have_chosen_none(trainer, fixed, table, settings, data, untracked):
    reproduce.run(table, settings, data, ["ease"])
    found = results.Results.model_validate(document(settings))
    (row,) = found.rows
    text = results.page(found.model_copy(update={"rows": [row.model_copy(update={"trainer": trainer})]}))
    assert ("- ease: trained for a fixed number of epochs" in text) is fixed


def test_a_finished_run_is_not_repeated_and_a_new_seed_adds_to_it(table, settings, data, untracked):
    reproduce.run(table, settings, data, ["diffrec"], seeds=1)
    first = document(settings)
    assert first["rows"][0]["reached"] is None  # too few seeds to tell
    reproduce.run(table, settings, data, ["diffrec"], seeds=1)
    assert document(settings) == first
    reproduce.run(table, settings, data, ["diffrec"])
    assert untracked == [("diffrec", 1), ("diffrec", 2)]
    assert document(settings)["rows"][0]["runs"][0] == first["rows"][0]["runs"][0]


def test_what_was_killed_goes_on_with_the_run_it_was_in(table, settings, data, untracked, monkeypatch):
    judged = evaluate.run

    def killed(params, space, settings, variant, unmasked):
        if variant == "diffrec":
            raise KeyboardInterrupt
        return judged(params, space, settings, variant, unmasked)

    monkeypatch.setattr(evaluate, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        reproduce.run(table, settings, data)
    monkeypatch.setattr(evaluate, "run", judged)
    assert untracked == [("most_pop", 1), ("ease", 1), ("diffrec", 1)]
    reproduce.run(table, settings, data)
    assert untracked == [("most_pop", 1), ("ease", 1), ("diffrec", 1), ("diffrec", 2)]
    assert document(settings)["rows"][2]["seeds"] == [1, 2]


def test_another_setting_is_another_run_and_the_old_one_leaves_the_table(table, settings, data, untracked, tmp_path):
    reproduce.run(table, settings, data, ["ease", "most_pop"])
    before = document(settings)["rows"][1]["mean"]
    text = (tmp_path / "small.yaml").read_text()
    changed = a_table(tmp_path, text.replace("l2: 1}", "l2: 5000}"))
    reproduce.run(changed, settings, data, ["ease"])
    assert untracked == [("ease", 1), ("most_pop", 1), ("ease", 1)]
    rows = document(settings)["rows"]
    assert [row["variant"] for row in rows] == ["most_pop", "ease"]
    assert rows[1]["mean"] != before


@pytest.fixture
def elsewhere(settings):
    """Another machine, that has the page and none of the runs."""

    def move():
        other = settings.model_copy(update={"root": settings.root.with_name("elsewhere")})
        shutil.copytree(settings.root / "docs", other.root / "docs")
        return other

    return move


def test_rows_of_another_machine_stay_on_the_page(table, settings, data, untracked, elsewhere):
    reproduce.run(table, settings, data)
    whole, other = document(settings), elsewhere()
    reproduce.run(table, other, data, ["most_pop"])
    assert untracked[-1] == ("most_pop", 1)
    there = document(other)
    assert there["rows"][1:] == whole["rows"][1:]
    assert there["ahead"] == whole["ahead"]
    assert all(f"\n| {name} |" in page(other) for name in table.rows)


def test_what_cannot_be_paired_is_told_without_an_interval(table, settings, data, elsewhere):
    reproduce.run(table, settings, data, ["most_pop", "ease"])
    other = elsewhere()
    reproduce.run(table, other, data, ["diffrec"])
    (ahead,) = document(other)["ahead"]
    assert (ahead["simple"], ahead["learned"], ahead["low"]) == ("ease", "diffrec", None)
    assert re.search(r"\| diffrec \| ease by \S+ \(judged on different machines, so not paired\) \|", page(other))


def test_a_row_of_another_machine_gives_way_to_as_much_training(table, settings, data, elsewhere):
    reproduce.run(table, settings, data, ["diffrec"])
    other = elsewhere()
    reproduce.run(table, other, data, ["diffrec"], seeds=1)
    assert document(other)["rows"][0] == document(settings)["rows"][0]  # two seeds say more than one
    reproduce.run(table, other, data, ["diffrec"], budget_minutes=0)
    assert document(other)["rows"][0]["epochs"] == 3  # seed 2 stopped within the first epoch
    reproduce.run(table, other, data, ["diffrec"])
    fresh, old = document(other)["rows"][0], document(settings)["rows"][0]
    assert fresh["seconds_training"] != old["seconds_training"]
    assert fresh["mean"] == old["mean"]


def test_a_row_of_as_many_minutes_gives_way_though_a_little_less_was_trained_in_them(table, settings, data):
    reproduce.run(table, settings, data, ["diffrec"], budget_minutes=0)
    row = results.ResultRow.model_validate(document(settings)["rows"][0])
    trained = [run.model_copy(update={"epochs": 65.4}) for run in row.runs]
    row = row.model_copy(update={"runs": trained})
    for epochs, covered in [(65.2, True), (58.0, False)]:
        fresh = [run.model_copy(update={"epochs": epochs}) for run in trained]
        assert results.covered(row, {"diffrec": fresh}) is covered
    assert not results.covered(row, {"diffrec": trained[:1]})


def test_a_row_of_another_setting_does_not_stay(table, settings, data, elsewhere, tmp_path):
    reproduce.run(table, settings, data, ["most_pop", "ease"])
    changed = a_table(tmp_path, (tmp_path / "small.yaml").read_text().replace("l2: 1}", "l2: 5000}"))
    other = elsewhere()
    reproduce.run(changed, other, data, ["most_pop"])
    assert [row["variant"] for row in document(other)["rows"]] == ["most_pop"]


def test_a_page_in_another_form_is_refused_and_stays(table, settings, data):
    path = Reproduction(settings.root, "small").result(".json")
    path.parent.mkdir(parents=True)
    path.write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"small\.json: not in the form that this release writes .* put it aside"):
        reproduce.run(table, settings, data, ["most_pop"])
    assert path.read_text() == '{"rows": []}'


def test_a_budget_stops_a_run_with_its_curve_told_and_a_larger_one_goes_on(table, settings, data, untracked):
    report = reproduce.run(table, settings, data, ["diffrec"], budget_minutes=0)
    assert report.stopped_by_budget == ["diffrec"]
    row = document(settings)["rows"][0]
    assert row["stopped"] == {"1": pytest.approx(16 / 60), "2": pytest.approx(16 / 60)}  # one batch
    assert [[epoch for epoch, _ in run["curve"]] for run in row["runs"]] == [[row["stopped"]["1"]]] * 2
    assert "- diffrec: seed 1 after epoch 0.27, seed 2 after epoch 0.27 (" in page(settings)
    assert len(re.findall(r"\(best epoch 0\.27\)", page(settings))) == 2
    place = Reproduction(settings.root, "small")
    assert place.result("-curves.svg").is_file()
    reproduce.run(table, settings, data, ["diffrec"], budget_minutes=0)
    assert len(untracked) == 2  # as large a budget adds nothing
    reproduce.run(table, settings, data, ["diffrec"])
    went_on = document(settings)["rows"][0]
    assert (went_on["epochs"], went_on["stopped"]) == (3, {})
    assert not place.result("-curves.svg").exists()
    weights = [place.space(seed, "small").model("diffrec") / "weights.safetensors" for seed in (1, 2)]
    paused = [sha256(path) for path in weights]
    unbroken = settings.model_copy(update={"root": settings.root.with_name("unbroken")})
    reproduce.run(table, unbroken, data, ["diffrec"])
    place = Reproduction(unbroken.root, "small")
    assert paused == [sha256(place.space(seed, "small").model("diffrec") / "weights.safetensors") for seed in (1, 2)]


def test_one_row_and_seed_is_trained_by_one_process_at_a_time(table, settings, data):
    place = Reproduction(settings.root, "small")
    with (
        reproduce.alone(place.lock("ease", 1), "run"),
        pytest.raises(UserError, match="another run of ease under seed 1 is going on"),
    ):
        reproduce.run(table, settings, data, ["most_pop", "ease"])
    reproduce.run(table, settings, data, ["ease"])
    assert [row["variant"] for row in document(settings)["rows"]] == ["most_pop", "ease"]


def test_a_file_that_is_missing_or_another_one_is_refused_with_the_remedy(table, settings, data, tmp_path):
    with pytest.raises(UserError, match=r"official/small\.zip: no such file; name the folder .* with --data"):
        reproduce.run(table, settings)
    with pytest.raises(UserError, match="no such file"):
        reproduce.run(table, settings, tmp_path / "elsewhere")
    (data / "official" / "small.zip").write_bytes(b"something else")
    with pytest.raises(UserError, match="not the official file: its sha256 is"):
        reproduce.run(table, settings, data)


def test_the_folder_of_data_comes_from_the_environment_where_none_is_named(table, settings, data, monkeypatch):
    monkeypatch.setenv("NOISE2NEXT_SHARED", str(data.parent))
    named = Settings(root=settings.root, device="cpu")
    assert reproduce.run(table, named, variants=["most_pop"]).runs == 1


def test_an_unknown_row_is_refused_before_anything_is_trained(table, settings, data, untracked):
    with pytest.raises(UserError, match="table small has no row 'eas'; it has most_pop, ease, diffrec"):
        reproduce.run(table, settings, data, ["most_pop", "eas"])
    assert not untracked


# --- both forms -------------------------------------------------------------------------------------------------------


@pytest.fixture
def next_item(tmp_path, untracked):
    """A table of DiffuRec's format: each of 40 users walks around a ring of twelve items."""
    rows = [
        (user, (user + step) % 12 + 1, step, "train" if step < 6 else "val" if step == 6 else "test")
        for user in range(40)
        for step in range(8)
    ]
    out = io.BytesIO()
    names = ("user_id", "item_id", "position", "split")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), out)
    file = tmp_path / "data" / "official" / "ring.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(out.getvalue())
    tree = YAML(typ="safe").load(DIFFREC.format(sha256=sha256(file)))
    tree |= {
        "file": "official/ring.parquet",
        "dataset_name": "ring",
        "dataset": {
            "path": "ring.parquet",
            "format": "diffurec",
            "columns": {"user": "user_id", "item": "item_id", "time": "position"},
            "time_unit": "order",
            "split": {"kind": "official"},
        },
        "forms": ["unmasked", "masked"],
        "metrics": ["hit_rate@5", "ndcg@5"],
        "main": "ndcg@5",
        "unit": "percent",
        "trainer": {"epochs": 1, "metric": "ndcg@5"},
        "rows": {"ease": {"published": {"unmasked": {"ndcg@5": 12.5}}, "source": "a paper"}, "diffrec": {}},
    }
    with (tmp_path / "small.yaml").open("w") as out:
        YAML().dump(tree, out)
    return read_table("small", tmp_path / "small.yaml")


def test_one_model_is_judged_with_and_without_what_was_seen(next_item, settings, tmp_path, untracked):
    reproduce.run(next_item, settings, tmp_path / "data", ["ease"])
    assert untracked == [("ease", 1)]
    row = document(settings)["rows"][0]
    assert set(row["mean"]) == {"hit_rate@5", "ndcg@5", "hit_rate@5 unmasked", "ndcg@5 unmasked"}
    assert row["mean"]["ndcg@5"] > row["mean"]["ndcg@5 unmasked"]  # seven of twelve items are out of the way
    assert row["references"]["published"] == {"ndcg@5 unmasked": 0.125}
    assert "| _published_ |  | _12.5000_ |  |  |" in page(settings)
    assert f"{row['mean']['ndcg@5'] * 100:.4f}" in page(settings)


def test_each_form_says_for_itself_whether_a_simple_row_is_ahead(next_item, settings, tmp_path, untracked):
    reproduce.run(next_item, settings, tmp_path / "data", ["ease"])
    found = results.Results.model_validate(document(settings))
    masked = results.Ahead(simple="ease", learned="ease", column="ndcg@5", gain=0.02, low=-0.01, high=0.05)
    other = results.Ahead(simple="most_pop", learned="ease", column="ndcg@5 unmasked", gain=0.03, low=None, high=None)
    by_chance = "ease by 2.0000 (-1.0000 to 5.0000, may be chance)"
    unpaired = "most_pop by 3.0000 (judged on different machines, so not paired)"
    for ahead, row in [
        ([masked], f"| ease | none is | {by_chance} |"),
        ([other], f"| ease | {unpaired} | none is |"),
        ([other, masked], f"| ease | {unpaired} | {by_chance} |"),
    ]:
        assert row in results.page(found.model_copy(update={"ahead": ahead})).splitlines()
    assert "Where a simple baseline is ahead" not in results.page(found.model_copy(update={"ahead": []}))


def test_the_unmasked_figures_are_those_of_a_ranking_that_leaves_nothing_out(next_item, settings, tmp_path, untracked):
    reproduce.run(next_item, settings, tmp_path / "data", ["ease"])
    place = Reproduction(settings.root, "small")
    (run,) = results.Results.model_validate(document(settings)).rows[0].runs
    space = place.space(1, "ring")
    split = Split.load(space.prepared, OfficialSplit(mask_seen=False), has_clock=False)
    model, config = Artifact.load(space.model("ease")).model, next_item.evaluation
    alone = judge(model, split, UniformWeights(), ["test"], config, "cpu")["test"]
    users = pq.read_table(place.users(run.key)).to_pandas().set_index("user")
    for metric, values in alone.per_user.items():
        assert users.loc[[split.users.ids[user] for user in alone.users], f"{metric} unmasked"].tolist() == list(values)


@pytest.fixture
def drawn():
    """Of ten draws for 1,500 users."""
    interval = Interval(mean=0.01, low=-0.02, high=0.03)
    return DrawsReport(
        draws=10,
        users=1500,
        cutoff=5,
        bins=[
            ShareBin(above=0.1, up_to=0.2, pairs=30, mean_share=0.2, hit_rate=0.1),
            ShareBin(above=0.4, up_to=0.5, pairs=20, mean_share=0.5, hit_rate=0.3),
            ShareBin(above=0.5, up_to=0.6, pairs=7, mean_share=0.6, hit_rate=0),
            ShareBin(above=0.9, up_to=1.0, pairs=2000, mean_share=1, hit_rate=0.6),
        ],
        auc=0.71,
        calibration_error=0.4,
        by_share={"ndcg@5": 0.24, "recall@5": 0},
        one_draw={"ndcg@5": 0.23, "recall@5": 0},
        gain={"ndcg@5": interval, "recall@5": interval},
        diversity=0.15,
        distinct=6,
        coverage={"one draw": 0.2, "by share": 0.25, "all draws": 0.3},
    )


@pytest.mark.parametrize(("unit", "scale"), [("share", 1), ("percent", 100)])
def test_the_page_says_what_draws_are_good_for(unit, scale, drawn, table, settings, data, untracked):
    reproduce.run(table, settings, data, ["ease", "diffrec"])
    found = results.Results.model_validate(document(settings)).model_copy(update={"unit": unit})
    assert "What draws are good for" not in results.page(found)
    ease, diffrec = found.rows
    asked = [diffrec.runs[0].model_copy(update={"draws": drawn}), diffrec.runs[1]]
    text = results.page(found.model_copy(update={"rows": [ease, diffrec.model_copy(update={"runs": asked})]}))
    ndcg = [f"{scale * value:.4f}" for value in (0.23, 0.24, 0.01, -0.02, 0.03)]
    assert (
        f"| diffrec, seed 1 | 10 | 1,500 | {ndcg[0]} (@5) | {ndcg[1]} | {ndcg[2]} ({ndcg[3]} to {ndcg[4]}) "
        "| 60.00% (1,200 of 2,000) | 18.00% (9 of 50) | 0.710 | 40.00% | 15.00% | 20.00% | 25.00% | 30.00% |"
    ) in text.splitlines()
    assert "| diffrec, seed 2 |" not in text


def test_a_stochastic_row_is_asked_for_its_draws(table, settings, data, untracked, tmp_path):
    text = (tmp_path / "small.yaml").read_text().replace("steps: 3,", "steps: 3, noise_scale: 50, sampling_steps: 2,")
    reproduce.run(a_table(tmp_path, text), settings, data, ["ease", "diffrec"], seeds=1)
    ease, diffrec = results.Results.model_validate(document(settings)).rows
    assert ease.runs[0].draws is None
    assert diffrec.runs[0].draws.diversity > 0


def test_the_epoch_is_chosen_with_what_was_seen_left_out(next_item, settings, tmp_path):
    text = (tmp_path / "small.yaml").read_text().replace("- masked\n", "")
    with pytest.raises(UserError, match="a table has the form masked"):
        a_table(tmp_path, text)
    text = (tmp_path / "small.yaml").read_text().replace("kind: official", "kind: official\n    mask_seen: false")
    with pytest.raises(UserError, match="a table has the form masked"):
        a_table(tmp_path, text)


# --- the tables that come with the program ----------------------------------------------------------------------------


def test_the_tables_are_those_of_the_papers():
    assert table_names() == [
        "diffrec-ml1m-clean",
        "diffrec-ml1m-noisy",
        "next-item-beauty",
        "next-item-ml1m",
        "next-item-toys",
    ]


@pytest.mark.parametrize("name", table_names())
def test_a_table_is_sound_and_is_of_the_file_that_is_shared(name):
    table = load_table(name)
    assert table.main == table.trainer.metric
    for entry in table.rows:
        params = table.params(seed=1)
        params.trainer_for(params.variant(entry, table.dataset_name))
    simple = [one for one in table.rows if table.rows[one].digits]
    assert "most_pop" in simple


@pytest.mark.real
@pytest.mark.parametrize("name", table_names())
def test_the_shared_file_is_the_official_one(name, shared):
    assert reproduce.official_file(load_table(name), Settings(), shared).is_file()


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("metrics: [recall@5, ndcg@5]", "metrics: [recall@5, ndcg@7]", "'ndcg@7' is not measured"),
        ("main: recall@5", "main: recall@50", "main 'recall@50' is not among the metrics"),
        ("  most_pop: {digits", "  moat_pop: {digits", "rows name unknown variants: moat_pop"),
        ("    source: a paper\n", "", "published figures and their source go together"),
        ("{masked: {recall@5: 0.9999}}", "{unmasked: {recall@5: 0.9999}}", "rows.most_pop: figures for what"),
        ("epochs: 3", "epoch: 3", "trainer.epoch: unknown key"),
    ],
)
def test_a_table_that_is_not_consistent_is_refused_by_its_place(table, tmp_path, old, new, fault):
    text = (tmp_path / "small.yaml").read_text()
    assert old in text
    with pytest.raises(UserError, match=re.escape(fault)):
        a_table(tmp_path, text.replace(old, new))


@pytest.mark.parametrize("name", table_names())
def test_the_committed_page_is_of_the_table_as_it_stands(name, repository):
    found, table = read_json(repository / "docs" / "results" / f"{name}.json"), load_table(name)
    stale = [
        run["variant"]
        for row in found["rows"]
        for run in row["runs"]
        if run["key"] != reproduce._key(table, run["variant"], run["seed"], found["data_version"])
    ]
    assert stale == []
    assert found["untrained"] == [name for name in table.rows if name not in {row["variant"] for row in found["rows"]}]


@pytest.mark.parametrize("name", table_names())
def test_what_a_search_found_is_not_searched_again(name):
    """An entry with its number of epochs fixed would be judged at that epoch alone."""
    assert [one for one, entry in load_table(name).entries.items() if one.endswith("_tuned") and entry.search] == []


def test_an_unknown_table_is_refused_with_the_names_of_those_there():
    with pytest.raises(UserError, match="there is no table 'ml-1m'; there are diffrec-ml1m-clean, "):
        load_table("ml-1m")


@pytest.fixture
def searched(tmp_path, data):
    """Whose trials are judged on each user's tenth training row."""
    text = DIFFREC.replace("hidden: [4]}}}}", "hidden: [4]}}, search: {{trainer.learning_rate: [0.001, 0.01]}}}}")
    return a_table(tmp_path, text.format(sha256=sha256(data / "official" / "small.zip")) + "search_on: 0.1\n")


def test_a_search_on_training_rows_reads_no_validation_row(searched, settings, data, untracked):
    tune.for_table(searched, settings, data, "diffrec", 1)
    there = Reproduction(settings.root, "small").searches.space(1, "small").prepared
    names = {name: pq.read_table(there / f"{name}.parquet")["id"].to_pylist() for name in ("users", "items")}
    with zipfile.ZipFile(data / "official" / "small.zip") as archive, archive.open("small/train_list.npy") as member:
        official = np.load(member)
    for part, places in (("train", slice(0, 9)), ("valid", slice(9, 10))):
        found = pq.read_table(there / f"{part}.parquet").to_pandas()
        assert found["user"].nunique() == 60
        for user, rows in found.groupby("user"):
            wanted = official[official[:, 0] == int(names["users"][user])][places, 1].astype(str)
            items = [names["items"][item] if item >= 0 else None for item in rows["item"]]
            assert items == [item if item in names["items"] else None for item in wanted]
    (told,) = [note for note in read_json(there / "report.json")["notes"] if "own validation part" in note]
    assert "120 of the files' own validation part are left out" in told  # two of each user


def test_a_search_on_training_rows_chooses_the_number_of_epochs(searched, settings, data, untracked):
    report = tune.for_table(searched, settings, data, "diffrec", 2)
    kept = read_json(Reproduction(settings.root, "small").result("-tuning.json"))["variants"]["diffrec"]
    assert kept["search_on"] == 0.1
    best = kept["trials"][0]["best_epoch"]
    trainer = YAML(typ="safe").load(report.entry)["diffrec"]["trainer"]
    assert (trainer["epochs"], trainer["evaluate_every"]) == (best, best)


def test_rows_with_time_weights_are_compared_whatever_their_lowest_weight(tmp_path, settings, data, untracked):
    text = DIFFREC.format(sha256=sha256(data / "official" / "small.zip"))
    text = text.replace("ease: {model", "ease: {weighting: {kind: linear, low: 0.1}, model")
    text = text.replace("diffrec: {model", "diffrec: {weighting: {kind: linear, low: 0.4}, model")
    reproduce.run(a_table(tmp_path, text), settings, data, ["most_pop", "ease", "diffrec"], seeds=1)
    assert [(one["simple"], one["learned"]) for one in document(settings)["ahead"]] == [("ease", "diffrec")]
