"""Real logs as their publishers ship them: in with one call, out as recommendations."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from noise2next.config import Settings, load_params
from noise2next.stages import datasets, pipeline, recommend
from noise2next.workspace import Workspace, read_json

PARAMS = """
datasets: {}
variants:
  most_pop: {model: noise2next.models.popularity.MostPop}
  item_knn: {model: noise2next.models.item_knn.ItemKNN}
"""

LOGS = {  # file: options of `datasets add`, rows read, reasons
    "ml-100k.zip": ({"positive": "rating >= 4"}, 100_000, {}),
    "ml-1m_partial.zip": ({"positive": "rating >= 4", "k_core": 10}, 663_062, {}),
    "ml-latest-small.zip": ({"positive": "rating >= 4"}, 100_836, {}),
    "amazon_2014_Musical_Instruments_5.json.gz": ({}, 10_261, {}),
    "amazon_2018_All_Beauty_5.json.gz": ({}, 5_269, {"duplicate": 1_103}),
    "hetrec2011-lastfm-2k_tags_ms.inter.gz": ({}, 64_286, {"impossible time": 2}),
    "hetrec2011-lastfm-2k_no_timestamps.zip": ({}, 92_834, {}),
}


@pytest.mark.real
@pytest.mark.parametrize("name", LOGS)
def test_a_log_goes_in_with_one_call_and_comes_out_as_recommendations(name, shared, repository, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "version", lambda space: None)  # DVC itself has its own test
    options, rows, reasons = LOGS[name]
    space, settings = Workspace(tmp_path, "shop"), Settings(root=tmp_path, device="cpu")
    space.params.write_text(PARAMS)
    space.promotion_policy.parent.mkdir()
    shutil.copy(repository / "mlflow" / "promotion.yaml", space.promotion_policy)
    datasets.add(tmp_path, "shop", shared / "raw" / name, **options)
    params = load_params(space.params)
    report = pipeline.run(params, space, settings, None)
    ingested, prepared = read_json(space.ingested / "report.json"), read_json(space.prepared / "report.json")
    assert ingested["read"] == rows == ingested["accepted"] + ingested["quarantined"]
    assert ingested["reasons"] == reasons
    assert pq.read_metadata(space.ingested / "quarantine.parquet").num_rows == sum(reasons.values())
    assert report.registration.champion is not None
    user = first_id(space.prepared / "users.parquet")
    assert len(recommend.for_user(params, space, settings, user, 5).items) == 5
    item = first_id(space.prepared / "items.parquet")
    bare = recommend.for_history(params, space, settings, [item], 5).items
    assert len(bare) == 5
    assert item not in bare
    if name == "ml-1m_partial.zip":
        assert prepared["rows"]["after_k_core"] == 571_531
        assert (prepared["users"], prepared["items"]) == (5_949, 2_810)


def first_id(path: Path) -> str:
    return pq.read_table(path).column("id")[0].as_py()
