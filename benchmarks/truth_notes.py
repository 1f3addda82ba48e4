"""What is said on the page of published peaks beside single rows, and of the runs that we measured ourselves."""

SCORES = (
    "live bytes agree, and what is reserved beside the trace is one matrix of scores of its eager attention, "
    "{size} GB; why no free block held it was not found."
)
LIGHTNING = (
    "{size} GB are reserved beside what is traced, and why was not found. Its script was read: each batch has 512 "
    "tokens, the last outputs and four counts are kept, and the evaluations before the figure is taken reserve no more "
    "(traced). The row says neither the version{unknown} nor the card."
)
PIECES = "live bytes agree, and {size} GB {compared} was measured are reserved in the trace; why was not found."
NOTES = {
    "fitcheck_0915_017": SCORES.format(size="0.30"),
    "fitcheck_0915_025": SCORES.format(size="0.50"),
    "fitcheck_0915_033": SCORES.format(size="0.54"),
    "fitcheck_0916_004": PIECES.format(size="0.77", compared="more than"),
    "fitcheck_0921_005": PIECES.format(size="0.69", compared="less than"),
    "fitcheck_0921_006": PIECES.format(size="0.53", compared="less than"),
    "fitcheck_0921_boundary_d043f8d89d19": (
        "fitcheck_0921_007 is a run of the same configuration, and reserved 1.46 GB less."
    ),
    "fitcheck_0915_022": (
        "PEFT's own adapters of packed layers, which are traced now, copy a result once more. The peak has the same "
        "tensors as before, when the error was -0.19%; memory is cut otherwise, and they lie in larger blocks."
    ),
    "rasbt_distilbert_ds2": LIGHTNING.format(size="0.50", unknown="s of torch and DeepSpeed"),
    "rasbt_distilbert_fsdp_off": LIGHTNING.format(size="0.15", unknown=" of Lightning"),
    "fsdpq_4090_Yi-34B_qlora_fsdp_off_bs4_2048": (
        "an RTX 4090 shows 23.52 GiB and not the 23.67 of an RTX 3090, so the model of the allocator gives back "
        "earlier than for the same run on that card (before the table of cards had both: -1.02%)."
    ),
}
"""What is to be said beside a row: why its prediction has moved by more than 0.5 %, or is far off."""

OF_OUR_OWN = (
    "Real trainings that we measured on an NVIDIA H200 with torch 2.11 (CUDA 13.0), three steps each on random",
    "ids, with random weights of the models' sizes: transformers' Trainer with AdamW, paged 8-bit AdamW and",
    "Liger's kernels (`benchmarks/stacks_on_a_gpu.py` repeats these), and torchtune's released recipes with the",
    "settings of its README, their packs of 32 documents each. They are not counted above. No constant is fitted",
    "to them, but the errors are no longer those of a blind trace: *before the run* is what the trace had said",
    "before anything was measured, and what the runs showed to be wrong was mended. cuBLAS's workspaces are",
    "larger on Hopper (64 MiB in all). Autocast casts query and key before torch chooses how to attend. PEFT",
    "adapts packed layers by a class of their own, which casts nothing under autocast. The scales of paged 8-bit",
    "moments stay on the card. torchtune's release compiles no norm outside of its layers.",
)
"""What is said of the runs that we measured ourselves."""
