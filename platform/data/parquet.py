"""Turn tables into parquet bytes, the same bytes for the same rows."""

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table) -> bytes:
    """Give `table` as one snappy-compressed parquet file in memory, so that it can be written in one step."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy")
    return sink.getvalue().to_pybytes()
