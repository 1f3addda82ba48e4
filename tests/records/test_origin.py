"""What a saved model keeps of its run, and what of it is nobody else's business."""

import pytest

from ftkit.config.files import dump_config, load_config
from ftkit.records.origin import private_files, write_origin


@pytest.mark.parametrize(("names_file", "stay"), [(True, ["ftkit.yaml"]), (False, [])])
def test_settings_that_name_a_file_of_this_machine_stay_here(names_file, stay, tmp_path):
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\nfine,good\n", encoding="utf-8")
    settings = [f"data.dataset={data}"] if names_file else []
    write_origin(tmp_path, dump_config(load_config(settings=settings)), None)
    assert private_files(tmp_path) == stay
