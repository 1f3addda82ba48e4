"""What a saved model keeps of its run, and what of it is nobody else's business."""

import pytest

from ftkit.config.files import load_config
from ftkit.records.origin import private_files, write_origin


@pytest.mark.parametrize(
    ("settings", "stay"),
    [
        (["data.dataset={here}/reviews.csv"], ["ftkit.yaml"]),
        (["data.dataset={here}/gone.csv"], ["ftkit.yaml"]),
        (["model.name=~/models/mine"], ["ftkit.yaml"]),
        (["engine.ds_config=./mine.json"], ["ftkit.yaml"]),
        (["model.name=owner/model", "output.folder={here}/runs"], []),
        ([], []),
    ],
)
def test_settings_that_name_a_file_of_this_machine_stay_here(settings, stay, tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\nfine,good\n", encoding="utf-8")
    config = load_config(settings=[one.format(here=tmp_path) for one in settings])
    write_origin(tmp_path, config, None)
    assert private_files(tmp_path) == stay
    assert stay or str(tmp_path) not in (tmp_path / "ftkit.yaml").read_text(encoding="utf-8")
