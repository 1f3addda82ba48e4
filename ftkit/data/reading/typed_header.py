"""The two lines below the header of a table that Orange wrote: the type and the role of each column."""

from dataclasses import replace

from ftkit.data.reading.shards import Shard

# Orange's three-line header: https://orange3.readthedocs.io/projects/orange-data-mining-library/en/latest/reference/data.io.html
_TYPES = {"c", "continuous", "d", "discrete", "s", "string", "text", "t", "time"}
_ROLES = {"", "c", "class", "m", "meta", "i", "ignore"}


def without_types(shard: Shard) -> Shard:
    """Leave out the lines of types and roles, where a table has both.

    Args:
        shard: columns of text, as they stand in the file.

    Returns:
        The rows below these lines, and a note that says so; the same shard where its first two rows are anything else.
    """
    head = [{str(value).strip() for value in row.values()} for row in shard.table.slice(0, 2).to_pylist()]
    is_described = len(head) == 2 and head[0] <= _TYPES and head[1] <= _ROLES and head[1] != {""}
    if not is_described or shard.places is None:
        return shard
    told = f"lines {shard.places[0]} and {shard.places[1]} are the columns' types and roles, not rows"
    return replace(shard, table=shard.table.slice(2), places=shard.places[2:], notes=(*shard.notes, told))
