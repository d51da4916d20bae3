"""The contract of a dataset as a Great Expectations suite, its report, and its page for people.

Two tables are held against it: the accepted rows themselves, and their one-row profile, which was measured over every
row out of core. Logs of more than ROW_BUDGET rows are judged by the profile alone, which covers the same ground, so
memory stays bounded. Great Expectations reaches no network and reports to no one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from noise2next.config import Dataset
from noise2next.data.profile import PARTS, Profile, measure, wrong_columns
from noise2next.data.validation_report import Finding, ValidationReport, figure, percent

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read while it is imported
import great_expectations as gx
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_not_be_in_set import ExpectColumnValuesToNotBeInSet
from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaSectionView

# It tells of each folder that it makes, at a level of its own.
logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)

ROW_BUDGET = 2_000_000
FINITE = 1.7e308  # the largest doubles, so that only infinities lie outside

ROWS, PROFILE = "interactions", "profile"


@dataclass(frozen=True)
class Check:
    """An expectation in plain words. `breach` may name the profile's facts as {read}, shares as {bad_share}."""

    name: str
    meaning: str
    expected: str
    expectation: Expectation
    breach: str
    remedy: str = "mend the log and ingest it again"
    blocking: bool = True


def validate(
    name: str, dataset: Dataset, interactions: Path, ingested: Mapping[str, Any], scratch: Path
) -> tuple[ValidationReport, dict[str, str]]:
    """Hold the accepted rows of dataset `name` against its contract: the report, and its pages {file name: HTML}.

    interactions: the Parquet file of accepted rows; ingested: the report of the step `ingest`; scratch: a folder that
    the measurement may spill into.
    """
    wrong = wrong_columns(interactions, dataset)
    profile: Profile = {"wrong_columns": len(wrong), "rows": pq.read_metadata(interactions).num_rows}
    checks, frames = {PROFILE: [_columns_check(wrong)]}, {}
    if not wrong:
        profile |= measure(interactions, ingested, dataset, scratch)
        checks[PROFILE] += _profile_checks(dataset, profile)
        if profile["rows"] <= ROW_BUDGET:
            frames[ROWS] = pq.read_table(interactions, read_dictionary=["user", "item", "split"]).to_pandas()
            checks[ROWS] = _row_checks(dataset, list(frames[ROWS].columns))
    frames[PROFILE] = pd.DataFrame([profile])
    results = {table: _hold(f"{name}: {table}", frames[table], checks[table]) for table in checks}
    report = _report(name, profile, checks, results)
    return report, _pages(report, results, ingested)


# --- the contract -----------------------------------------------------------------------------------------------------


def _columns_check(wrong: Sequence[str]) -> Check:
    return _bounded(
        "wrong_columns",
        "The columns that the dataset's entry promises are there, each with its type.",
        "none wrong",
        f"the accepted rows lack what params.yaml promises ({', '.join(wrong)})",
        high=0,
        remedy="mend `columns`, `time_unit` or `split` in params.yaml, or ingest again",
    )


def _profile_checks(dataset: Dataset, profile: Profile) -> list[Check]:
    """Worst first: where one fault brings others, the first names the cause."""
    checks = [
        _bounded(
            "bad_share",
            "Few rows of the log are unreadable; exact duplicates do not count as such.",
            f"at most {percent(dataset.max_bad_share)}",
            f"{{bad_share}} of {{read}} rows are unreadable, above max_bad_share {percent(dataset.max_bad_share)}",
            high=dataset.max_bad_share,
            remedy="mend the log or raise max_bad_share in params.yaml",
        ),
        _none("unaccounted", "Every row read is accepted or quarantined.", "rows neither accepted nor quarantined"),
        _bounded(
            "rows",
            "The file of accepted rows holds what the ingestion reported.",
            f"{profile['accepted']:,}",
            "the file of accepted rows holds {rows} rows and the ingestion reported {accepted}",
            low=profile["accepted"],
            high=profile["accepted"],
            remedy="ingest the log again",
        ),
        _at_least("users", 2, "There are at least two users.", "there are too few users ({users})"),
        _at_least("items", 2, "There are at least two items.", "there are too few items ({items})"),
        _none("empty_users", "Every row names its user.", "rows without a user"),
        _none("empty_items", "Every row names its item.", "rows without an item"),
        _none("out_of_order", "Row numbers count up, so that ties in time are broken the same way everywhere.",
              "rows out of the order of reading"),
    ]  # fmt: skip
    return [*checks, *_time_checks(dataset), *_meaning_checks(dataset), *_split_checks(dataset), *_shape_checks()]


def _time_checks(dataset: Dataset) -> list[Check]:
    if not dataset.has_order:
        return []
    checks = [_none("empty_times", "Every row has its time.", "rows without a time")]
    if not dataset.has_clock:
        return [*checks, _none("early_times", "Places in the order count from zero.", "rows with a negative place")]
    return [
        *checks,
        _none("early_times", "No row is older than 1970.", "rows older than 1970"),
        _none("future_times", "No row lies in the future.", "rows in the future"),
    ]


def _meaning_checks(dataset: Dataset) -> list[Check]:
    checks = []
    if dataset.columns.rating is not None:
        checks.append(_none("endless_ratings", "Ratings are finite numbers.", "ratings that are NaN or infinite"))
    if dataset.positive is not None:
        checks.append(
            _at_least(
                "positive_rows",
                1,
                f"Some rows count as positive: {dataset.positive}.",
                f"no row has {dataset.positive}",
                "mend `positive` in params.yaml",
            )
        )
    return checks


def _split_checks(dataset: Dataset) -> list[Check]:
    """That the split and the filter that params.yaml names can be made at all."""
    split = dataset.split.kind
    if split == "official":
        return [
            _none("unknown_parts", "Every row belongs to train, valid or test.", "rows of no part"),
            *(
                _at_least(f"{part}_rows", 1, f"The part {part} has rows.", f"the part {part} is empty")
                for part in PARTS
            ),
        ]
    checks = []
    if dataset.k_core > 1:
        for one in ("user", "item"):
            meaning = f"Some {one}s have the {dataset.k_core} rows that k_core asks for."
            breach, remedy = f"no {one} has k_core {dataset.k_core} rows", "lower k_core in params.yaml"
            checks.append(_at_least(f"{one}s_of_core", 1, meaning, breach, remedy))
    remedy = "name another split in params.yaml"
    if split == "global_time":
        checks.append(
            _bounded(
                "days",
                "Time passes between the first row and the last, so that windows can be cut.",
                "more than 0",
                "all rows have the same time, which global_time cannot cut",
                low=1e-12,
                remedy=remedy,
            )
        )
    else:
        meaning = f"Some users have the three rows that the split {split} cuts."
        checks.append(_at_least("users_of_three", 1, meaning, f"no user has the three rows that {split} cuts", remedy))
    return checks


def _shape_checks() -> list[Check]:
    """What a person should know, and may be as it should be."""
    return [
        _bounded(
            "largest_item_share",
            "No single item dominates the log.",
            "at most 25.0 %",
            "one item has {largest_item_share} of the rows, so popularity alone will score well",
            high=0.25,
            blocking=False,
        ),
        _bounded(
            "duplicate_share",
            "Few rows are exact duplicates of another.",
            "at most 10.0 %",
            "{duplicate_share} of the rows are exact duplicates, which were set aside",
            high=0.1,
            blocking=False,
        ),
    ]


def _row_checks(dataset: Dataset, columns: Sequence[str]) -> list[Check]:
    """The same law row by row, for the columns that are there."""
    checks = []
    for name, lack in (("user", "rows without a user"), ("item", "rows without an item")):
        filled = ExpectColumnValuesToNotBeNull(column=name)
        named = ExpectColumnValuesToNotBeInSet(column=name, value_set=[""])
        checks.append(Check(f"{name}_present", f"Every row has its {name}.", "no nulls", filled, lack))
        checks.append(Check(f"{name}_named", f"No {name} is an empty text.", "some text", named, lack))
    if dataset.has_order:
        timed = ExpectColumnValuesToNotBeNull(column="time")
        checks.append(Check("time_present", "Every row has its time.", "no nulls", timed, "rows without a time"))
    if "time" in columns:
        late = ExpectColumnValuesToBeBetween(column="time", min_value=0)
        if dataset.has_clock:
            meaning, lack = "Times are microseconds since 1970.", "rows older than 1970"
        else:
            meaning, lack = "Times are places in the order.", "rows with a negative place"
        checks.append(Check("time_in_range", meaning, "0 or more", late, lack))
    if "rating" in columns:
        finite = ExpectColumnValuesToBeBetween(column="rating", min_value=-FINITE, max_value=FINITE)
        lack = "ratings that are NaN or infinite"
        checks.append(Check("rating_in_range", "Ratings are finite.", "a finite number", finite, lack))
    if "split" in columns:
        known = ExpectColumnValuesToBeInSet(column="split", value_set=list(PARTS))
        checks.append(Check("split_known", "Rows name a known part.", ", ".join(PARTS), known, "rows of no part"))
    return checks


def _bounded(
    name: str,
    meaning: str,
    expected: str,
    breach: str,
    low: float | None = None,
    high: float | None = None,
    remedy: str = Check.remedy,
    blocking: bool = True,
) -> Check:
    between = ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high)
    return Check(name, meaning, expected, between, breach, remedy, blocking)


def _none(name: str, meaning: str, what: str) -> Check:
    return _bounded(name, meaning, "0", f"there are {what} ({{{name}}} of {{rows}})", low=0, high=0)


def _at_least(name: str, low: int, meaning: str, breach: str, remedy: str = Check.remedy) -> Check:
    return _bounded(name, meaning, f"at least {low}", breach, low=low, remedy=remedy)


# --- holding a table against it ---------------------------------------------------------------------------------------


def _hold(title: str, frame: pd.DataFrame, checks: Sequence[Check]) -> ExpectationSuiteValidationResult:
    """Great Expectations' verdict, its results in the order of `checks`."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    suite = gx.ExpectationSuite(name=title)
    for check in checks:
        expectation = check.expectation
        expectation.meta = {"name": check.name}
        expectation.notes = check.meaning
        expectation.severity = FailureSeverity.CRITICAL if check.blocking else FailureSeverity.WARNING
        suite.add_expectation(expectation)
    asset = context.data_sources.add_pandas(title).add_dataframe_asset(title)
    batch = asset.add_batch_definition_whole_dataframe(title).get_batch({"dataframe": frame})
    return batch.validate(suite, result_format="SUMMARY")


def _report(
    name: str,
    profile: Profile,
    checks: Mapping[str, Sequence[Check]],
    results: Mapping[str, ExpectationSuiteValidationResult],
) -> ValidationReport:
    findings, broken = [], []
    for table in checks:
        outcomes = {_name(one): one for one in results[table].results}
        for check in checks[table]:
            findings.append(_finding(table, check, outcomes[check.name], profile))
            if not findings[-1].success:
                broken.append((check, findings[-1]))
    return ValidationReport(
        dataset=name,
        success=not any(check.blocking for check, _ in broken),
        rows=int(profile["rows"]),
        row_checks=_row_scope(checks, profile),
        expectations=tuple(findings),
        breaches=_sentences([pair for pair in broken if pair[0].blocking], profile),
        warnings=_sentences([pair for pair in broken if not pair[0].blocking], profile),
        remedy=next((check.remedy for check, _ in broken if check.blocking), None),
        profile=profile,
    )


def _name(outcome: ExpectationValidationResult) -> str:
    if outcome.expectation_config is None:
        raise ValueError("a result without its expectation")
    return str(outcome.expectation_config.meta["name"])


def _finding(table: str, check: Check, outcome: ExpectationValidationResult, profile: Profile) -> Finding:
    if table == PROFILE:
        observed = figure(check.name, profile[check.name])
    else:
        observed = f"{outcome.result['unexpected_count']:,} of {outcome.result['element_count']:,} rows are not so"
    return Finding(
        name=check.name,
        meaning=check.meaning,
        table=table,
        blocking=check.blocking,
        success=bool(outcome.success),
        expected=check.expected,
        observed=observed,
    )


def _sentences(broken: Sequence[tuple[Check, Finding]], profile: Profile) -> tuple[str, ...]:
    """One a fault, though both tables may have found it."""
    return tuple(dict.fromkeys(_sentence(check, finding, profile) for check, finding in broken))


def _sentence(check: Check, finding: Finding, profile: Profile) -> str:
    if finding.table == ROWS:
        return f"there are {check.breach} ({finding.observed.split()[0]} of {profile['rows']:,})"
    said = check.breach
    for name, value in profile.items():
        said = said.replace(f"{{{name}}}", figure(name, value))
    return said


def _row_scope(checks: Mapping[str, Sequence[Check]], profile: Profile) -> str:
    if ROWS in checks:
        return f"Great Expectations read each of the {profile['rows']:,} accepted rows."
    if profile["wrong_columns"]:
        return "Rows were not read: their columns are not the promised ones."
    return (
        f"The log has {profile['rows']:,} accepted rows, above the {ROW_BUDGET:,} that are read one by one; "
        "the profile was measured over all of them."
    )


# --- the page for people ----------------------------------------------------------------------------------------------


def _pages(
    report: ValidationReport, results: Mapping[str, ExpectationSuiteValidationResult], ingested: Mapping[str, Any]
) -> dict[str, str]:
    """A summary, and behind it the sections that Great Expectations renders, framed so that they read without a net.

    Its own site takes style sheets, fonts and scripts from five servers and is blank without them.
    """
    environment = Environment(
        loader=PackageLoader("noise2next.data", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = percent
    page = environment.get_template("validation.html")
    shared = {"report": report, "tables": list(results), "version": gx.__version__}
    pages = {"index.html": page.render(**shared, table=None, ingested=ingested)}
    renderer: Any = ValidationResultsPageRenderer()
    view: Any = DefaultJinjaSectionView()
    for table, result in results.items():
        sections = renderer.render(result).to_json_dict()["sections"][1:]  # the first is its own overview
        rendered = [Markup(view.render({"section": one, "section_loop": {}})) for one in sections]
        pages[f"{table}.html"] = page.render(**shared, table=table, sections=rendered)
    return pages
