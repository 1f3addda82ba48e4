"""What is saved is for use: a model card's program, in a process of its own, scores as the run did."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors import safe_open

from ftkit.records.files import read_record
from tests.e2e.command import QUICK, run
from tests.e2e.score_cards import loss_of

pytestmark = pytest.mark.e2e
METHODS = {
    "feature-extraction": ["--method", "feature-extraction"],
    "lora": ["--method", "lora"],
    "dora": ["--method", "lora", "--set", "method.use_dora=true"],
    "qlora": ["--method", "qlora"],
    "qlora-dora-true": ["--method", "qlora", "--set", "method.use_dora=true"],
    "full": ["--method", "full"],
    "qlora-of-experts": ["--method", "qlora"],
}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
KINDS = {
    "class": [method for method in METHODS if method != "qlora-of-experts"],
    "tokens": ["feature-extraction", "lora", "qlora-dora-true", "full"],
    "several": ["lora"],
    "number": ["full"],
}
MIXTURE = "tokens-qlora-of-experts"
NAMES = [*(f"{kind}-{method}" for kind, methods in KINDS.items() for method in methods), MIXTURE]


def save_tiny_mixture(folder, like):
    """Save a mixture of experts with the tokenizer of another model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(like)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "qwen3_moe", vocab_size=len(tokenizer),
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, eos_token_id=1,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def results(work, tmp_path_factory):
    """A result folder for each method and task."""
    folder = tmp_path_factory.mktemp("cards")
    kinds = {"several": [[], ["a"], ["a", "b"]], "number": [1.5, 0.25, 3.0]}
    for name, labels in kinds.items():
        lines = [json.dumps({"text": f"good film {number}", name: labels[number % 3]}) for number in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = (work / "texts.csv").read_text().splitlines()[1:81]
    pairs = [dict(zip(("prompt", "completion"), row.rsplit(",", 1), strict=True)) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    data = [work / "texts.csv", folder / "pairs.jsonl", folder / "several.jsonl", folder / "number.jsonl"]
    mixture = tmp_path_factory.mktemp("mixture")
    save_tiny_mixture(mixture, work / "llama")
    for name in NAMES:
        kind, _, method = name.partition("-")
        label = ["--label-column", kind] if kind in kinds else []
        model = mixture if name == MIXTURE else work / "llama"
        done = run(
            "--task", "causal-lm" if kind == "tokens" else "sequence-classification", "--model", model,
            "--dataset", data[list(KINDS).index(kind)], "--output", folder / name, "--precision", "fp32",
            "--max-steps", 3, "--learning-rate", 0.01, *METHODS[method], *label, *QUICK,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def scored(results):
    """The loss of each result by its card."""
    folders = [str(results / name) for name in NAMES]
    program = Path(__file__).with_name("score_cards.py")
    done = subprocess.run([sys.executable, program, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {Path(name).name: loss for name, loss in json.loads(done.stdout).items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_program_of_a_card_scores_as_the_run_did(name, results, scored):
    recorded = read_record(results / name).last_evaluation("test").loss
    assert scored[name] == pytest.approx(recorded, rel=1e-5)  # fp32, in batches of other sizes


def test_a_card_stands_beside_the_model_in_the_place_of_an_empty_form(results):
    for name in NAMES:
        folder = results / name
        assert (folder / "model" / "README.md").read_text() == (folder / "README.md").read_text()
    assert "More Information Needed" not in (folder / "model" / "README.md").read_text()


def test_all_that_is_saved_has_the_rights_of_any_new_file(results):
    (results / "new").touch()
    usual = (results / "new").stat().st_mode
    assert {file.stat().st_mode for file in results.rglob("*") if file.is_file()} == {usual}


def prefer(folder, dtype):
    """Save a model whose settings are not ftkit's own: it pads and cuts on the left, cuts at 7, and has a cache."""
    sides = {"padding_side": "left", "truncation_side": "left"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **sides)
    tokenizer.backend_tokenizer.enable_truncation(7, direction="left")
    tokenizer.save_pretrained(folder)
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)


def stored_types(file):
    with safe_open(file, "pt") as tensors:
        return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  # not a mapping


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "fp32"), ("float32", "bf16"), ("float32", "fp32")])
def test_a_whole_model_is_saved_as_its_base_came(dtype, precision, work, tmp_path):
    shutil.copytree(work / "gpt2", tmp_path / "base")
    prefer(tmp_path / "base", dtype)
    done = run(
        "--task", "causal-lm", "--model", tmp_path / "base", "--dataset", work / "texts.csv", "--output",
        tmp_path / "run", "--method", "full", "--max-steps", 1, "--precision", precision, "--max-length", 32, *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.output

    folder = tmp_path / "run" / "model"
    saved, base = (json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / "base"))
    assert {key: saved[key] for key in ("use_cache", "dtype")} == {"use_cache": True, "dtype": dtype}
    assert saved.keys() - base.keys() <= {"pad_token_id"}
    assert stored_types(folder / "model.safetensors") == {{"bfloat16": "BF16", "float32": "F32"}[dtype]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "left")
    written = [json.loads((one / "tokenizer.json").read_text()) for one in (folder, tmp_path / "base")]
    assert written[0]["truncation"] == written[1]["truncation"]
    assert written[0]["padding"] == written[1]["padding"]

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, PRECISIONS[precision]))
    recorded = read_record(tmp_path / "run").last_evaluation("test").loss
    assert loss_of(loaded, tokenizer, tmp_path / "run") == pytest.approx(
        recorded, rel=1e-5 if precision == "fp32" else 2e-3
    )


def test_an_adapter_and_its_run_are_found_from_any_folder_whatever_was_named_from_where(work, tmp_path, monkeypatch):
    shutil.copytree(work / "bert", tmp_path / "models" / "tiny")
    shutil.copy(work / "texts.csv", tmp_path / "texts.csv")
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "models/tiny", "--dataset", "texts.csv", "--output", "out", "--max-steps", 2, *QUICK]
    assert run(*flags, "--set", "training.checkpoint_every=1").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    peft.AutoPeftModelForSequenceClassification.from_pretrained("../out/model", num_labels=2)
    adapter = json.loads((tmp_path / "out" / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "models" / "tiny")

    record = tmp_path / "out" / "record.jsonl"
    lines = [line for line in record.read_text().splitlines(True) if '"kind":"result"' not in line.replace(" ", "")]
    record.write_text("".join(lines))
    done = run("--resume", "../out")
    assert done.exit_code == 0, done.output
    assert read_record(tmp_path / "out").result.num_steps == 2
