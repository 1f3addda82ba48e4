"""Tokenizers of many kinds, each trained on a few sentences; nothing here asserts anything."""

from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "The cat sat on the mat, and the dog ran to it.",
    "What is 2+2? It is 4. What is 3+3? It is 6.",
    'def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n{"city": "Rome"}',
    "a < b > c / d | e_f, a </ b |> c",
    "ol\u00e9 na\u00efve \u65e5\u672c \U0001f642 - the end, the end.",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _finished(inner: Tokenizer, *, takes_spaces: bool = False, **settings: Any) -> PreTrainedTokenizerFast:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | settings
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    ends = [AddedToken(name, rstrip=takes_spaces, special=True) for name in ("<|im_start|>", "<|im_end|>")]
    made.add_special_tokens({"additional_special_tokens": ends})
    made.chat_template = TEMPLATE
    return made


def _trained(inner: Tokenizer, trainer: Any) -> Tokenizer:
    inner.train_from_iterator(TEXTS * 5, trainer)
    return inner


def _byte_level(*, prefix: bool = False, trim: bool | None = None) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    if trim is not None:
        inner.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL[:3], show_progress=False
    )
    return _trained(inner, trainer)


def byte_level() -> Any:
    """GPT-2's kind: a space belongs to the word after it."""
    return _finished(_byte_level(trim=True))


def byte_level_with_prefix() -> Any:
    """RoBERTa's kind: a space before every text, tokens around it, characters of tokens without their spaces."""
    inner = _byte_level(prefix=True)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=True)
    return _finished(inner)


def left_padded() -> Any:
    """GPT-2's kind as generation wants it: padded and cut on the left."""
    return _finished(_byte_level(), pad_token="</s>", padding_side="left", truncation_side="left")


def _unigram(scheme: Any) -> Any:
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _finished(_trained(inner, trainer))


def unigram() -> Any:
    """T5's kind: a space before every text and after every special token; its pieces hold the special tokens."""
    return _unigram("always")


def unigram_first() -> Any:
    """Llama's kind since its repair: a space before the text alone."""
    return _unigram("first")


def unigram_without_prefix() -> Any:
    """Gemma's kind: no space is added."""
    return _unigram("never")


def unigram_that_normalizes() -> Any:
    """ALBERT's and XLNet's kind: signs of one meaning are one, in lower case, and spaces in a row are one space."""
    made = unigram()
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    made.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return made


def _llama(normalizer: Any, *, normalized: bool = False) -> Any:
    """Pieces of characters with merges across spaces, no pre-tokenizer, bytes where a character is not known."""
    letters = sorted({letter for text in TEXTS for letter in text.replace(" ", "\u2581")} - {"\U0001f642"})
    pieces = [
        *SPECIAL,
        *_BYTES,
        *letters,
        "\u2581t",
        "th",
        "\u2581th",
        "\u2581the",
        "e\u2581",
        "at",
        "\u2581e",
        "s\u2581",
        "\u25814",
    ]
    merges = [
        ("\u2581", "t"),
        ("t", "h"),
        ("\u2581t", "h"),
        ("\u2581th", "e"),
        ("e", "\u2581"),
        ("a", "t"),
        ("\u2581", "e"),
    ]
    merges += [("s", "\u2581"), ("\u2581", "4")]
    pieces = list(dict.fromkeys(pieces))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizer
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken(name, normalized=normalized, special=True) for name in SPECIAL])
    return _finished(inner)


def llama() -> Any:
    """Llama 2's kind: a space before every text and after every special token, by a normalizer."""
    return _llama(normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))


def llama_normalized() -> Any:
    """Llama 2's kind as first converted: special tokens are looked for in the normalized text."""
    normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return _llama(normalizer, normalized=True)


def merges_across_spaces() -> Any:
    """A tokenizer whose pieces begin inside one word and end inside the next, without a space of its own."""
    return _llama(normalizers.Replace(" ", "\u2581"))


def word_piece() -> Any:
    """BERT's kind: lower case, accents and spaces are lost, tokens around every text."""
    inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(cleanup=False)
    inner = _trained(inner, trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False))
    inner.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return _finished(inner, cls_token="<s>", sep_token="</s>")


def words_in_the_vocabulary() -> Any:
    """Whole words and single characters, cut at white space: special tokens are words of the vocabulary."""
    words = sorted({word for text in TEXTS for word in text.split()} | {letter for text in TEXTS for letter in text})
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate([*SPECIAL, *words])}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finished(inner)


def greedy_special_tokens() -> Any:
    """Phi-3's kind: special tokens take the white space beside them; other added tokens are words as any."""
    made = _finished(_byte_level(), takes_spaces=True)
    made.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("the end", normalized=True)])
    return made


def in_python() -> Any:
    """ByT5's kind: it runs in Python and does not tell the characters of its tokens."""
    made = ByT5Tokenizer(extra_ids=0, additional_special_tokens=["<|im_start|>", "<|im_end|>"], bos_token="<s>")
    made.chat_template = TEMPLATE
    return made


KINDS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        byte_level,
        byte_level_with_prefix,
        left_padded,
        unigram,
        unigram_first,
        unigram_without_prefix,
        unigram_that_normalizes,
        llama,
        llama_normalized,
        merges_across_spaces,
        word_piece,
        words_in_the_vocabulary,
        greedy_special_tokens,
        in_python,
    )
}
"""Name to maker."""
LOSSY = {"word_piece", "words_in_the_vocabulary", "unigram_that_normalizes"}
"""Kinds that lose white space, or write letters in another way."""
