"""A search over settings: on validation alone, each trial once, and its best in params.yaml with the comments kept."""

import json
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from noise2next.config import Settings, load_params
from noise2next.data.vocabulary import Vocabulary
from noise2next.errors import Diverged, UserError
from noise2next.stages import tune
from noise2next.stages.tables import load_table, table_names
from noise2next.workspace import Workspace, read_json, write_json, writing

USERS, ITEMS = 60, 20
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(device="cpu")
PARAMS = """# whose shop this is
datasets:
  shop:                     # the only one
    path: log.csv
    format: delimited
    columns: {time: t}
    time_unit: order
    split: {kind: leave_one_out}   # the last is test

# how long
trainer: {epochs: 3, batch_size: 16, metric: recall@5, patience: 50}
evaluation: {cutoffs: [5]}
variants:
  plain: {model: noise2next.models.ease.EASE}
  ease:
    model: noise2next.models.ease.EASE
    options: {l2: 3}        # by hand
    search: {options.l2: [1, 10, 100, 1000, 10000]}
  t_ease:
    model: noise2next.models.ease.EASE
    weighting: {kind: linear, low: 0.2, high: 0.9}
    search: {options.l2: [1, 10], weighting.low: [0.3, 0.5]}
  diffrec:
    model: noise2next.models.diffrec.DiffRec
    options: {hidden: [4], steps: 2}
    search:
      options.hidden: [[4], [4, 8]]
      options.noise_min: [0.001, 0.01]
      options.noise_max: [0.005, 0.02]
      trainer.learning_rate: [0.001, 0.01]
"""


@pytest.fixture
def space(tmp_path):
    """A prepared split without a test part: who asks for it fails."""
    made = Workspace(tmp_path, "shop")
    made.params.write_text(PARAMS)
    draw = np.random.default_rng(0)
    taken = [draw.permutation(ITEMS // 2)[:7] + ITEMS // 2 * (user % 2) for user in range(USERS)]
    with writing(made.prepared) as folder:
        for part, first, last in (("train", 0, 6), ("valid", 6, 7)):
            rows = [(user, item) for user, items in enumerate(taken) for item in items[first:last]]
            users, items = (pa.array(column, pa.int32()) for column in zip(*rows, strict=True))
            pq.write_table(pa.table({"user": users, "item": items}), folder / f"{part}.parquet")
        Vocabulary(tuple(f"u{user}" for user in range(USERS))).save(folder / "users.parquet")
        Vocabulary(tuple(f"i{item}" for item in range(ITEMS))).save(folder / "items.parquet")
        write_json(folder / "report.json", {"data_version": "v1"})
    return made


def _entries():
    """Every (where, variant) of params.yaml and of the tables that says what to search."""
    files = {
        "params.yaml": load_params(ROOT / "params.yaml"),
        **{name: load_table(name).params(1) for name in table_names()},
    }
    return [
        pytest.param(one, params.trainer_for(one), id=f"{where}:{one.name}")
        for where, params in files.items()
        for one in [*params.variants.values(), *params.latent_variants.values()]
        if one.search
    ]


@pytest.mark.parametrize(("variant", "trainer"), _entries())
def test_what_we_say_to_search_is_there_to_be_searched_and_holds_what_it_begins_with(variant, trainer):
    tune._check(variant, variant.search)
    assert tune._own(variant, trainer, variant.search) is not None
    for key, values in variant.search.items():
        fitting = [tune._candidate(variant, {key: value}) is not None for value in values]
        assert sum(fitting) > 1 or len(values) == 1, key


LATENT = """
  lightgcn: {model: noise2next.models.light_gcn.LightGCN}
latent_variants:
  latent:
    model: noise2next.models.l_diffrec.LDiffRec
    search: {options.clusters: CLUSTERS, options.dropout: [0.1, 0.5]}
clustering: {most: MOST}
"""


@pytest.fixture
def latent_choices(tmp_path):
    """What a search of a latent variant tries on a catalogue of eight items."""
    made = Workspace(tmp_path, "shop")
    with writing(made.prepared) as folder:
        Vocabulary(tuple("abcdefgh")).save(folder / "items.parquet")

    def possible(clusters, most):
        made.params.write_text(PARAMS + LATENT.replace("CLUSTERS", clusters).replace("MOST", most))
        params = load_params(made.params)
        base = params.variant("latent", made.dataset)
        return tune._possible(params, made, base, params.variants["latent"].search)

    return possible


def test_more_clusters_than_the_catalogue_allows_are_not_tried(latent_choices, caplog):
    assert latent_choices("[1, 4, 5]", "5") == {"options.clusters": (1, 4), "options.dropout": (0.1, 0.5)}
    assert "options.clusters 5 is not tried: it needs 2 items for each of its 5 clusters" in caplog.text
    assert latent_choices("[1, 4]", "3")["options.clusters"] == (1,)
    assert "'latent' wants 4 clusters; raise clustering.most to that" in caplog.text


def test_a_search_among_what_cannot_be_had_is_refused_before_it_begins(latent_choices):
    with pytest.raises(
        UserError, match=r"search\.options\.clusters: shop can have none of its values: it needs 2 items"
    ):
        latent_choices("[5]", "5")


def search(space, variant="diffrec", trials=4, seed=1):
    params = load_params(space.params, [f"seed={seed}"])
    return tune.search(params, space, SETTINGS, variant, trials)


def settings_of(tried):
    return [one.settings for one in tried]


@pytest.fixture
def begun(monkeypatch):
    """The settings of every trial that is trained, in order."""
    heard, begin = [], tune.begin

    def noted(params, variant, split, *rest):
        assert len(split.test) == 0
        heard.append(variant)
        return begin(params, variant, split, *rest)

    monkeypatch.setattr(tune, "begin", noted)
    return heard


def test_trials_are_judged_on_validation_best_first_and_no_setting_comes_twice(space, begun):
    tried = search(space, "ease", 4)
    assert len(begun) == len(tried) == 4
    values = [one.valid for one in tried]
    assert values == sorted(values, reverse=True)
    assert len({json.dumps(one.settings) for one in tried}) == 4
    assert {one.state for one in tried} == {"complete"}


def test_finished_trials_are_not_repeated_and_more_are_added(space, begun):
    first = search(space, "ease", 3)
    assert search(space, "ease", 3) == first
    assert len(begun) == 3
    more = search(space, "ease", 4)
    assert len(begun) == 4
    assert [one for one in more if one in first] == first


def test_the_variants_own_settings_are_tried_first_where_they_lie_in_the_space(space, begun):
    text = space.params.read_text()
    space.params.write_text(text.replace("options: {l2: 3} ", "options: {l2: 1000} "))
    assert [one.settings for one in search(space, "ease", 1)] == [{"options.l2": 1000}]
    assert {"options.l2": 1000} in [one.settings for one in search(space, "ease", 3)]


def test_a_space_that_is_exhausted_ends_the_search(space, begun, caplog):
    tried = search(space, "ease", 9)
    assert sorted(one.settings["options.l2"] for one in tried) == [1, 10, 100, 1000, 10000]
    assert "has no settings left to try after 5 trials" in caplog.text


def test_settings_that_do_not_go_together_are_drawn_anew(space, begun):
    tried = search(space, trials=12)  # all that have noise_min below noise_max
    assert len(tried) == len(begun) == 12
    assert all(one.options["noise_min"] < one.options["noise_max"] for one in begun)
    assert {one.options["hidden"] == [4, 8] for one in begun} == {True, False}


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(space, tmp_path, begun, monkeypatch):
    whole = search(space, trials=6)
    order = [dict(one.options) | dict(one.trainer) for one in begun]
    begun.clear()
    space.tuning("diffrec").unlink()
    begin, heard = tune.begin, []

    def killed(*arguments):
        heard.append(1)
        if len(heard) == 3:
            raise KeyboardInterrupt
        return begin(*arguments)

    monkeypatch.setattr(tune, "begin", killed)
    with pytest.raises(KeyboardInterrupt):
        search(space, trials=6)
    monkeypatch.setattr(tune, "begin", begin)
    again = search(space, trials=6)
    assert [dict(one.options) | dict(one.trainer) for one in begun] == order
    assert settings_of(again) == settings_of(whole)


def test_another_seed_or_other_data_is_another_search(space, begun):
    search(space, "ease", 2)
    search(space, "ease", 2, seed=2)
    assert len(begun) == 4


def test_each_trial_is_trained_as_a_row_would_be_under_the_one_seed(space, monkeypatch):
    asked, fit = [], tune.fit

    def noted(model, train, config, validate, checkpoint, seed, *rest, **named):
        asked.append((seed, config.patience, config.precision))
        return fit(model, train, config, validate, checkpoint, seed, *rest, **named)

    monkeypatch.setattr(tune, "fit", noted)
    settings = Settings(device="cpu", precision="float32")
    tune.search(load_params(space.params, ["seed=7"]), space, settings, "diffrec", trials=3)
    assert asked == [(7, 50, "float32")] * 3


def test_a_trial_behind_the_median_is_broken_off_and_recorded(space, monkeypatch):
    asked = []
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: asked.append(trial.number) or len(set(asked)) == 2)
    tried = search(space, trials=3)
    states = [one.state for one in tried]
    assert sorted(states) == ["complete", "complete", "pruned"]
    pruned = tried[states.index("pruned")]
    assert (pruned.epochs, pruned.best_epoch) == (1, 1)
    assert pruned.valid is not None


@pytest.mark.parametrize("every", [1, 5])
def test_a_trial_has_twenty_judged_epochs_before_it_may_be_broken_off(every):
    study = tune._in_memory(optuna.create_study(direction="maximize"), every)
    for _ in range(5):
        trial = study.ask()
        for judged in range(1, 31):
            trial.report(0.5, judged * every)
        study.tell(trial, 0.5)
    behind = study.ask()
    ended = []
    for judged in range(1, 31):
        behind.report(0.1, judged * every)
        ended += [judged] * int(behind.should_prune())
    assert ended == list(range(20, 31))


def test_a_trial_whose_numbers_run_away_counts_and_comes_last(space, monkeypatch):
    fit, heard = tune.fit, []

    def once(*arguments, **named):
        heard.append(1)
        if len(heard) == 1:
            raise Diverged("training broke down")
        return fit(*arguments, **named)

    monkeypatch.setattr(tune, "fit", once)
    tried = search(space, trials=3)
    assert [one.state for one in tried] == ["complete", "complete", "diverged"]
    assert tried[-1].valid is None


def test_the_best_becomes_the_datasets_preset_and_every_comment_stays(space):
    report = tune.for_dataset(load_params(space.params), space, SETTINGS, "ease", 5)
    text = space.params.read_text()
    assert load_params(space.params).variant("ease", "shop").options == {"l2": report.settings["options.l2"]}
    lost = [line for line in PARAMS.splitlines() if line not in text.splitlines()]
    assert lost == []
    added = [line.strip() for line in text.splitlines() if line not in PARAMS.splitlines()]
    assert added == ["presets:", f"ease: {{options: {{l2: {report.settings['options.l2']}}}}}"]
    assert f"l2: {report.settings['options.l2']}" in report.entry
    assert report.trials == 5


def test_a_preset_keeps_what_the_search_does_not_touch(space):
    text = PARAMS.replace(
        "    split: {kind",
        "    presets:\n      ease: {trainer: {epochs: 9}}   # mine\n      plain: {options: {l2: 4}}\n    split: {kind",
    )
    space.params.write_text(text)
    tune.for_dataset(load_params(space.params), space, SETTINGS, "ease", 2)
    first = load_params(space.params).dataset("shop").presets["ease"]
    assert first.trainer == {"epochs": 9}
    assert set(first.options) == {"l2"}
    tune.for_dataset(load_params(space.params), space, SETTINGS, "t_ease", 2)
    params = load_params(space.params)
    assert params.dataset("shop").presets["ease"] == first
    weighting = params.variant("t_ease", "shop").weighting
    assert (weighting.low in (0.3, 0.5), weighting.high) == (True, 0.9)
    assert "# mine" in space.params.read_text()


def test_a_preset_that_a_search_has_written_is_no_new_search(space, begun):
    tune.for_dataset(load_params(space.params), space, SETTINGS, "ease", 3)
    tune.for_dataset(load_params(space.params), space, SETTINGS, "ease", 4)
    assert len(begun) == 4


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("    search: {options.l2: [1, 10, 100, 1000, 10000]}\n", "", "variant 'ease' says nothing to search"),
        ("{options.l2: [1, 10, 1", "{options.l3: [1, 10, 1", "search.options.l3: no such setting.* options has l2"),
        ("{options.l2: [1, 10, 1", "{l2: [1, 10, 1", "search.l2: no such setting"),
        ("{options.l2: [1, 10, 1", "{weighting.low: [1, 10, 1", "search.weighting.low: no such setting"),
    ],
)
def test_a_search_that_means_nothing_is_refused(space, old, new, fault):
    assert old in PARAMS
    space.params.write_text(PARAMS.replace(old, new))
    with pytest.raises(UserError, match=fault):
        search(space, "ease")


def test_a_search_says_nothing_about_what_is_trained(space):
    params = load_params(space.params)
    assert params.variant("ease", "shop").search == {}


def test_what_a_table_is_searched_for_stands_beside_it(space, monkeypatch, tmp_path):
    from noise2next.stages.tables import Table

    variants = {
        "ease": {"model": "noise2next.models.ease.EASE", "search": {"options.l2": [1, 10, 100]}},
        "other": {"model": "noise2next.models.ease.EASE", "search": {"options.l2": [1, 10, 100]}},
    }
    table = Table(
        name="small",
        title="small",
        file="small.zip",
        sha256="0" * 64,
        dataset_name="shop",
        dataset={"path": "small.zip", "format": "diffrec", "split": {"kind": "official", "history": "train"}},
        metrics=["recall@5"],
        main="recall@5",
        trainer={"metric": "recall@5"},
        evaluation={"cutoffs": [5]},
        variants=variants,
        rows={"ease": {}},
    )
    monkeypatch.setattr(tune.reproduce, "ready", lambda *_: space)
    settings = Settings(root=tmp_path, device="cpu")
    report = tune.for_table(table, settings, None, "ease", 2)
    tune.for_table(table, settings, None, "other", 3)
    found = read_json(tmp_path / "docs" / "results" / "small-tuning.json")
    assert (found["table"], found["metric"]) == ("small", "recall@5")
    assert [len(found["variants"][name]["trials"]) for name in ("ease", "other")] == [2, 3]
    assert found["variants"]["ease"]["trials"][0]["settings"] == report.settings
