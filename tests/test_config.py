"""params.yaml is refused with the place and the remedy, and laid together as a dataset wants it."""

import re
from pathlib import Path

import pytest

from noise2next.config import Noise, Params, load_params, parse_threshold
from noise2next.errors import UserError

MINIMAL = """
datasets:
  shop:
    path: shop/log.csv
    format: delimited
    columns: {user: u, item: i, time: t, rating: r}
    time_unit: s
    presets:
      net: {options: {steps: 3}, trainer: {epochs: 2}, weighting: {kind: linear, low: 0.5, high: 1.0}}
variants:
  net: {model: a.B, options: {steps: 5, width: 7}, trainer: {epochs: 9, batch_size: 4}}
"""


@pytest.fixture
def params_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(MINIMAL)
    return path


def test_a_preset_replaces_only_the_keys_it_names(params_file):
    variant = load_params(params_file).variant("net", "shop")
    assert variant.options == {"steps": 3, "width": 7}
    assert variant.trainer == {"epochs": 2, "batch_size": 4}
    assert variant.weighting.kind == "linear"
    assert variant.name == "net"


def test_noise_is_none_unless_an_entry_or_a_preset_asks_for_it(params_file):
    assert load_params(params_file).variant("net", "shop").noise is None
    asked = load_params(params_file, ["variants.net.noise.share=0.3"])
    assert asked.variant("net", "shop").noise == Noise(share=0.3)
    preset = load_params(params_file, ["variants.net.noise.share=0.3", "datasets.shop.presets.net.noise.share=0.5"])
    assert preset.variant("net", "shop").noise == Noise(share=0.5)


def test_an_override_reaches_a_nested_key(params_file):
    params = load_params(params_file, ["trainer.patience=3", "datasets.shop.split.kind=leave_one_out"])
    assert params.trainer.patience == 3
    assert params.dataset("shop").split.kind == "leave_one_out"


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("path: shop/log.csv", "path: shop/log.csv\n    colour: red", "datasets.shop.colour: unknown key"),
        ("format: delimited", "format: papyrus", "datasets.shop.format"),
        ("epochs: 9", "epochs: 0", "epochs"),
        ("epochs: 9", "epoch: 9", "variants.net.trainer.epoch: unknown key"),
        ("epochs: 2", "epohs: 2", "datasets.shop.presets.net.trainer.epohs: unknown key"),
        ("epochs: 9", "metric: recall@30", "variants.net.trainer.metric: 'recall@30' is not measured"),
        ("path: shop/log.csv", "path: ../log.csv", "must lie below data/"),
        ("format: delimited", "format: delimited\n    separator: ''", "datasets.shop.separator"),
        ("net: {options", "nett: {options", "unknown variant 'nett'"),
        ("low: 0.5", "low: 1.5", "low 1.5 is above high 1.0"),
        ("time_unit: s", "positive: liked", "is not of the form"),
        ("time_unit: s", "max_bad_share: 2", "max_bad_share"),
        ("time_unit: s", "k_core: 2", "global_time needs a clock"),
        ("  shop:", "  Shop Nr 1:", "not a usable name"),
        ("format: delimited", "format: diffrec\n    split: {kind: official}", "set split.history to train"),
        ("format: delimited", "format: diffrec\n    split: {kind: leave_one_out}", "cannot be split again"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_place(params_file, old, new, place):
    text = params_file.read_text()
    assert old in text
    params_file.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=re.escape(place)) as refusal:
        load_params(params_file)
    assert str(params_file) in str(refusal.value)


@pytest.mark.parametrize("broken", ["a: [1", "a: 1\na: 2", "- 1\n- 2", "\x00", ""])
def test_what_is_not_a_mapping_in_yaml_is_refused(tmp_path, broken):
    path = tmp_path / "params.yaml"
    path.write_text(broken)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_params(path)


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="NOISE2NEXT_ROOT"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "override", ["trainer.epochs", "=3", "seed.deeper=1", "trainer.epochs=[", "trainer.nonsense=1"]
)
def test_a_bad_override_is_refused(params_file, override):
    with pytest.raises(UserError):
        load_params(params_file, ["seed=1", override])


def test_unknown_names_are_answered_with_the_known_ones(params_file):
    params = load_params(params_file)
    with pytest.raises(UserError, match="it has shop"):
        params.dataset("market")
    with pytest.raises(UserError, match="it has net"):
        params.variant("web", "shop")


@pytest.mark.parametrize(
    ("text", "found"), [("rating >= 4", (">=", 4.0)), ("rating>3.5", (">", 3.5)), (" rating == 1 ", ("==", 1.0))]
)
def test_a_threshold_is_a_comparison_of_the_rating(text, found):
    assert parse_threshold(text) == found


def test_configuration_cannot_be_changed_after_reading(params_file):
    params = load_params(params_file)
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 2


def test_the_projects_own_params_name_the_entries_of_the_backbone(repository: Path):
    params = load_params(repository / "params.yaml")
    assert isinstance(params, Params)
    assert set(params.variants) >= {"most_pop", "recent_pop", "item_knn", "ease", "t_ease", "diffrec", "t_diffrec"}
    assert "lightgcn" in params.variants


LATENT = "latent_variants:\n  l_net: {model: a.B, options: {clusters: 3}, trainer: {epochs: 7}}\n"


def test_latent_variants_are_read_as_variants_and_keep_their_names(params_file):
    params_file.write_text(params_file.read_text() + LATENT + "clustering: {embeddings: net}\n")
    params = load_params(params_file, ["latent_variants.l_net.options.clusters=4"])
    assert set(params.variants) == {"net", "l_net"}
    assert set(params.latent_variants) == {"l_net"}
    assert params.variant("l_net", "shop").options == {"clusters": 4}
    assert params.variants["l_net"] == params.latent_variants["l_net"]
    assert Params.model_validate(params.model_dump()) == params


@pytest.mark.parametrize(
    ("added", "place"),
    [
        (LATENT, "clustering.embeddings: 'lightgcn' is not among variants"),
        (LATENT + "clustering: {embeddings: l_net}\n", "clustering.embeddings: 'l_net' is not among variants"),
        ("latent_variants:\n  net: {model: a.B}\n", "'net' stands in variants and in latent_variants"),
        (LATENT.replace("epochs: 7", "epoch: 7") + "clustering: {embeddings: net}\n", "latent_variants.l_net.trainer"),
        ("clustering: {most: 0}\n", "clustering.most"),
    ],
)
def test_latent_variants_that_cannot_be_are_refused_by_their_place(params_file, added, place):
    params_file.write_text(params_file.read_text() + added)
    with pytest.raises(UserError, match=re.escape(place)):
        load_params(params_file)
