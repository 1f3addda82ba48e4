"""The advice on texts that are longer than what a run reads of them."""

import json

import pytest
from click.testing import CliRunner

from ftkit.cli import main


@pytest.mark.parametrize(
    ("words", "max_length", "advice"),
    [
        (100, 64, "--max-length 102 keeps 95 % of the texts whole, 102 all of them"),
        (
            1000,
            128,
            "--max-length 512, the most of this model, keeps 0% of the texts whole",
        ),
        (1000, 512, "the model is made for 512 tokens, which keep 0% of the texts whole: take one for longer texts"),
    ],
)
def test_no_length_is_advised_that_the_model_is_not_made_for(words, max_length, advice, tmp_path):
    rows = [f"{'good ' * (words - 1)}{number},{number % 2}" for number in range(40)]
    (tmp_path / "long.csv").write_text("\n".join(["text,label", *rows]))

    done = CliRunner().invoke(main, ["data", str(tmp_path / "long.csv"), "--max-length", str(max_length), "--json"])

    assert advice in json.dumps(json.loads(done.output)), done.output
