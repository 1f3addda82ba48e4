"""`ftkit export` gives a run another form, and says how far its logits are from those that were scored."""

import json
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import transformers
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.records.files import read_record
from tests.e2e.command import flags
from tests.e2e.conftest import work

__all__ = ["work"]


def ftkit(*arguments):
    ran = CliRunner().invoke(main, [str(one) for one in arguments])
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran


@pytest.fixture(scope="module", params=["lora", "qlora", "feature-extraction"])
def run(request, work, tmp_path_factory):
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("export") / request.param
    done = ftkit("train", *flags(work, folder, "--method", request.param, "--max-steps", 2, "--learning-rate", 0.05))
    assert done.exit_code == 0, done.output
    return folder


def test_a_merged_model_answers_as_the_run_was_scored(run):
    done = ftkit("export", run, "--to", "merged", "--json")
    assert done.exit_code == 0, done.output
    assert ("were in 4 bits when the run was scored" in done.stderr) == (run.name == "qlora")
    told = json.loads(done.stdout)
    difference = told["difference"]
    # Weights in 4 bits are merged as they were before; others differ by the rounding of a sum of r products.
    assert difference["largest"] <= (0.3 if run.name == "qlora" else 1e-5) * difference["scale"]
    assert difference["same_answers"] == 1.0
    scored = ftkit("evaluate", run / "merged", "--dataset", read_record(run).run.config["data"]["dataset"], "--json")
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["accuracy"] == pytest.approx(read_record(run).last_evaluation("test").accuracy)


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_the_program_on_the_card_loads_what_was_exported(run, tmp_path):
    for form in ("merged", "adapter"):
        folder = tmp_path / form
        assert ftkit("export", run, "--to", form, "--output", folder, "--no-compare").exit_code == 0
        card = (folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert "pipeline_tag: text-classification" in card
        program = re.search("```python\n(.*?)```", card, re.DOTALL).group(1)
        assert str(folder) in program
        assert ("peft" in program) == (form == "adapter")
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert set(re.findall(r"'(\w+)'", ran.stdout)) <= {"no", "yes"}


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_an_onnx_file_answers_padded_texts_as_the_run_does(run, tmp_path):
    done = ftkit("export", run, "--to", "onnx", "--output", tmp_path / "onnx", "--json")
    assert done.exit_code == 0, done.output
    difference = json.loads(done.stdout)["difference"]
    assert difference["largest"] <= 1e-5 * difference["scale"]  # another order of fp32 sums
    assert difference["same_answers"] == 1.0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    inputs = tokenizer(["good film", "a very bad plot and a film"], padding=True, return_tensors="np")
    found = session.run(["logits"], {name: inputs[name] for name in ("input_ids", "attention_mask")})[0]
    alone = tokenizer(["good film"], return_tensors="np")
    expected = session.run(["logits"], {name: alone[name] for name in ("input_ids", "attention_mask")})[0]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1] != pytest.approx(expected[0], rel=1e-3)


@pytest.mark.parametrize("run", ["feature-extraction"], indirect=True)
def test_the_card_of_a_whole_model_names_the_licence_of_the_model_that_its_run_began_with(run, tmp_path, capfd):
    base = Path(read_record(run).run.config["model"]["name"])
    assert (
        "nothing says under which licence" in ftkit("export", run, "--to", "merged", "--output", tmp_path / "a").stderr
    )
    try:
        (base / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
        done = ftkit("export", run, "--to", "merged", "--output", tmp_path / "b")
        assert "licence" not in done.stderr
        assert "\nlicense: mit\n" in (tmp_path / "b" / "README.md").read_text()
        (base / "README.md").write_text("---\nlicense: [mit\n---\n")
        broken = ftkit("export", run, "--to", "merged", "--output", tmp_path / "c")
        assert (broken.exit_code, "README.md is not valid YAML" in broken.stderr) == (2, True)
    finally:
        (base / "README.md").unlink()
    assert "Repo card metadata" not in capfd.readouterr().err  # a line of the hub's client, which frightens for nothing


def test_what_cannot_be_exported_so_is_one_sentence_and_leaves_nothing(run, tmp_path):
    for arguments, words in [
        (["--to", "gguf"], "is a classifier, and a GGUF file holds a language model"),
        (["--to", "merged", "--precision", "q8_0"], "does not go with --to merged"),
        *([(["--to", "adapter"], "is a whole model and not an adapter")] if run.name == "feature-extraction" else []),
    ]:
        done = ftkit("export", run, *arguments, "--output", tmp_path / "new")
        assert done.exit_code != 0
        assert words in done.stderr
        assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    done = ftkit("export", run, "--to", "merged", "--output", tmp_path / "full")
    assert (done.exit_code, "is there already" in done.stderr) == (2, True)
