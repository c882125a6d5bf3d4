"""The Spark session, and the code that its workers run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.workflow.code import ROOT
from pipeline.workflow.outputs import whole
from pipeline.workflow.places import work

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

EXTRA = 'pip install -e ".[spark]"'
SETTINGS = {  # of the session; each is one that results depend on, or memory
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(1 << 16),  # lines of a piece
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.adaptive.enabled": "true",
}


@contextlib.contextmanager
def session() -> Iterator[SparkSession]:
    """A session of the running Spark application, or of a new one, which is stopped at the end of the block.

    A new one runs where Spark's own configuration says (``spark.master``), else on all cores of this machine. The
    workers run the Python of ``PYSPARK_PYTHON``, else this one. They get the code of ``pipeline``, and need NumPy,
    pyarrow, pydantic and tqdm.

    Raises:
        ValueError: if pyspark or Java is missing; the message has the remedy.
    """
    try:
        from pyspark import SparkConf
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError(
            f"params.yaml: encode.engine: spark needs the package pyspark; install it with {EXTRA}, or set it to local"
        ) from error
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
        running = SparkSession.getActiveSession()
        try:
            conf = SparkConf().setAppName("encode").setIfMissing("spark.master", "local[*]")
            conf.setIfMissing("spark.ui.showConsoleProgress", str(sys.stderr.isatty()).lower())
            conf.setIfMissing("spark.driver.maxResultSize", "0")  # vocabularies must fit in memory, and no more is sent
            application = running or SparkSession.builder.config(conf=conf).getOrCreate()
        except PySparkRuntimeError as error:
            raise ValueError(f"Spark does not start ({error}); install Java 17 and set JAVA_HOME to it") from error
        try:
            own = application.newSession()
            for name, value in SETTINGS.items():
                own.conf.set(name, value)
            own.sparkContext.addPyFile(str(_packed()))
            yield own
        finally:
            if running is None:
                application.stop()


def _packed() -> Path:
    """The code of ``pipeline`` in a zip, which has another name for other code. Workers may ask for it at any time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((ROOT / "pipeline").rglob("*.py")):
            archive.writestr(zipfile.ZipInfo(str(file.relative_to(ROOT))), file.read_bytes())
    path = work("spark", f"pipeline-{hashlib.sha256(packed.getvalue()).hexdigest()[:16]}.zip")
    if not path.exists():
        with whole(path) as draft:
            draft.write_bytes(packed.getvalue())
    return path
