"""Read the records of a Source in any format: one bad record never costs a good one."""

from collections.abc import Callable, Iterator

from stages.contract.errors import UserError
from stages.contract.params import Source
from stages.corpus.reading.formats import format_of
from stages.corpus.reading.rejections import Record, Rejected, Rejections, excerpt, summary
from stages.corpus.reading.sources import source_files

ReadAgain = Callable[[], tuple[list[Record], Rejections]]  # `read_records` of one source, cached for several readers


def read_records(source: Source) -> tuple[list[Record], Rejections]:
    """Return every JSON object, Parquet row and text file of ``source``, and the rejected records.

    Raises:
        UserError: no such path, no matching file, a file of unknown type, no usable record.
    """
    records: list[Record] = []
    rejected = Rejections()
    for item in each_record(source):
        if isinstance(item, Record):
            records.append(item)
        else:
            rejected.append(item)
    if not records:
        raise UserError(f"{source.path}: no readable record; {summary(rejected)}.")
    return records, rejected


def each_record(source: Source) -> Iterator[Record | Rejected]:
    """Yield the records of ``source`` and the rejected ones, in order of files and lines.

    Fields that ``source.fields`` names have both names.

    Raises:
        UserError: no such path, no matching file, a file of unknown type.
    """
    given = list(source.fields.items())
    for path, name in source_files(source):
        for item in format_of(name).records(path, name):
            if isinstance(item, Record):
                item.value.update({own: item.value[theirs] for own, theirs in given if theirs in item.value})
                if not item.value:
                    item = Rejected(name, item.line, "no fields", excerpt(item.value))
            yield item
