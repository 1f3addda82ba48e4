"""PEFT is shown bitsandbytes only where layers are in 4 bits."""

import subprocess
import sys

CODE = """
import sys
import torch
from torch import nn
from ftkit.models.sources.start import Start
from ftkit.models.methods.lora import Lora, Qlora

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(64, 64)})])

    def forward(self, x):
        return self.layers[0]["up"](x)

plain = Lora().prepare(Model(), Start(), torch.float32)
print("bitsandbytes" in sys.modules, type(plain.get_base_model().layers[0]["up"]).__module__)
packed = Model()
packed.get_output_embeddings = lambda: None
packed = Qlora().prepare(packed, Start(), torch.float32)
print("bitsandbytes" in sys.modules, type(packed.get_base_model().layers[0]["up"]).__module__)
"""


def test_lora_does_not_load_bitsandbytes_and_a_qlora_after_it_gets_the_adapters_of_4_bit_layers():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False peft.tuners.lora.layer", "True peft.tuners.lora.bnb"]
