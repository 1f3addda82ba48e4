"""Texts that are reviewed by eye, once, and held against what ftkit says from then on.

`scripts/test tests/golden --regenerate` writes them anew; `git diff tests/golden` is then what to read.
"""

from pathlib import Path

import pytest

EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture
def golden(request):
    """Return the function that holds a text against the file of a name."""

    def check(name: str, text: str) -> None:
        path = EXPECTED / name
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"there is no {path}; make it with --regenerate, and read it"
        assert text == path.read_text(encoding="utf-8"), f"{name} changed; if so it should: --regenerate"

    return check
