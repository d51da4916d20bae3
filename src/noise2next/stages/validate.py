"""Hold the ingested log against the contract of its dataset; a breach stops the pipeline here."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from noise2next.config import Params
from noise2next.data.validation_report import ValidationReport
from noise2next.errors import UserError
from noise2next.workspace import Workspace, digest, read_json, require, verify, write_json, writing

log = logging.getLogger(__name__)


def run(params: Params, space: Workspace) -> ValidationReport:
    """Validate `space.dataset` and keep the report and its pages, also of a log that fails.

    Raises UserError, after they are written, where an expectation that blocks is not met.
    """
    source = require(space.ingested, "ingest")
    verify(source)
    from noise2next.data.validation import (
        validate,  # its library takes seconds to load, and what cannot be read never comes here
    )

    with (
        writing(space.validation) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        report, pages = validate(
            space.dataset,
            params.dataset(space.dataset),
            source / "interactions.parquet",
            read_json(source / "report.json"),
            Path(scratch),
        )
        page = (space.validation / "docs" / "index.html").as_posix()
        report = report.model_copy(update={"docs": page, "ingested": digest(source)})
        (folder / "docs").mkdir()
        for name, text in pages.items():
            (folder / "docs" / name).write_text(text, encoding="utf-8")
        write_json(folder / "report.json", report.model_dump(mode="json"))
    for sentence in report.warnings:
        log.warning("%s: %s", space.dataset, sentence)
    if not report.success:
        raise UserError(refusal(report, space))
    log.info("%s: the contract holds for %d rows, %s", space.dataset, report.rows, report.docs)
    return report


def refusal(report: ValidationReport, space: Workspace) -> str:
    """The sentence for a person: what is broken, where it can be seen, what to do."""
    more = f" (and {len(report.breaches) - 1} more, see {report.docs})" if len(report.breaches) > 1 else ""
    quarantine = space.ingested / "quarantine.parquet"
    return f"{report.dataset}: {report.breaches[0]}{more}: see {quarantine} and {report.docs}; {report.remedy}"
