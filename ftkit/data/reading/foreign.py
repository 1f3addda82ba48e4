"""A method of openpyxl that is not public.

It says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed library for it.
"""

from contextlib import AbstractContextManager
from typing import IO, Any


def sheet_xml(sheet: Any) -> AbstractContextManager[IO[bytes]]:
    """Open the XML of a sheet that is read row by row: `_get_source` (openpyxl 3.1, worksheet/_read_only.py).

    Args:
        sheet: of a workbook that was opened to be read only, where openpyxl tells of no merged cells and hidden rows.
    """
    source: AbstractContextManager[IO[bytes]] = sheet._get_source()
    return source
