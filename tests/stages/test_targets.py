"""The stages of dvc.yaml that make some variants and not every one."""

import pytest

from noise2next.config import Params
from noise2next.errors import UserError
from noise2next.stages import targets
from noise2next.workspace import Workspace

PARAMS = Params.model_validate(
    {
        "datasets": {
            "shop": {"path": "s.csv", "format": "delimited", "columns": {"time": "t"}, "time_unit": "s"},
            "still": {"path": "s.csv", "format": "delimited", "split": {"kind": "random"}},
        },
        "variants": {
            "most_pop": {"model": "noise2next.models.popularity.MostPop"},
            "lightgcn": {"model": "noise2next.models.light_gcn.LightGCN"},
            "ease": {"model": "noise2next.models.ease.EASE", "options": {"l2": 3}},
            "recent_pop": {
                "model": "noise2next.models.popularity.MostPop",
                "weighting": {"kind": "exponential", "half_life_days": 30},
            },
        },
        "latent_variants": {"l_diffrec": {"model": "noise2next.models.l_diffrec.LDiffRec", "options": {"clusters": 2}}},
    }
)


def named(tmp_path, dataset, variants, baseline="baseline: {variant: most_pop}"):
    space = Workspace(tmp_path, dataset)
    space.promotion_policy.parent.mkdir(exist_ok=True)
    space.promotion_policy.write_text(f"metric: recall@20\n{baseline}\n")
    return targets.run(PARAMS, space, variants).stages


def test_a_variant_is_made_by_its_judging_and_a_latent_one_by_its_own(tmp_path):
    chosen = ["lightgcn", "most_pop", "l_diffrec", "ease"]
    assert named(tmp_path, "shop", chosen) == [
        "evaluate@shop-lightgcn",
        "evaluate@shop-most_pop",
        "evaluate_latent@shop-l_diffrec",
        "evaluate@shop-ease",
    ]


def test_what_the_gate_asks_them_to_beat_and_what_they_stand_on_is_made_too(tmp_path):
    assert named(tmp_path, "shop", ["ease"]) == ["evaluate@shop-most_pop", "evaluate@shop-ease"]
    assert named(tmp_path, "shop", ["ease"], "") == ["evaluate@shop-ease"]
    assert named(tmp_path, "shop", ["ease"], "baseline: {variant: elsewhere}") == ["evaluate@shop-ease"]
    assert named(tmp_path, "shop", ["l_diffrec"], "") == ["evaluate@shop-lightgcn", "evaluate_latent@shop-l_diffrec"]


def test_all_that_a_dataset_can_have_are_meant_where_none_is_named(tmp_path):
    assert named(tmp_path, "still", None) == [
        "evaluate@still-most_pop",
        "evaluate@still-lightgcn",
        "evaluate@still-ease",
        "evaluate_latent@still-l_diffrec",
    ]


@pytest.mark.parametrize(
    ("variant", "reason"), [("nobody", "no variant 'nobody'"), ("recent_pop", "cannot be trained")]
)
def test_a_variant_that_cannot_be_is_refused_by_name(tmp_path, variant, reason):
    with pytest.raises(UserError, match=reason):
        named(tmp_path, "still", ["ease", variant])
