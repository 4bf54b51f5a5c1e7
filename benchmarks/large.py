"""How long a model of a billion parameters takes to be analysed, and how much memory.

``python -m benchmarks.large`` builds Llama's architecture on the meta device, where nothing is computed, and
prints seconds and the most memory that the process ever held.
"""

import resource
import sys
import time

import torch

import ksurgeon


def main() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=2048,
                intermediate_size=5632,
                num_hidden_layers=22,
                num_attention_heads=32,
                num_key_value_heads=4,
            )
        )
    size = sum(parameter.numel() for parameter in model.parameters())
    begin = time.perf_counter()
    sites = ksurgeon.find(model)
    seconds = time.perf_counter() - begin
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"{size / 1e9:.2f} billion parameters, {len(sites)} sites: {seconds:.1f} s, {peak:.2f} GiB at most")


if __name__ == "__main__":
    main()
