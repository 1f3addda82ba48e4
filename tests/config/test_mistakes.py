"""What is said of a configuration that cannot be."""

import pytest

from ftkit.config.files import load_config
from ftkit.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["rank=4"], "unknown key 'rank'; did you mean 'method.rank'?"),
        (["learning_rate=1e-4"], "unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        (
            ["method.name=full", "method.rank=8"],
            "unknown key 'method.rank'; lora and qlora have it; this method has: top_layers",
        ),
        (
            ["batch.micro_batch_tokens=many"],
            "batch.micro_batch_tokens='many': input should be a valid integer, unable to parse string as an integer, "
            "or input should be 'auto'",
        ),
    ],
)
def test_a_mistake_is_one_sentence_about_the_key_that_was_written(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        load_config(settings=settings)
    assert str(caught.value) == sentence


def test_broken_yaml_is_told_with_its_file_line_and_column(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("training:\n  epochs: [1\nfoo: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file=file)
    assert str(caught.value) == f"{file} is not valid YAML in line 3, column 4: expected ',' or ']', but got ':'"
