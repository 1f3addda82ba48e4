"""Templates that mark what the assistant generates: the marks carry loss, and are checked against the turns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftkit.data.chat.counted_texts import CountedTexts
from ftkit.data.chat.messages import Conversation
from ftkit.data.chat.template import ChatTemplate, Rendering
from ftkit.data.tokens.targets import mark_targets
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.errors import DataError
from tests.made_tokenizers import byte_level

MARKED = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}BEFORE{% generation %}SAID{% endgeneration %}AFTER"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = st.text(st.sampled_from("ab <>{}'\n\u00e9"), max_size=8)


def marking(said="{{ m.content }}<|im_end|>", before="", after=""):
    return MARKED.replace("SAID", said).replace("BEFORE", before).replace("AFTER", after)


@pytest.fixture(scope="module")
def original():
    return byte_level()


def written(original, template, contents, answers):
    """Return the texts that carry loss, and what is worth telling."""
    original.chat_template = template
    tokenizer, rendering = TextTokenizer.of(original), Rendering()
    messages = chat(contents)
    pieces = ChatTemplate(original, tokenizer.special, "answers").pieces(
        Conversation(messages, answers), "line 1", rendering
    )
    for name in ("</s>", "<s>", "<|im_start|>", "<|im_end|>"):
        pieces = [(text.replace(tokenizer.special.as_tokenized(name), name), is_answer) for text, is_answer in pieces]
    return [text for text, is_answer in pieces if is_answer], rendering


def chat(contents):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def told(rendering):
    return [finding.line() for finding in rendering.marks.findings()]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_marks_around_whole_answers_carry_the_loss_that_the_turns_would(original, turns):
    contents = [text for turn in turns for text in turn]
    answers = tuple(range(1, len(contents), 2))
    marked, rendering = written(original, marking(), contents, answers)
    bare = marking().replace("{% generation %}", "{% if true %}").replace("{% endgeneration %}", "{% endif %}")
    assert marked == written(original, bare, contents, answers)[0]
    assert told(rendering) == ["note: what carries loss is what the chat template marks with {% generation %}"]


@pytest.mark.parametrize("said", ["{{ m.content }}<|im_end|>", "{{ m.content }}", "{{ m.content | trim }}\n<|im_end|>"])
def test_the_tokens_that_carry_loss_are_those_that_transformers_marks(said, original):
    original.chat_template = marking(said)
    # It finds no token for a space at the border, so there is none.
    messages = chat(["What is 2+2?", "4, the cat", "And 3+3?", "6\n6"])
    theirs = original.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    tokenizer = TextTokenizer.of(original)
    template = ChatTemplate(original, tokenizer.special, "answers")
    pieces = template.pieces(Conversation(messages, (1, 3)), "line 1", Rendering())
    ours = mark_targets([pieces], tokenizer, is_rendered=True)[0]
    assert ours.tokens.tolist() == theirs["input_ids"]
    assert ours.targets.tolist() == [mask == 1 for mask in theirs["assistant_masks"]]


def test_an_end_that_is_not_marked_is_not_learned_and_told(original):
    template = marking("{{ m.content }}", after="<|im_end|>")
    targets, rendering = written(original, template, ["Hi", "Hello", "2+2?", "4"], (1, 3))
    assert targets == ["Hello", "4"]
    assert rendering.marks.left_out == CountedTexts(1, 2 * len("<|im_end|>"), "line 1", "<|im_end|>")
    assert "leave out what answers say" in told(rendering)[1]


def test_a_part_of_an_answer_that_alone_is_marked_is_learned_and_the_rest_told(original):
    template = marking("{{ m.content.split('=')[1] }}<|im_end|>", before="{{ m.content.split('=')[0] }}=")
    targets, rendering = written(original, template, ["Hi", "2+2=4"], (1,))
    assert targets == ["4<|im_end|>"]
    assert rendering.marks.left_out.example == "2+2="
    assert rendering.omitted.num_conversations == 0  # it is shown, if not learned


def test_what_is_marked_beyond_an_answer_is_learned_and_told(original):
    template = marking("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>").replace(
        "<|im_start|>{{ m.role }}\n{% if", "{% if m.role == 'user' %}<|im_start|>user\n{% endif %}{% if"
    )
    targets, rendering = written(original, template, ["Hi", "Hello"], (1,))
    assert targets == ["<|im_start|>assistant\nHello<|im_end|>"]
    assert rendering.marks.beyond.example == "<|im_start|>assistant"
    assert "hold more than the answers" in told(rendering)[1]


def test_a_turn_that_does_not_train_carries_no_loss_though_it_is_marked(original):
    targets, rendering = written(original, marking(), ["Hi", "wrong", "no", "right"], (3,))
    assert targets == ["right<|im_end|>"]
    assert rendering.marks.beyond.num_conversations == 0


def test_a_template_that_hides_where_answers_are_is_used_by_its_marks(original):
    hiding, contents = "{{ messages | length }}" + marking(), ["a", "b", "c", "d"]
    assert written(original, hiding, contents, (1, 3))[0] == ["b<|im_end|>", "d<|im_end|>"]
    assert written(original, hiding, contents, (3,))[0] == ["d<|im_end|>"]
    once = hiding.replace("m.role == 'assistant'", "loop.last and m.role == 'assistant'")
    with pytest.raises(DataError, match="rewrites earlier turns"):
        written(original, once, contents, (1, 3))


def test_white_space_that_tags_take_off_is_not_in_the_marks(original):
    template = marking("{{ m.content }}", after="<|im_end|>").replace("{% generation %}", "{%- generation -%}\n  ")
    template = template.replace("{% endgeneration %}", "\n  {%- endgeneration -%}\n  ")
    targets, rendering = written(original, template, ["Hi", "Hello"], (1,))
    assert targets == ["Hello"]
    assert rendering.marks.left_out.example == "<|im_end|>"


def test_marks_in_a_part_that_is_written_later_are_found(original):
    """Transformers' own positions are those of the text so far, which a captured part is not in yet."""
    template = marking("{{ m.content }}", after="<|im_end|>").replace("{% generation %}", "{% set x %}{% generation %}")
    template = template.replace("{% endgeneration %}", "{% endgeneration %}{% endset %}{{ x }}")
    targets, rendering = written(original, template, ["Hi", "Hello"], (1,))
    assert targets == ["Hello"]
    assert rendering.marks.left_out.example == "<|im_end|>"
