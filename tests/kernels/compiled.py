"""Compiles the Triton kernels as they are started for typical work; run as a program, without a GPU.

``python compiled.py 80`` prints one JSON object a line: what was compiled, registers, bytes of stack.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ksurgeon.kernels.cuda.plan import outer_tiles, step_tiles
from ksurgeon.kernels.cuda.step import apply_step, outer_step
from ksurgeon.kmatrix.patterns import Pattern

KINDS = {"bf16": triton.language.bfloat16, "fp16": triton.language.float16, "fp32": triton.language.float32}
# (pattern (a, b, c, d), rows, dtype, vectors in rows, whether the gradient of the factor)
WORK = [
    ((1, 64, 64, 64), 4096, "bf16", True, False),
    ((64, 64, 64, 1), 4096, "bf16", True, False),
    ((1, 64, 64, 64), 1, "bf16", True, False),
    ((1, 64, 16, 48), 25088, "fp16", True, False),
    ((1, 128, 128, 64), 4096, "bf16", True, False),
    ((1, 64, 64, 64), 4096, "fp32", True, False),
    ((16, 48, 48, 1), 1024, "fp32", True, False),
    ((1, 29, 29, 4), 3136, "bf16", False, False),
    ((1, 64, 64, 64), 4096, "bf16", True, True),
    ((64, 64, 64, 1), 4096, "bf16", True, True),
    ((1, 64, 64, 64), 4096, "fp32", True, True),
]


def build(work: tuple, capability: int) -> "triton.compiler.CompiledKernel":
    (a, b, c, d), rows, dtype, in_rows, gradient = work
    pattern, half = Pattern(a, b, c, d), dtype != "fp32"
    constants = {"A": a, "D": d, "B": b, "C": c, "X_SPLIT": not in_rows, "WIDE": False}
    constants |= {"PRECISION": "ieee" if half else "tf32x3", "KIND": KINDS[dtype]}
    stride = "stride" if in_rows else "inner_stride"
    ones = [f"{name}_{stride}" for name in "gxy"]
    if gradient:
        kernel = outer_step
        tiles, each = outer_tiles(pattern, rows, in_rows, 2 if half else 4, 264)
        kinds = {"g": f"*{dtype}", "x": f"*{dtype}", "sums": "*fp32"}
        constants |= {"G_SPLIT": not in_rows, "EACH": each}
    else:
        kernel = apply_step
        tiles = step_tiles(pattern, rows, in_rows, 2 if half else 4, 264)
        kinds = {"x": f"*{dtype}", "weight": f"*{dtype}", "y": f"*{dtype}", "bias": f"*{dtype}"}
        constants |= {"Y_SPLIT": not in_rows, "TRANSPOSED": False, "BACKWARDS": False}
    constants |= {"ROWS": tiles.rows, "GROUP": tiles.group, "OUT": tiles.out, "IN": tiles.inner}
    constants |= {name: 1 for name in ones if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names
    }
    aligned = [*kinds, "x_inner_stride", "y_inner_stride", "g_inner_stride"]
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if name in aligned and name not in constants
    }
    source = ASTSource(
        kernel,
        signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of its stack: where it keeps what does not fit them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+)", said), re.search(r"STACK:(\d+)", said)
    assert registers and stack, said
    return int(registers[1]), int(stack[1])


def main() -> None:
    capability = int(sys.argv[1])
    for work in WORK:
        kernel = build(work, capability)
        registers, stack = resources(kernel.asm["cubin"])
        products = len(re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync", kernel.asm["ptx"]))
        facts = {"work": work, "registers": registers, "stack": stack, "shared": kernel.metadata.shared}
        print(json.dumps(facts | {"matrix_instructions": products}), flush=True)


if __name__ == "__main__":
    main()
