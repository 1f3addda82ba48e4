"""A text that is too long is read in windows: each token once, and each text counts one, however they are cut."""

import numpy as np
import pytest
import torch

from ftkit.config.tree import DataConfig
from ftkit.data import batching
from ftkit.data.arrays import fingerprint
from ftkit.data.tokens.encode import encode_texts
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.data.tokens.windows import check_windows, window_length
from ftkit.errors import DataError
from ftkit.machine.process import ProcessContext
from ftkit.models.build import set_training
from ftkit.models.sources.source import Source, load_tokenizer
from ftkit.step.step import train_step
from tests.helpers import PADDING, WORDS, build, save_tiny_model, take_steps

ALONE = ProcessContext()
LENGTHS = (3, 40, 7, 12, 1, 25, 10, 9, 18, 30)
MAX_LENGTH = 10
LABELS = {
    "single": np.arange(len(LENGTHS)) % 3,
    "multi": (np.arange(3 * len(LENGTHS)).reshape(-1, 3) % 2).astype(np.int8),
    "regression": np.linspace(-1.0, 2.0, len(LENGTHS)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return TextTokenizer.of(load_tokenizer(Source(str(folder))))


def made(tokenizer, kind="single", lengths=LENGTHS, max_length=MAX_LENGTH, *, in_windows=True):
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, length)) for length in lengths]
    return texts, encode_texts(texts, tokenizer, max_length, None, LABELS[kind][: len(lengths)], in_windows=in_windows)


def test_each_token_of_a_text_is_in_one_window_between_special_tokens(tokenizer):
    texts, encoded = made(tokenizer)
    split, begin, end = encoded.split, list(tokenizer.begin), [tokenizer.original.sep_token_id]
    assert split.num_texts == len(texts)
    assert split.lengths.max() <= MAX_LENGTH
    for place, text in enumerate(texts):
        rows = split.rows_of(np.array([place]))
        parts = [split.tokens[split.offsets[row] : split.offsets[row + 1]].tolist() for row in rows]
        assert all(part[:1] == begin and part[-1:] == end for part in parts)
        assert [token for part in parts for token in part[1:-1]] == tokenizer.ids([text])[0]
        assert max(map(len, parts)) - min(map(len, parts)) < len(parts), "no window has a few tokens alone"
    assert encoded.losses.num_truncated == 0
    assert encoded.losses.num_in_windows == sum(length > MAX_LENGTH - 2 for length in LENGTHS)


def test_texts_that_fit_are_the_arrays_that_they_are_without_windows(tokenizer):
    (_, cut), (_, windows) = (made(tokenizer, max_length=64, in_windows=in_windows) for in_windows in (False, True))
    assert windows.split.windows is None
    assert fingerprint((cut.split,), None) == fingerprint((windows.split,), None)


@pytest.mark.parametrize(("num", "room", "longest"), [(9, 8, 5), (16, 8, 8), (17, 8, 6), (1000, 510, 500)])
def test_windows_are_the_fewest_and_nearly_equal(num, room, longest):
    assert window_length(num, room) == longest
    assert -(-num // longest) == -(-num // room)


@pytest.mark.parametrize("kind", LABELS)
def test_a_step_does_not_depend_on_how_the_windows_are_cut(kind, tokenizer, folder):
    split = made(tokenizer, kind)[1].split
    cuts = ("batch.micro_batch_size=1", "batch.micro_batch_size=3", "batch.micro_batch_tokens=999")
    outcomes = []
    for cut in cuts:
        settings = [f"data.label_kind={kind}", "batch.global_batch_size=4", "method.name=full", cut]
        outcomes.append(take_steps(*build(settings, folder, torch.float32, ALONE), split))
    for one in outcomes[1:]:
        # fp32 sums in another order differ in the last of 24 bits; Adam's roots and three steps spread that.
        np.testing.assert_allclose(one.losses, outcomes[0].losses, rtol=2e-6)
        np.testing.assert_allclose(one.norms, outcomes[0].norms, rtol=2e-5)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_loss_is_the_mean_over_texts_of_the_mean_over_their_windows(kind, world_size, tokenizer, folder):
    split = made(tokenizer, kind)[1].split
    config, engine = build([f"data.label_kind={kind}", "batch.micro_batch_size=2"], folder, torch.float32, ALONE)
    set_training(engine.model, False)
    texts = np.arange(split.num_texts)
    wanted = 0.0
    with torch.no_grad():
        for text in texts:
            rows = split.rows_of(texts[text : text + 1])
            each = [batching.collate(split, row, PADDING, engine.device) for row in np.split(rows, len(rows))]
            losses = [float(engine.objective.score(engine.logits(one), one.labels)) for one in each]
            wanted += sum(losses) / len(losses)
    wanted /= float(split.num_targets.sum())
    rows = split.rows_of(texts)
    # Of three ranks all shares are taken in turn: a sum over ranks is a sum over their micro-batches.
    shares = batching.cut(split.lengths[rows], config.batch, world_size)
    micro = [batching.collate(split, rows[places], PADDING, engine.device) for share in shares for places in share]
    result = train_step(engine, micro, float(split.num_targets.sum()), 0.0)
    assert float(result.loss) == pytest.approx(wanted, rel=2e-6)


def test_logits_of_a_text_are_the_mean_over_its_windows(tokenizer):
    split = made(tokenizer)[1].split
    values = np.random.default_rng(0).normal(size=(len(split), 3)).astype(np.float32)
    found, owners = split.averaged(values), split.texts_of(np.arange(len(split)))
    for text in range(split.num_texts):
        np.testing.assert_allclose(found[text], values[owners == text].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("is_labelled", "has_pairs", "said"), [(False, False, "for texts with labels"), (True, True, "for single texts")]
)
def test_windows_of_what_has_none_are_refused(is_labelled, has_pairs, said):
    with pytest.raises(DataError, match=said):
        check_windows(DataConfig(long_texts="windows"), is_labelled=is_labelled, has_pairs=has_pairs)
    check_windows(DataConfig(), is_labelled=is_labelled, has_pairs=has_pairs)


def test_a_length_without_room_for_text_is_refused(tokenizer):
    with pytest.raises(DataError, match="leaves no room"):
        made(tokenizer, max_length=2)
