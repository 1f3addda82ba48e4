"""Files, hub names and demo data to token arrays, with label names and the data's own report."""

from ftkit.data.arrays import PreparedData, TokenSplit
from ftkit.data.encode import encode_texts
from ftkit.data.prepare import prepare_data
from ftkit.data.report import DataReport

__all__ = ["DataReport", "PreparedData", "TokenSplit", "encode_texts", "prepare_data"]
