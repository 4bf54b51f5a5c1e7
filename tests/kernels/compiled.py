"""Compiles the Triton kernels as they are started for typical work; run as a program, without a GPU.

``python compiled.py 80`` prints one JSON object a line: what was compiled, registers, bytes of stack.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ksurgeon.kernels.cuda.digits import whole_plan
from ksurgeon.kernels.cuda.plan import outer_tiles, step_tiles, whole_tiles
from ksurgeon.kernels.cuda.step import apply_step, outer_step
from ksurgeon.kernels.cuda.whole import apply_whole
from ksurgeon.kmatrix.structures import Kaleidoscope
from ksurgeon.patterns.pattern import Pattern

KINDS = {"bf16": triton.language.bfloat16, "fp16": triton.language.float16}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "complex": 8}
PROGRAMS = 264
# (pattern (a, b, c, d), rows, dtype, vectors in rows, whether the gradient of the factor)
STEPS = [
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
    ((1, 32, 32, 32), 4096, "complex", True, False),
    ((32, 32, 32, 1), 4096, "complex", True, False),
    ((1, 8, 8, 512), 4096, "complex", True, False),
    ((1, 32, 32, 32), 4096, "complex", True, True),
]
# (inputs, outputs, rows, dtype, vectors in rows)
WHOLE = [
    (256, 256, 25088, "bf16", True),
    (768, 768, 25088, "bf16", True),
    (1024, 1024, 4096, "bf16", True),
    (1024, 1024, 1, "bf16", True),
    (512, 1024, 4096, "fp16", True),
    (256, 256, 100352, "fp16", False),
    (512, 512, 4096, "fp32", True),
    (116, 116, 3136, "bf16", False),
    (256, 256, 3136, "fp32", False),
]


def work_of_step(
    shape: tuple[int, ...], rows: int, dtype: str, in_rows: bool, gradient: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """A kernel of one factor, how its work is cut, and what it is compiled for."""
    a, b, c, d = shape
    pattern = Pattern(a, b, c, d)
    constants = {"A": a, "D": d, "B": b, "C": c, "X_SPLIT": not in_rows, "COMPLEX": dtype == "complex"}
    if gradient:
        kernel = outer_step
        tiles, each = outer_tiles(pattern, rows, in_rows, BYTES[dtype], PROGRAMS)
        constants |= {"G_SPLIT": not in_rows, "EACH": each}
    else:
        kernel = apply_step
        tiles = step_tiles(pattern, rows, in_rows, BYTES[dtype], PROGRAMS)
        constants |= {"Y_SPLIT": not in_rows, "TRANSPOSED": False, "BACKWARDS": False, "ACTIVATION": None}
    return kernel, tiles, constants | {"GROUP": tiles.group, "OUT": tiles.out, "IN": tiles.inner}


def work_of_whole(
    inputs: int, outputs: int, rows: int, dtype: str, in_rows: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """The same of a whole chain."""
    plan = whole_plan(tuple(Kaleidoscope().patterns(inputs, outputs)), BYTES[dtype])
    assert plan is not None
    first, last = plan.steps[0], plan.steps[-1]
    constants = {
        "STEPS": plan.steps,
        "X_PLACES": tuple(tuple(digit) for digit in plan.places[0]),
        "Y_PLACES": tuple(tuple(digit) for digit in plan.places[1]),
        "X_ENTRIES": first[0] * first[2] * first[3],
        "Y_ENTRIES": last[0] * last[1] * last[3],
        "X_SPLIT": not in_rows,
        "Y_SPLIT": not in_rows,
        "TRANSPOSED": False,
        "ACTIVATION": "gelu",
    }
    return apply_whole, whole_tiles(plan.widest, rows, in_rows, BYTES[dtype], PROGRAMS), constants


def build(work: tuple[Any, ...], capability: int) -> "triton.compiler.CompiledKernel":
    kernel, tiles, constants = (work_of_whole if work in WHOLE else work_of_step)(*work)
    dtype, in_rows = (work[3], work[4]) if work in WHOLE else (work[2], work[3])
    constants |= {"WIDE": False, "ROWS": tiles.rows, "KIND": KINDS.get(dtype, triton.language.float32)}
    constants |= {"PRECISION": "ieee" if dtype in KINDS else "tf32x3"}
    stored = "fp32" if dtype == "complex" else dtype
    kinds = {name: f"*{stored}" for name in ("x", "g", "weight", "weights", "y", "bias")} | {"sums": "*fp32"}
    one = 2 if dtype == "complex" else 1
    strides = {f"{name}_{'stride' if in_rows else 'inner_stride'}": one for name in "gxy"}
    constants |= {name: 1 for name in strides if one == 1 and name in kernel.arg_names}
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
    for work in (*STEPS, *WHOLE):
        begun = time.perf_counter()
        kernel = build(work, capability)
        seconds = round(time.perf_counter() - begun, 2)
        registers, stack = resources(kernel.asm["cubin"])
        products = len(re.findall(r"\b(?:wgmma\.mma_async|mma)\.sync", kernel.asm["ptx"]))
        facts = {
            "work": work,
            "registers": registers,
            "stack": stack,
            "shared": kernel.metadata.shared,
            "seconds": seconds,
        }
        print(json.dumps(facts | {"matrix_instructions": products}), flush=True)


if __name__ == "__main__":
    main()
