"""What one operator costs the host: a training step of a model so small that its kernels cost nothing.

    python benchmarks/host_cost.py

Prints the time of one core (not the wall's, which other processes stretch) for each operator that the planner counts,
and for each number of a list of which a tensor is made.
"""

import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ftkit.observe.recorder import Recorder  # found from the line above
from ftkit.step.observer import Phase  # found from the line above

SIZES = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 12, "n_head": 4},
}
STEPS, LISTED = 40, 8192


def main() -> None:
    """Measure each model."""
    torch.set_num_threads(1)
    ids = torch.ones(1, 8, dtype=torch.int64)
    for kind, sizes in SIZES.items():
        config = transformers.AutoConfig.for_model(kind, vocab_size=64, use_cache=False, **sizes)
        model = transformers.AutoModelForCausalLM.from_config(config).train()
        for _ in range(5):
            model(input_ids=ids, labels=ids).loss.backward()
        begin = time.process_time()
        for _ in range(STEPS):
            model(input_ids=ids, labels=ids).loss.backward()
        seconds = (time.process_time() - begin) / STEPS
        count = num_operators(model, ids)
        print(f"{kind}: {seconds * 1e3:.1f} ms a step, {count} operators, {seconds / count * 1e6:.1f} us each")
    numbers = list(range(LISTED))
    begin = time.process_time()
    for _ in range(STEPS):
        torch.tensor(numbers)
    print(f"a list: {(time.process_time() - begin) / STEPS / LISTED * 1e6:.2f} us a number")


def num_operators(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Return how many operators of a step the planner counts."""
    with Recorder() as recorder:
        with recorder.during(Phase.FORWARD):
            loss = model(input_ids=ids, labels=ids).loss
        with recorder.during(Phase.BACKWARD):
            loss.backward()
    return sum(sum(counter.values()) for counter in recorder.tape.costs.values())


if __name__ == "__main__":
    main()
