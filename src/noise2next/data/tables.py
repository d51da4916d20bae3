"""Where table expressions are computed: DuckDB, embedded and out of core, or Spark. Both are spoken to in Ibis only.

Intermediate results are Parquet below a scratch folder, so memory stays bounded and expressions do not nest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.backends import BaseBackend

from noise2next.errors import UserError

MEMORY = "1500MB"  # DuckDB spills to the scratch folder above this
ROW_GROUP = 1 << 20
JAVA = 17  # the oldest that Spark 4 runs on
SPARK_LOGGING = """\
rootLogger.level = error
rootLogger.appenderRef.terminal.ref = terminal
appender.terminal.type = Console
appender.terminal.name = terminal
appender.terminal.target = SYSTEM_ERR
appender.terminal.layout.type = PatternLayout
appender.terminal.layout.pattern = spark: %p %c{1}: %m%n
"""


@contextlib.contextmanager
def connect(engine: Literal["duckdb", "spark"], scratch: Path) -> Iterator[BaseBackend]:
    """An Ibis backend that spills below `scratch` and is closed at the end.

    Raises UserError where Spark is asked for and pyspark or Java is missing.
    """
    open_backend = _spark if engine == "spark" else _duckdb
    with open_backend(scratch) as backend:
        yield backend


def stored(table: ir.Table, path: Path) -> ir.Table:
    """`table` computed once, written to `path` as Parquet in its own order, and read from there ever after."""
    backend = table.get_backend()
    backend.to_parquet(table, path)
    return backend.read_parquet(path, table_name=ibis.util.gen_name(path.stem))


def rows_in(path: Path) -> int:
    """Rows of a Parquet file or of a folder of them, read from their footers alone."""
    return sum(pq.read_metadata(file).num_rows for file in _files(path))


def write_ordered(table: ir.Table, schema: pa.Schema, path: Path, scratch: Path) -> int:
    """Write an ordered `table` to one Parquet file and return its rows.

    The bytes depend on the rows and `schema` alone, not on the engine or on how it cuts its batches.
    """
    table.get_backend().to_parquet(table, scratch)
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _row_groups(_batches(scratch, schema.names), schema):
            writer.write_table(group, row_group_size=ROW_GROUP)
            rows += len(group)
    _remove(scratch)
    return rows


def _batches(place: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file in _files(place):
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(batch_size=ROW_GROUP, columns=columns)


def _files(place: Path) -> list[Path]:
    """In order: DuckDB writes one file, Spark a folder whose files are numbered by their place."""
    return sorted(place.glob("part-*")) if place.is_dir() else [place]


def _row_groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows as tables of ROW_GROUP contiguous rows, the last one shorter."""
    waiting = schema.empty_table()
    for batch in batches:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
        while len(waiting) >= ROW_GROUP:
            yield waiting[:ROW_GROUP].combine_chunks()
            waiting = waiting[ROW_GROUP:]
    if len(waiting):
        yield waiting.combine_chunks()


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()


@contextlib.contextmanager
def _duckdb(scratch: Path) -> Iterator[BaseBackend]:
    backend = ibis.duckdb.connect(":memory:", memory_limit=MEMORY, temp_directory=str(scratch / "spill"))
    backend.settings["enable_progress_bar"] = False  # it would write over what the command line prints
    try:
        yield backend
    finally:
        backend.disconnect()


@contextlib.contextmanager
def _spark(scratch: Path) -> Iterator[BaseBackend]:
    """A local session, or the one that the process has already, which is then left running."""
    if importlib.util.find_spec("pyspark") is None:
        raise UserError("engine: spark needs pyspark: install noise2next[spark], or set engine: duckdb in params.yaml")
    _require_java()
    from pyspark.sql import SparkSession  # heavy, and an extra: only those who ask for it have it

    running = SparkSession.getActiveSession()
    session: Any = running or _new_session(SparkSession.builder, scratch)
    zone = session.conf.get("spark.sql.session.timeZone")
    session.conf.set("spark.sql.session.timeZone", "UTC")
    try:
        yield ibis.pyspark.connect(session)
    finally:
        if running is None:
            session.stop()
        else:
            session.conf.set("spark.sql.session.timeZone", zone)


def _new_session(builder: Any, scratch: Path) -> Any:
    quiet = scratch / "log4j2.properties"
    quiet.write_text(SPARK_LOGGING, encoding="utf-8")
    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={quiet.absolute().as_uri()}",
        "spark.driver.memory": "2g",
        "spark.local.dir": str(scratch.absolute()),
        "spark.sql.shuffle.partitions": str(4 * (os.cpu_count() or 1)),
        "spark.sql.warehouse.dir": str((scratch / "warehouse").absolute()),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.master("local[*]").appName("noise2next").getOrCreate()


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    remedy = f"install Java {JAVA} or newer and set JAVA_HOME, or set engine: duckdb in params.yaml"
    if java is None:
        raise UserError(f"engine: spark needs Java, and none was found: {remedy}")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < JAVA:
        raise UserError(f"engine: spark needs Java {JAVA} or newer, and {java} is not that: {remedy}")
