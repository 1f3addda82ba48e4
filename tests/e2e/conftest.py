"""What the runs of a user start from."""

import numpy as np
import pytest

from tests.helpers import WORDS, save_tiny_model


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """Tiny models, and a file of texts whose label is whether 'good' or 'bad' is in them."""
    folder = tmp_path_factory.mktemp("work")
    for family in ("bert", "gpt2", "llama"):
        save_tiny_model(folder / family, family)
    random = np.random.default_rng(0)
    rows = ["text,label"]
    for number in range(160):
        words = list(random.choice(WORDS[2:], size=random.integers(3, 12)))
        words.insert(int(random.integers(len(words))), WORDS[number % 2])
        rows.append(f"{' '.join(words)},{('yes', 'no')[number % 2]}")
    (folder / "texts.csv").write_text("\n".join(dict.fromkeys(rows)) + "\n")
    return folder
