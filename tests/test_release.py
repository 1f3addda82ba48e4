"""What names the version says the same one."""

import re
from pathlib import Path

import yaml

import ftkit

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ftkit.__version__
    released = re.search(rf"^## \[{re.escape(ftkit.__version__)}\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released is None or released[1] == str(citation["date-released"])
