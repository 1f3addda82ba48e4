"""The bounds of the house: a listing that is read at a glance, files and functions that fit in a head."""

import ast
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1] / "ftkit"
PACKAGING = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
"""What every package has, whatever it is about."""
TEXTS = {file.relative_to(HOUSE): file.read_text(encoding="utf-8") for file in sorted(HOUSE.rglob("*.py"))}


def lengths_of_functions(text):
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name: function.end_lineno - function.lineno + 1 for function in functions}


def test_the_top_has_at_most_18_entries():
    assert len({entry.name for entry in HOUSE.iterdir()} - PACKAGING) <= 18


def test_a_room_has_at_most_22_entries():
    rooms = (room for room in HOUSE.rglob("*") if room.is_dir() and room.name not in PACKAGING)
    entries = {room.relative_to(HOUSE): len({entry.name for entry in room.iterdir()} - PACKAGING) for room in rooms}
    assert {room: number for room, number in entries.items() if number > 22} == {}


def test_no_file_has_more_than_330_lines():
    lengths = {file: len(text.splitlines()) for file, text in TEXTS.items()}
    assert {file: length for file, length in lengths.items() if length > 330} == {}


def test_no_function_has_more_than_60_lines():
    lengths = {
        (file, name): length for file, text in TEXTS.items() for name, length in lengths_of_functions(text).items()
    }
    assert {function: length for function, length in lengths.items() if length > 60} == {}
