"""Rows whose text is not nearly that of an earlier one."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.data.near.pairs import nearest
from ftkit.data.near.shingles import shingles


def apart(rows: pa.Table, least: float) -> tuple[NDArray[np.int64], bool]:
    """Leave out each row whose text is nearly that of an earlier one.

    Args:
        rows: a table that `select_rows` gave.
        least: the least similarity of two near texts.

    Returns:
        The places of the rows that stay, int64 [rows], ascending; and whether all that could be near were compared.

    Raises:
        DataError: there is no room on the disk.
    """
    # Once, among all rows: what nine of ten texts have does not count, and among those that stay it might.
    found = nearest(shingles([rows]), np.zeros(rows.num_rows, np.int8), least)
    return np.flatnonzero((found.partner < 0).all(axis=0)), bool(found.is_whole.all())
