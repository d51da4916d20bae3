"""What is said of a log that was held against its contract: the report, and its figures for a reader."""

from __future__ import annotations

from noise2next.config import Frozen


class Finding(Frozen):
    """One expectation and what was found. `blocking`: the pipeline stops when it is not met."""

    name: str
    meaning: str
    table: str  # interactions: row by row; profile: measured over all rows
    blocking: bool
    success: bool
    expected: str
    observed: str


class ValidationReport(Frozen):
    """`success`: nothing that blocks was breached. `breaches` and `warnings` are sentences, worst first."""

    dataset: str
    success: bool
    rows: int
    row_checks: str  # whether the expectations on rows ran
    expectations: tuple[Finding, ...]
    breaches: tuple[str, ...]
    warnings: tuple[str, ...]
    remedy: str | None  # of the first breach
    profile: dict[str, int | float]
    docs: str = ""  # where a person finds index.html
    ingested: str = ""  # digest of the folder of accepted rows that was held against the contract


def figure(name: str, value: float) -> str:
    """A fact of the profile for a reader: shares in per cent, counts with their thousands apart."""
    if name.endswith("_share"):
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def percent(share: float) -> str:
    """`30.0 %`; more digits where one would round a difference away."""
    value = 100 * share
    return f"{value:.1f} %" if abs(value) >= 10 or abs(round(value, 1) - value) < 1e-9 else f"{value:.4g} %"
