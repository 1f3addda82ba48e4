"""What layers keep for their backward leaves for the host and comes back in time, and nothing else does."""

import gc

import pytest
import torch
import transformers

from ftkit.config.recompute import Recompute
from ftkit.errors import ModelError
from ftkit.models.activations import offload
from ftkit.models.activations.link import BlockingLink
from ftkit.models.activations.recompute import set_recompute

LAYERS, BATCH, LENGTH, WIDTH = 6, 2, 16, 32
HIDDEN_BYTES = 4 * BATCH * LENGTH * WIDTH


class Logged(BlockingLink):
    """Copies to other memory of the CPU, and writes down when; a wait is late, as on a stream."""

    def __init__(self):
        self.log, self.kept = [], []

    def leave(self, storage):
        host, _ = super().leave(storage)
        number = len(self.kept)
        self.kept.append(host)
        self.log.append(("leaves", number))
        return host, lambda: self.log.append(("has left", number))

    def come(self, host, device):
        number = next(number for number, one in enumerate(self.kept) if one is host)
        self.log.append(("comes", number))

        def wait():
            BlockingLink.come(self, host, device)
            self.log.append(("is there", number))

        device.fill_(255)  # whoever reads it too early finds no number
        return wait


@pytest.fixture
def link(monkeypatch):
    made = Logged()
    monkeypatch.setattr(offload, "SMALLEST_BYTES", HIDDEN_BYTES)
    monkeypatch.setattr(offload, "link_for", lambda _: made)
    return made


def llama(*, offloads=True, recompute="layer"):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, vocab_size=50,
        pad_token_id=0, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    if offloads:
        offload.attach(model)
    set_recompute(model, Recompute.model_validate(recompute))
    return model.train()


def loss_of(model):
    ids_BT = torch.randint(1, 50, (BATCH, LENGTH), generator=torch.Generator().manual_seed(4))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[:, -1] = 0
    return model(input_ids=ids_BT, attention_mask=mask_BT, labels=ids_BT).loss


def gradients(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters()}


def test_the_input_of_each_layer_but_the_last_leaves_once_and_comes_back_one_layer_ahead(link):
    gradients(llama())

    up = [("leaves", 0)]
    for number in range(1, LAYERS - 1):  # what a layer keeps is given up when the next one has run
        up += [("leaves", number), ("has left", number - 1)]
    up += [("has left", LAYERS - 2)]
    down = [("comes", LAYERS - 2)]
    for number in range(LAYERS - 2, 0, -1):  # the backward of a layer begins: its input is there, the next one comes
        down += [("is there", number), ("comes", number - 1)]
    assert link.log == [*up, *down, ("is there", 0)]


@pytest.mark.parametrize("recompute", ["none", "cheap", "layer", {"cheap": 0.5, "layer": 0.5}], ids=str)
def test_what_comes_late_is_waited_for_so_that_gradients_stay_to_the_bit(recompute, link):
    plain = gradients(llama(offloads=False, recompute=recompute))
    model = llama(recompute=recompute)
    for _ in range(2):  # micro-batches
        found = gradients(model)
        assert [name for name, one in found.items() if not torch.equal(one, plain[name])] == []
    assert link.log.count(("comes", 0)) == 1
    assert len(link.kept) == 2 * len(set(link.kept[: len(link.kept) // 2]))


def test_weights_masks_and_positions_stay_and_what_several_products_read_leaves_once(link, monkeypatch):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    model, shared, left, first = llama(recompute="none"), [], [], []
    leave = link.leave

    def look(_, __, keywords):
        shared.extend([keywords["attention_mask"], *keywords["position_embeddings"]])

    def note(storage):
        left.append(storage.untyped_storage().data_ptr())
        return leave(storage)

    model.model.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    model.model.layers[0].register_forward_hook(lambda *_: first.extend(left))
    monkeypatch.setattr(link, "leave", note)
    loss = loss_of(model)
    stays = {one.untyped_storage().data_ptr() for one in [*shared, *model.parameters(), *model.buffers()]}
    assert len(shared) == 3
    assert left
    assert not stays & set(left)
    assert len(first) == len(set(first)), "query, key and value read one input"
    loss.backward()


def test_between_forward_and_backward_the_device_has_what_the_last_layer_keeps(link):
    model = llama()
    loss = loss_of(model)
    gc.collect()
    kept = [one() for layer in _offload(model)._of_layer for one in layer]
    assert [one.leaving for one in kept] == (LAYERS - 1) * [None]
    assert [one.back for one in kept] == (LAYERS - 1) * [None]
    del kept
    loss.backward()
    del loss
    assert not any(one() for layer in _offload(model)._of_layer for one in layer)
    assert link.log[-1] == ("is there", 0)


def test_a_step_that_breaks_off_in_its_backward_leaves_nothing_and_the_next_one_is_right(link):
    plain = gradients(llama(offloads=False))
    model = llama()

    def break_off(_):
        raise RuntimeError("no more memory")

    def watch(_, __, hidden):
        hidden.register_hook(break_off)

    handle = model.model.layers[2].register_forward_hook(watch)
    with pytest.raises(RuntimeError, match="no more memory"):
        gradients(model)
    handle.remove()
    assert ("comes", 2) in link.log
    assert ("is there", 2) not in link.log, "it is on its way"

    begun = len(link.log)
    found = gradients(model)
    assert link.log[begun] == ("is there", 2), "what is on its way is waited for before its memory is used anew"
    assert all(torch.equal(one, plain[name]) for name, one in found.items())


def test_what_is_changed_in_place_after_it_was_kept_is_not_taken_for_what_it_was(link):
    model = llama()
    given: list[torch.Tensor] = []

    def change(*_):
        given[0].detach().add_(1)

    model.model.layers[2].register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
    model.model.layers[3].register_forward_pre_hook(change)
    with pytest.raises(AssertionError, match="changed in place after it"):
        loss_of(model)


def test_in_evaluation_nothing_leaves(link):
    with torch.no_grad():
        loss_of(llama())
    loss_of(llama().eval())
    assert link.log == []


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match=r"Linear has no layers whose activations can be offloaded; leave out model\."):
        offload.attach(torch.nn.Linear(2, 2))


def _offload(model):
    return vars(model.model.layers[0])["_ftkit_offload"][0]
