import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.reading import batches as module
from stages.corpus.reading.batches import batches, codes, count, head
from tests.corpus.helpers import table


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 5000), st.integers(1, 100))
def test_from_any_row_on_every_document_comes_once_in_order(tmp_path_factory, rows, skip, size, group):
    documents = table(f"text {k} " * (k % 7) for k in range(rows))
    path = tmp_path_factory.mktemp("batches") / "documents.parquet"
    pq.write_table(documents, path, row_group_size=group)
    before, module.BATCH_BYTES = module.BATCH_BYTES, size
    try:
        for given_as in (path, documents):
            found = list(batches(given_as, ["id", "text"], skip))
            assert all(part.num_rows for part in found)
            rest = documents.select(["id", "text"]).slice(skip)
            assert pa.concat_tables(found).equals(rest) if found else not len(rest)
    finally:
        module.BATCH_BYTES = before


def test_a_file_tells_what_its_table_tells(tmp_path):
    documents = table(["a", "b", "c"]).set_column(2, "source", pa.array(["x", "y", "x"], pa.large_string()))
    pq.write_table(documents, tmp_path / "documents.parquet")
    for given_as in (tmp_path / "documents.parquet", documents):
        names, owner = codes(given_as, "source")
        assert [names[k] for k in owner.tolist()] == ["x", "y", "x"]
        assert count(given_as) == 3 and head(given_as, "text", 2) == ["a", "b"]
