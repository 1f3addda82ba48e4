"""Asks the installed libraries for every name that ftkit takes from them although it is not public.

It is collected first: after an upgrade it says which name has gone, before a wrong number elsewhere has to.
"""

import _thread
import contextlib
import inspect
import queue
import types
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from ftkit.data.reading import foreign as reading
from ftkit.engine import foreign as engine
from ftkit.engine import pace, undone_step
from ftkit.machine import foreign as machine
from ftkit.models import foreign as models
from ftkit.models import partitions
from ftkit.models.kernels import foreign as kernels
from ftkit.models.saving import foreign as saving
from ftkit.models.sources import foreign as sources
from ftkit.models.streaming import foreign as streaming
from ftkit.observe import foreign as observe
from ftkit.plan.tracing import foreign as tracing


class Written(NamedTuple):
    """What stands in a file of a library, and what of ftkit needs it."""

    user: object
    package: str
    file: str
    text: str

    @property
    def needed_by(self):
        return getattr(self.user, "__name__", repr(self.user))

    def __str__(self):
        return f"{self.needed_by} {self.file} {self.text.strip()}"


def optimizer_names(file, *names):
    """What `undone_step` forgets of an optimizer of DeepSpeed."""
    return [Written(undone_step.forget_step, "deepspeed", f"runtime/{file}", name) for name in names]


def coordinator_names(*names):
    """What a pass that is taken again restores of what gathers in stage 3."""
    file = "runtime/zero/partitioned_param_coordinator.py"
    return [Written(pace.Pace.rewind, "deepspeed", file, name) for name in names]


DISTILBERT = "models/distilbert/modeling_distilbert.py"
MOVED = "utils/transformers_weight_conversion.py"
PARTITIONED = "runtime/zero/partition_parameters.py"
WRITTEN = [
    # data
    Written(reading.sheet_xml, "openpyxl", "worksheet/_read_only.py", "def _get_source(self):"),
    # machine
    Written(machine.record_memory_history, "torch", "cuda/memory.py", "def _record_memory_history("),
    Written(machine.forget_memory_history, "torch", "cuda/memory.py", 'enabled: Literal["state", "all"] | None'),
    Written(machine.write_memory_history, "torch", "cuda/memory.py", "def _dump_snapshot("),
    Written(machine.hub_connection_error, "huggingface_hub", "errors.py", "class HfHubHTTPError(HTTPError, OSError):"),
    Written(machine.TorchSays.NO_EXTENSION, "torch", "utils/cpp_extension.py", "Error building extension"),
    # models
    Written(models.without_hooks, "transformers", "modeling_utils.py", "            accelerate_dispatch(model, "),
    Written(models.checkpointing_layers, "transformers", "modeling_layers.py", "class GradientCheckpointingLayer("),
    Written(models.set_recomputing, "transformers", "modeling_layers.py", "self._gradient_checkpointing_func("),
    Written(models.set_recomputing, "transformers", "modeling_layers.py", "if self.gradient_checkpointing and"),
    Written(models.draw_anew, "transformers", "modeling_utils.py", "def _init_weights(self, module"),
    Written(models.draw_anew, "transformers", "initialization.py", "_is_hf_initialized"),
    Written(models.has_values, "torch", "_subclasses/fake_tensor.py", "class FakeTensor("),
    Written(models.is_conv1d, "transformers", "pytorch_utils.py", "class Conv1D("),
    Written(models.attends_by_sdpa, "transformers", "modeling_utils.py", "def _can_set_attn_implementation(cls)"),
    Written(models.attend_by, "transformers", "masking_utils.py", "def sdpa_mask("),
    Written(models.sdpa, "transformers", "integrations/sdpa_attention.py", "def sdpa_attention_forward("),
    Written(
        models.hands_groups_over,
        "transformers", "integrations/sdpa_attention.py", "if use_gqa_in_sdpa(attention_mask, key, value):",
    ),
    Written(models.sdpa_kin, "transformers", "modeling_utils.py", "ALL_ATTENTION_FUNCTIONS: AttentionInterface ="),
    *(
        Written(models.POOLED_BY_FIRST, "transformers", f"models/{folder}/modeling_{folder}.py", text)
        for name, folder in models.POOLED_BY_FIRST.items()
        for text in (f"class {name}(", "attention_output = self.output(attention_output, hidden_states)")
    ),
    Written(models.HANDS_SETTINGS_ON, "transformers", DISTILBERT, "class DistilBertSelfAttention("),
    Written(models.HANDS_SETTINGS_ON, "transformers", DISTILBERT, f"attention_mask,\n{' ' * 16}**kwargs,"),
    Written(models.LINEAR, "transformers", "models/falcon/modeling_falcon.py", "class FalconLinear("),
    Written(models.LINEAR, "bitsandbytes", "nn/modules.py", "class Linear4bit("),
    Written(
        models.TransformersSays.NO_MODEL_FOR_TASK,
        "transformers", "models/auto/auto_factory.py", "Unrecognized configuration class",
    ),
    Written(models.compiling_later, "bitsandbytes", "backends/default/ops.py", "torch.compile"),
    Written(models.is_packed, "bitsandbytes", "nn/modules.py", "class Params4bit("),
    Written(models.as_packed, "bitsandbytes", "nn/modules.py", "self.quant_state = quant_state"),
    Written(models.as_packed, "bitsandbytes", "nn/modules.py", "self.bnb_quantized = bnb_quantized"),
    Written(models.keep_layout, "bitsandbytes", "nn/modules.py", "and self.support_avx512bf16_for_cpu"),
    Written(models.without_dynamic_map, "bitsandbytes", "functional.py", "def create_dynamic_map("),
    Written(models.say_loaded_in_4bit, "peft", "tuners/lora/model.py", '"is_loaded_in_4bit"'),
    Written(models.moved_targets, "peft", MOVED, "_MODEL_TO_CONVERSION_PATTERN.get("),
    Written(models.moved_targets, "peft", MOVED, "_MOE_FUSED_TARGETS.get("),
    Written(models.moved_targets, "peft", MOVED, "_MOE_TARGET_MODULE_MAPPING.get("),
    Written(models.dora_reading, "peft", "tuners/lora/dora.py", "dequantize_module_weight("),
    Written(models.without_bitsandbytes, "peft", "import_utils.py", "@lru_cache\ndef is_bnb_available("),
    Written(models.without_bitsandbytes, "peft", "import_utils.py", "@lru_cache\ndef is_bnb_4bit_available("),
    Written(partitions.whole_numel, "deepspeed", PARTITIONED, "param.ds_numel = "),
    Written(partitions.is_gathered_when_called, "deepspeed", "runtime/zero/parameter_offload.py", "module.ds_id = "),
    Written(partitions.whole_shape, "deepspeed", PARTITIONED, "param.ds_shape = "),
    Written(
        sources.import_losses,
        "transformers", "loss/loss_for_object_detection.py", "    from scipy.optimize import linear_sum_assignment",
    ),
    Written(sources.reading_what_stays, "transformers", "core_model_loading.py", "def _materialize_copy(tensor: "),
    Written(sources.reading_what_stays, "transformers", "core_model_loading.py", "return _materialize_copy("),
    Written(sources.reading_what_stays, "transformers", "modeling_utils.py", "file_pointer = safe_open(file, "),
    *(
        Written(sources.conversions, "transformers", "core_model_loading.py", text)
        for text in ("def rename_source_key(", "def dot_natural_key(", "class MergeModulelist(", "class Concatenate(")
    ),
    Written(sources.conversions, "transformers", "conversion_mapping.py", "def get_model_conversion_mapping("),
    Written(streaming.num_references, "torch", "_C/__init__.pyi", "def _storage_Use_Count("),
    *(
        Written(user, "transformers", f"models/{family}/modeling_{family}.py", text)
        for family, kind, cast in (("gemma2", "Gemma2Text", ".to(self.weight.dtype)"), ("bart", "Bart", ""))
        for user, text in (
            (streaming.is_table, f"class {kind}ScaledWordEmbedding(nn.Embedding):"),
            (streaming.scaled, f"return super().forward(input_ids) * self.embed_scale{cast}\n"),
        )
    ),
    # models/saving
    Written(saving.not_saved, "transformers", "modeling_utils.py", "in self._keys_to_ignore_on_save"),
    Written(saving.as_in_files, "transformers", "core_model_loading.py", "def revert_weight_conversion(model: "),
    # engine
    *(Written(pace.Pace, "deepspeed", "comm/torch.py", f"def {name}(self") for name in pace.COLLECTIVES),
    *coordinator_names(
        "self.__trace_mode: ", "self.__submodule_order: ", "self.__param_order: ", "self.__step_id: ",
        "self.__n_available_params: ", "self.__param_queue: ", "    def reset_step(self)", "COMPLETE",
        "def _clear_trace_structures(self)", "def _clean_inflight_param_registry(self)",
    ),
    Written(pace.Pace.rewind, "deepspeed", PARTITIONED, "param.ds_persist = "),
    Written(pace.Pace.rewind, "deepspeed", PARTITIONED, "param.ds_active_sub_modules = "),
    Written(engine.communication, "deepspeed", "comm/comm.py", "\ncdb = None"),
    Written(engine.keeping_linear, "deepspeed", PARTITIONED, "torch.nn.functional.linear = zero3_linear_wrap"),
    *(
        Written(engine.flat_masters, "deepspeed", file, f"self.{name} = []")
        for name, file in engine.FLAT_MASTERS.items()
    ),
    *(
        Written(engine.link_moments, "deepspeed", file, text)
        for file in ("runtime/bf16_optimizer.py", "runtime/zero/stage_1_and_2.py")
        for text in ("self._hp_optimizer_states_linked = False", "def _lazy_init_hp_params_optimizer_state(self)")
    ),
    Written(engine.held_tensors, "deepspeed", "runtime/zero/stage_1_and_2.py", "class IPGBucket:"),
    Written(engine.held_tensors, "deepspeed", "runtime/zero/stage3.py", "class IPGBucketZ3:"),
    Written(engine.counts_steps_in_python, "deepspeed", "ops/adam/cpu_adam.py", "class DeepSpeedCPUAdam("),
    Written(engine.counts_steps_in_python, "deepspeed", "ops/adam/cpu_adam.py", "state['step'] = 0"),
    Written(engine.set_loss_scale, "deepspeed", "runtime/fp16/loss_scaler.py", "self.cur_scale = "),
    Written(engine.num_clean_steps, "deepspeed", "runtime/fp16/loss_scaler.py", "self.last_overflow_iter = "),
    Written(
        engine.finish_gathers,
        "deepspeed",
        "runtime/zero/partitioned_param_coordinator.py",
        "def _clean_inflight_param_registry(self)",
    ),
    Written(engine.finish_gathers, "deepspeed", "runtime/zero/parameter_offload.py", "def get_param_coordinator(self)"),
    Written(engine.is_partitioned, "deepspeed", PARTITIONED, "param.ds_id = "),
    Written(engine.own_part, "deepspeed", PARTITIONED, "param.ds_tensor = "),
    Written(engine.part_numel, "deepspeed", PARTITIONED, "param.ds_tensor.ds_numel = "),
    Written(engine.as_whole, "deepspeed", PARTITIONED, "param.ds_shape = "),
    Written(partitions.gathered, "deepspeed", PARTITIONED, "param.ds_status = ZeroParamStatus.AVAILABLE"),
    Written(partitions.gathered, "deepspeed", PARTITIONED, "param.all_gather = all_gather"),
    Written(partitions.gathered, "deepspeed", PARTITIONED, "param.partition = partition"),
    Written(engine.forget_ended_groups, "deepspeed", "utils/groups.py", "\n_WORLD_GROUP = None"),
    Written(engine.forget_ended_groups, "deepspeed", "comm/comm.py", "\ncdb = None"),
    Written(engine.without_inference_messages, "deepspeed", "comm/torch.py", "self.shm_comm_op = build_shm_op()"),
    Written(
        engine.DeepSpeedSays.NO_SUCH_PRECISION, "deepspeed", "runtime/engine.py", "is not supported on your device"
    ),
    Written(engine.DeepSpeedSays.NO_COMPILER, "deepspeed", "ops/op_builder/builder.py", "Unable to JIT load"),
    *optimizer_names(
        "zero/stage_1_and_2.py",
        "def _release_preflattened_grad_buffers(", "self.averaged_gradients = {}", "self.all_grad_tensors = {}",
        "self.ipg_buckets: ", "self.params_already_reduced = []", "def _clear_previous_reduced_grads(",
        "def _release_ipg_buffers(", "self.micro_step_id = ", "def reset_cpu_buffers(",
        "self._offload_accumulated_param_ids", "def clear_backward_seen_flag(", "    def clear(self)",
    ),
    *optimizer_names(
        "zero/stage3.py",
        "self.grad_partitions_flat_buffer", "self._offload_boundary_param_ids", "self.persistent_parameters",
        "def clear_params(self)", "def reset_cpu_buffers(", "self.averaged_gradients",
    ),
    *optimizer_names("zero/parameter_offload.py", "def get_param_coordinator(", "def partition_all_parameters("),
    *optimizer_names(
        "zero/partitioned_param_coordinator.py", "def release_backward_leftovers(", "def is_invalid_trace(",
        "def _invalidate_trace(",
    ),
    *optimizer_names("base_optimizer.py", "def _backward_active_depth(self)", "def exit_backward("),
    # observe
    Written(observe.MODE_FRAMES, "torch", "_compile.py", "def inner("),
    Written(observe.BACKWARD_FRAME, "torch", "autograd/graph.py", "def _engine_run_backward("),
    # models/kernels
    Written(kernels.DispatchMode, "torch", "utils/_python_dispatch.py", "if cls._should_skip_dynamo():"),
    Written(kernels.top_mode, "torch", "utils/_python_dispatch.py", "def _get_current_dispatch_mode("),
    Written(kernels.left_for_a_while, "torch", "utils/_python_dispatch.py", "def _pop_mode_temporarily("),
    Written(kernels.alias, "torch", "utils/checkpoint.py", "_SetExcludeDispatchKeyGuard("),
    Written(kernels.num_changes, "torch", "utils/checkpoint.py", "self.val._version"),
    Written(observe.wraps_tensors, "torch", "utils/_python_dispatch.py", "def is_traceable_wrapper_subclass_type("),
    # plan/tracing
    Written(tracing.is_fake, "torch", "_subclasses/fake_tensor.py", "constant: Tensor | None"),
    Written(tracing.fake_of, "torch", "_subclasses/fake_tensor.py", "fake_mode_or_elem: FakeTensorMode | Tensor"),
    Written(tracing.below_fake, "torch", "_subclasses/fake_tensor.py", "def in_kernel_invocation_manager("),
    Written(tracing.without_modes, "torch", "_subclasses/fake_tensor.py", "torch._C._DisableTorchDispatch()"),
    Written(tracing.changes_layout, "torch", "_subclasses/fake_tensor.py", "torch.Tag.inplace_view in func.tags"),
    Written(tracing.dropout_by, "torch", "nn/functional.py", "def dropout("),
    Written(tracing.attention_by, "torch", "nn/functional.py", "scaled_dot_product_attention = "),
    Written(tracing.softmax_by, "torch", "nn/functional.py", "def softmax("),
    Written(tracing.fused_adam_anywhere, "torch", "optim/adam.py", "_device_dtype_check_for_fused(p)"),
    Written(tracing.every_update_taken, "torch", "amp/grad_scaler.py", "def _maybe_opt_step("),
    Written(tracing.grouped_products, "transformers", "integrations/moe.py", "if _can_use_grouped_mm(input, "),
    Written(tracing.grouped_products, "torch", "_meta_registrations.py", "return _meta_grouped_mm_common("),
    Written(tracing.grouped_products, "torch", "_meta_registrations.py", "def _create_grouped_mm_output_tensor(mat1, "),
    Written(tracing.unpacked_batches, "transformers", "masking_utils.py", "= find_packed_sequence_indices("),
    Written(tracing.taken_for_fake, "transformers", "utils/import_utils.py", "def is_fake_tensor("),
]  # fmt: skip
TRIED = {
    kernels.softmax_backward, kernels.is_llama_norm,
    models.storage_key, models.saving_hooks, models.patched,
    engine.own_parameters, engine.own_buffers, engine.watch_parameters,
    observe.fake_device, observe.tensor_users, observe.is_backward,
    tracing.fake_mode, tracing.meta_cannot, tracing.needs_values, tracing.stay, tracing.schema,
}  # fmt: skip
"""What the tests below try, since it stands in compiled code or is Python's own."""


@pytest.mark.parametrize("written", WRITTEN, ids=str)
def test_a_name_is_where_it_was(written):
    package = distribution(written.package)
    file = Path(str(package.locate_file(written.package)), written.file)

    assert written.text in file.read_text(encoding="utf-8"), (
        f"{written.package} {package.version} has renamed or removed {written.text.strip()!r} of {written.file}, "
        f"which {written.needed_by} needs"
    )


@pytest.mark.parametrize(
    "file",
    [reading, machine, models, kernels, saving, sources, streaming, engine, observe, tracing],
    ids=lambda file: file.__name__,
)
def test_every_function_of_a_file_of_foreign_names_has_its_contract(file):
    own = {
        value
        for name, value in vars(file).items()
        if isinstance(value, types.FunctionType) and value.__module__ == file.__name__ and not name.startswith("_")
    }

    assert own - {written.user for written in WRITTEN if isinstance(written.user, types.FunctionType)} - TRIED == set()


def test_the_gradient_of_a_softmax_is_autograds():
    scores, grad = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)
    weights = torch.softmax(scores, -1)
    weights.backward(grad)

    torch.testing.assert_close(kernels.softmax_backward(grad, weights.detach()), scores.grad)


def test_a_name_that_has_gone_is_not_patched_silently():
    with pytest.raises(AttributeError, match="scaled_dot_attention"):
        models.patched(nn.functional, "scaled_dot_attention", None).__enter__()


def test_a_patch_ends_with_its_block_also_where_that_fails():
    original = nn.functional.relu
    with contextlib.suppress(ZeroDivisionError), models.patched(nn.functional, "relu", abs):
        assert nn.functional.relu is abs
        raise ZeroDivisionError

    assert nn.functional.relu is original


def test_a_storage_has_one_key_however_it_is_looked_at():
    tensor, other = torch.ones(4), torch.ones(4)

    assert models.saving_hooks()[0](tensor) is tensor
    with torch.autograd.graph.saved_tensors_hooks(lambda one: (one,), lambda kept: kept[0]):
        assert models.saving_hooks()[0](tensor) == (tensor,)
    assert models.storage_key(tensor.untyped_storage()) == models.storage_key(tensor[1:].untyped_storage())
    assert models.storage_key(tensor.untyped_storage()) != models.storage_key(other.untyped_storage())


def test_a_module_looks_its_parameters_up_in_the_dictionary_that_is_put_in_their_place():
    class Watched(dict):
        def __getitem__(self, key):
            asked.append(key)
            return super().__getitem__(key)

    asked: list[str] = []
    layer = nn.BatchNorm1d(2)
    engine.watch_parameters(layer, Watched(engine.own_parameters(layer)))
    assert layer.weight is not None

    assert asked == ["weight"]
    assert set(engine.own_buffers(layer)) == {"running_mean", "running_var", "num_batches_tracked"}


def test_torch_counts_who_uses_a_storage_and_a_tensor():
    tensor = torch.ones(4)
    storage = tensor.untyped_storage()
    before = streaming.num_references(storage)
    view = tensor[1:]

    assert streaming.num_references(storage) == before + 1
    assert observe.tensor_users(view) >= 1


def test_a_mode_sees_whether_the_backward_itself_called_an_operator():
    class Asking(kernels.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.mul.Tensor:
                answers.append(observe.is_backward(inspect.currentframe().f_back))
            return func(*args, **(kwargs or {}))

    answers: list[bool] = []
    weight = torch.ones(1, requires_grad=True)
    with Asking():
        (weight * 2 * weight).backward()

    assert answers[:2] == [False, False]
    assert set(answers[2:]) == {True}


def test_in_a_thread_that_python_has_not_started_it_is_the_backward_that_calls():
    """As autograd's threads of accelerators are; nothing has called the first function of a bare thread either."""
    answers: queue.Queue[bool] = queue.Queue()

    def mode():
        answers.put(observe.is_backward(inspect.currentframe().f_back))

    def code_that_a_backward_runs():
        mode()

    for first, wanted in ((mode, True), (code_that_a_backward_runs, False)):
        _thread.start_new_thread(first, ())
        assert answers.get(timeout=60) is wanted


def test_fake_tensors_say_where_they_are_and_what_needs_their_values():
    with tracing.fake_mode():
        fake = torch.ones(4)
    assert observe.fake_device(fake) == torch.device("cpu")
    assert observe.fake_device(torch.ones(1)) is None

    for ask in (torch.Tensor.item, torch.nonzero, torch.unique, torch.Tensor.numpy):
        with tracing.fake_mode(), pytest.raises(RuntimeError) as raised:
            ask(fake.sum() if ask is torch.Tensor.item else fake)
        assert tracing.needs_values(raised.value), ask


META_CANNOT = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "nonzero": lambda x: x.nonzero(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
    "another device": lambda x: x + torch.ones(4),
}
NOBODY_CAN = {"expand": lambda x: x.expand(3, 5), "product": lambda x: x @ torch.ones(3, 3, device="meta")}


@pytest.mark.parametrize("name", [*META_CANNOT, *NOBODY_CAN])
def test_what_meta_cannot_do_is_told_from_what_no_tensor_can(name):
    ask = (META_CANNOT | NOBODY_CAN)[name]
    with pytest.raises((RuntimeError, TypeError)) as raised:
        ask(torch.ones(4, device="meta"))

    assert tracing.meta_cannot(raised.value) is (name in META_CANNOT)


def test_torch_says_that_memory_is_out_and_that_dtypes_differ():
    with pytest.raises(RuntimeError, match=machine.TorchSays.NO_HOST_MEMORY):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=machine.TorchSays.OTHER_DTYPE):
        torch.bmm(torch.ones(1, 2, 2), torch.ones(1, 2, 2).half())


def test_a_model_stays_where_it_is():
    model = nn.Linear(2, 2, device="meta")
    tracing.stay(model)

    assert model.to(torch.device("cpu")) is model


def test_an_operator_says_what_its_results_share():
    view, product = tracing.schema(torch.ops.aten.view.default), tracing.schema(torch.ops.aten.mul.Tensor)

    assert view.returns[0].alias_info is not None
    assert product.returns[0].alias_info is None
