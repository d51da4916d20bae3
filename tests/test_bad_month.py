"""A bad month of data: the champion goes on serving, and every door says so."""

import dagster as dg
import numpy as np
import pytest
from orchestration.definitions import definitions
from tests import shop


def without_a_column(text):
    return text.replace("item_id", "thing", 1)


def nothing_at_all(text):
    return ""


def a_third_unreadable(text):
    """30 % of the rows, at random."""
    lines = text.splitlines(keepends=True)
    bad = np.random.default_rng(0).random(len(lines)) < 0.3
    return lines[0] + "".join("??\n" if one else line for line, one in zip(lines[1:], bad[1:], strict=True))


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize(
    ("spoil", "step", "sentence"),
    [
        (without_a_column, "interactions", "no column 'item_id' for the item"),
        (nothing_at_all, "interactions", "the log holds no row"),
        (a_third_unreadable, "validation", "are unreadable, above max_bad_share 1.0 %"),
    ],
    ids=["schema broken", "empty", "30 % unreadable"],
)
def test_a_bad_month_leaves_the_champion_serving_and_says_so(first_month, spoil, step, sentence):
    before = shop.champion(first_month)
    log = first_month / "data" / "shop" / "1.csv"
    log.write_text(spoil((first_month / "later" / "2.csv").read_text()))

    job = definitions(first_month).resolve_job_def("retraining")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(partition_key="shop", instance=instance, raise_on_error=False)
    assert not result.success
    materialised = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert materialised.isdisjoint({"split", "model_ease", "champion"})
    if step == "validation":  # a failed blocking check of the asset, with its report
        [check] = [one for one in result.get_asset_check_evaluations() if one.check_name == "contract"]
        assert not check.passed
        said = check.description
    else:
        [failure] = [event for event in result.all_events if event.is_step_failure]
        assert failure.step_key == step
        said = failure.step_failure_data.user_failure_data.description
        assert not any(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)
    assert sentence in said
    assert "Traceback" not in said

    done = shop.command(first_month, "run", "--dataset", "shop")
    assert done.returncode == 2
    [line] = [one for one in done.stderr.splitlines() if one.startswith("error: ")]
    assert sentence in line
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert shop.champion(first_month) == before


def test_a_month_of_made_up_rows_is_readable_and_it_is_the_gate_that_keeps_the_champion(first_month):
    """30 % more rows, each a real user with an item by chance: the contract has nothing against them."""
    before = shop.champion(first_month)
    log = first_month / "data" / "shop" / "1.csv"
    rows = [line.split(",") for line in log.read_text().splitlines()[1:]]
    dice = np.random.default_rng(0)
    users, items, times = (dice.choice([row[place] for row in rows], size=int(0.3 * len(rows))) for place in range(3))
    made_up = "".join(f"{user},{item},{time}\n" for user, item, time in zip(users, items, times, strict=True))
    (log.parent / "2.csv").write_text(shop.HEADER + made_up)

    report = shop.run(first_month)
    assert report.registration.decision is not None
    assert not report.registration.promoted
    assert "above the champion" in report.registration.summary
    assert shop.champion(first_month) == before
