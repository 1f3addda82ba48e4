"""A model whose layers are streamed computes what the resident one computes, to the bit."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers

from ftkit.config.recompute import Recompute
from ftkit.data import batching
from ftkit.errors import ConfigError, DeviceError, ModelError
from ftkit.models.activations.recompute import set_level, set_recompute
from ftkit.models.foreign import checkpointing_layers
from ftkit.models.partitions import own_tensors
from ftkit.models.streaming.head import head_to_stream
from ftkit.models.streaming.stream import stream_of, value_of
from ftkit.models.streaming.table import left_out_table
from ftkit.models.streaming.window import StaleWeightsError
from ftkit.observe.peaks import timeline
from ftkit.observe.recorded import record_steps, see_model
from ftkit.observe.recorder import Recorder
from tests.helpers import PADDING, ragged_split
from tests.models.streaming.conftest import engine_of, from_ram, take_step

DISK, CHEAP, HEAD = "engine.stream_layers=disk", "model.recompute=cheap", "engine.stream_head=true"
IN_BF16 = ("bert", "gpt2", "llama", "mixtral")
IN_4_BITS = ("bert", "gpt2", "llama", "mixtral")
QLORA, FP4, SINGLE = "method.name=qlora", "method.quantization=fp4", "method.double_quantization=false"
FAMILIES = ("bert", "gemma2", "gpt2", "llama", "mistral", "mixtral", "phi", "qwen2", "starcoder2")
"""The experts of mixtral are stored one by one."""


def is_same(found, wanted):
    assert found.loss == wanted.loss
    assert torch.equal(found.logits, wanted.logits)
    assert found.gradients.keys() == wanted.gradients.keys()
    assert all(torch.equal(found.gradients[name], one) for name, one in wanted.gradients.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_gradients_and_logits_are_those_of_the_resident_run(family, deep):
    for dtype in (torch.float32, torch.bfloat16) if family in IN_BF16 else (torch.float32,):
        wanted = take_step(engine_of(deep(family), dtype=dtype))
        for way in ((DISK,), (DISK, CHEAP)):
            is_same(take_step(engine_of(deep(family), *way, dtype=dtype)), wanted)


@pytest.mark.parametrize("family", IN_4_BITS)
def test_layers_in_4_bits_are_packed_once_and_compute_what_the_resident_ones_do(family, deep):
    for dtype, *way in ((torch.float32, QLORA, FP4, SINGLE), (torch.bfloat16, QLORA)):
        wanted = take_step(engine_of(deep(family), *way, dtype=dtype))
        for more in ((DISK,), (DISK, CHEAP)):
            is_same(take_step(engine_of(deep(family), *way, *more, dtype=dtype)), wanted)


@pytest.mark.parametrize(("dtype", "way"), [(torch.float32, ()), (torch.bfloat16, (QLORA,))])
def test_a_head_that_comes_in_the_place_of_the_layers_computes_the_same(dtype, way, deep):
    wanted = take_step(engine_of(deep("llama"), *way, dtype=dtype), num_steps=2)
    engine = engine_of(deep("llama"), *way, DISK, HEAD, dtype=dtype)
    is_same(take_step(engine, num_steps=2), wanted)
    layout = stream_of(engine.model).layout
    (memory,) = stream_of(engine.model).window.memory
    assert len(memory) == max(2 * layout.buffer_bytes, layout.head_bytes)
    (weight,) = stream_of(engine.model).source.read(layout.layers[-1][0])
    assert torch.equal(weight, engine_of(deep("llama"), dtype=dtype).model.get_output_embeddings().weight)


def test_a_head_that_is_held_beyond_its_product_is_found(deep):
    engine, kept = engine_of(deep("llama"), DISK, HEAD), []
    engine.model.get_output_embeddings().register_forward_hook(lambda module, *_: kept.append(module.weight.t()))
    with pytest.raises(StaleWeightsError, match="layer 5 is to come into the buffer of layer 6, and 1 tensors"):
        take_step(engine)


def test_the_plain_forms_of_adapters_are_streamed_alike(deep):
    way = ("model.lean=false", "method.targets=[attention]")
    wanted, *found = (take_step(engine_of(deep("llama"), *way, *more)) for more in ((), (DISK,), (DISK, CHEAP)))
    for one in found:
        is_same(one, wanted)


def test_a_head_over_streamed_layers_trains_alike_and_its_model_is_saved_whole(deep):
    wanted, found = (
        engine_of(deep("bert"), "task=sequence-classification", "method={name: feature-extraction}", *more)
        for more in ((), (DISK,))
    )
    theirs, ours = (dict(one.weights(own_tensors(one.model))) for one in (wanted, found))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], one) for name, one in theirs.items())


def test_the_window_does_not_grow_with_the_number_of_layers(deep):
    peaks = {}
    for num_layers in (12, 24, 48):
        way = ("task=sequence-classification", "method={name: feature-extraction}", DISK)
        engine, recorder = engine_of(deep("bert", num_layers), *way), Recorder()
        micro_batch = batching.collate(ragged_split("sequence-classification"), np.arange(3), PADDING, engine.device)
        with recorder:
            see_model(recorder, engine.model, {})
            record_steps(engine, [micro_batch], recorder)
        window = stream_of(engine.model).window
        assert len(window.fillings) == 2
        peaks[num_layers] = recorder.tape.peak_bytes(), sum(map(len, window.memory))
    assert peaks[12] == peaks[24] == peaks[48]


def test_a_recorder_sees_the_window_move_up_the_layers_and_down_again(deep):
    engine, recorder = engine_of(deep("llama"), DISK), Recorder()
    micro_batch = batching.collate(ragged_split("causal-lm"), np.arange(3), PADDING, engine.device)
    with recorder.inside(engine.model, {}):
        tape = record_steps(engine, [micro_batch], recorder)
    up = [(number, number + 1) for number in range(5)]
    step = [*up, *up[-2::-1]]
    assert [layers for _, layers in tape.window] == [*step, *step[1:]]
    assert set(timeline(tape, 2, 0, {}).window) == set(up)


def test_a_product_that_keeps_its_weight_is_found_before_its_buffer_is_used_again(deep):
    engine, kept = engine_of(deep("llama"), DISK), []
    layer = stream_of(engine.model).layout.layers[0][0].owner
    layer.register_forward_hook(lambda module, *_: kept.append(module.weight.t()))
    with pytest.raises(StaleWeightsError, match="layer 2 is to come into the buffer of layer 0, and 1 tensors"):
        take_step(engine)


def test_layers_that_do_not_recompute_are_found(deep):
    engine = engine_of(deep("llama"), DISK, "model.lean=false", "method.targets=[attention]")
    for layer in checkpointing_layers(engine.model):
        set_level(layer, "none")
    with pytest.raises(StaleWeightsError, match="did not recompute"):
        take_step(engine)


def test_layers_are_fetched_for_what_they_recompute_after_their_level_has_changed(deep):
    wanted, found = (engine_of(deep("llama"), *way) for way in ((), (DISK, CHEAP)))
    set_recompute(found.model, Recompute(cheap=0.5, layer=0.5))  # as after an out-of-memory
    is_same(take_step(found), take_step(wanted))


def test_a_layer_that_comes_in_the_midst_of_a_backward_is_found(deep):
    engine = engine_of(deep("llama"), DISK)
    stream = stream_of(engine.model)
    adapter = next(one for name, one in engine.model.named_parameters() if "layers.3." in name and one.requires_grad)

    def disturb(_):
        for layer in (0, 5):
            stream.window.fetch(layer)

    adapter.register_hook(disturb)
    with pytest.raises(StaleWeightsError, match=r"layer [34] was used again during the backward"):
        take_step(engine)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (("method={name: full}", DISK), ConfigError, "every weight trains"),
        ((DISK, "engine.zero_stage=3"), ConfigError, "under DeepSpeed"),
        ((DISK, "method.use_dora=true"), ConfigError, "DoRA"),
        ((HEAD,), ConfigError, "add --set engine.stream_layers=disk"),
        ((DISK, HEAD, "model.lean=false"), ConfigError, "needs the head after it has left"),
        ((DISK, HEAD, "model.resize_embeddings=true"), ModelError, "new rows of the head train"),
        ((DISK, HEAD, "method.targets=[q_proj,lm_head]"), ModelError, r"method\.targets puts an adapter on lm_head"),
        pytest.param(
            ("engine.stream_layers=ram",),
            DeviceError,
            "give --set engine.stream_layers=disk",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes layers from the host's memory"),
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_what_to_do(settings, error, words, deep):
    with pytest.raises(error, match=words):
        engine_of(deep("llama"), *settings)


def test_an_adapter_on_a_head_that_is_the_table_too_is_refused_since_nothing_would_bring_its_weight(deep):
    with pytest.raises(ModelError, match=r"method\.targets puts an adapter on lm_head, so transformer\.wte\.weight"):
        engine_of(deep("gpt2"), DISK, HEAD, "method.targets=[c_attn,lm_head]")


@pytest.mark.parametrize(
    ("family", "place", "dtype", "way"),
    # gemma2 scales the rows of its table.
    [
        ("gpt2", "disk", torch.float32, ()),
        ("gemma2", "ram", torch.float32, ()),
        ("gemma2", "disk", torch.bfloat16, (QLORA,)),
    ],
)
def test_a_head_that_is_the_table_of_tokens_too_comes_while_rows_are_looked_up(family, place, dtype, way, deep):
    resident = engine_of(deep(family), *way, dtype=dtype)
    with from_ram() if place == "ram" else nullcontext():
        streamed = engine_of(deep(family), *way, DISK, HEAD, dtype=dtype)
    table, head = streamed.model.get_input_embeddings(), streamed.model.get_output_embeddings()
    assert table.weight is head.weight
    assert left_out_table(streamed.model) is table
    is_same(take_step(streamed, num_steps=2), take_step(resident, num_steps=2))
    assert torch.equal(value_of(head.weight), resident.model.get_output_embeddings().weight)


@pytest.mark.parametrize("name", ["Hashed", "HashedScaledWordEmbedding"])  # that of a class of transformers, nearly
def test_a_table_of_a_class_of_its_own_stays_and_the_head_that_is_the_same_weight_with_it(name, deep):
    model = transformers.AutoModelForCausalLM.from_pretrained(deep("gpt2"))
    model.get_input_embeddings().__class__ = type(name, (torch.nn.Embedding,), {})
    with pytest.raises(ModelError, match=r"transformer\.wte\.weight and lm_head\.weight"):
        head_to_stream(model)


def test_weights_that_are_stored_in_another_form_are_refused_by_name(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.AutoConfig.for_model("nomic_bert", vocab_size=64, pad_token_id=1, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)  # q, k and v as one tensor
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj\.weight .* is not among them"):
        engine_of(tmp_path, "task=sequence-classification", DISK)
