"""K-matrix layers against dense layers and their peers: ``python -m benchmarks.kernels --json FILE``.

Everything is measured side by side in one process: the candidates of a shape run in turns of some
milliseconds, so that a change of the machine's clock or load meets all of them. Shown are medians, with
the spread from the first to the ninth decile. ``--json`` adds to a file, so that a long run can be had in
pieces (``--only``, ``--sizes``, ``--rows``).
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import layers, results, shuffles
from benchmarks.training import memory, training
from ksurgeon.kmatrix.structures import Kaleidoscope, LowRank

PARTS = (
    "linear",
    "bfloat16",
    "int8",
    "threads",
    "training",
    "memory",
    "convolution",
    "fused",
    "shuffle",
    "model",
)
TITLE = "K-matrices on CPU"
Cases = Iterator[Callable[[], Any]]


def cases(part: str, sizes: list[tuple[int, int]], rows: list[int], seconds: float, quick: bool) -> Cases:
    """The measurements of a part, each to be called; the largest are left out of a quick run."""
    for size in sizes:
        for count in rows:
            if part == "linear":
                yield lambda s=size, r=count: layers.linear(*s, r, seconds)
            elif part == "bfloat16" and count in (1, 16, 256):
                yield lambda s=size, r=count: layers.bfloat16(*s, r, seconds)
            elif part == "int8" and count in (1, 16, 256):
                for structure in (Kaleidoscope(), LowRank(share=0.5)):
                    yield lambda s=size, r=count, k=structure: layers.int8(*s, r, k, seconds)
            elif part == "threads" and (count >= 256 or count == 1):
                yield lambda s=size, r=count: layers.threads(*s, r, seconds)
    if part == "training":
        yield lambda: training(1024, 256, seconds)
    elif part == "memory":
        yield from (
            lambda n=n, r=r: memory(n, r) for n, r in ((1024, 256), (2048, 2048))[: 1 if quick else 2]
        )
    elif part == "convolution":
        for shape in layers.CONVOLUTIONS:
            if quick and shape[-1] > 1:
                continue
            yield from (lambda s=shape, t=t: layers.convolution(*s, t, seconds) for t in (False, True))
    elif part == "fused":
        yield from (lambda r=r: layers.fused(768, 3072, r, seconds) for r in (1, 197))
    elif part == "shuffle":
        yield from (lambda s=shape: shuffles.shuffle(*s, seconds) for shape in shuffles.SHUFFLES)
    elif part == "model":
        yield lambda: shuffles.shufflenet(4 * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also add the figures to this file")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--sizes", nargs="+", default=[f"{i}x{o}" for i, o in layers.SIZES], metavar="INxOUT")
    parser.add_argument("--rows", type=int, nargs="+", default=layers.ROWS)
    parser.add_argument("--seconds", type=float, default=0.5, help="per candidate and shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few shapes and short: less than a minute")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    sizes = [(int(i), int(o)) for i, _, o in (size.partition("x") for size in arguments.sizes)]
    rows, seconds = list(arguments.rows), arguments.seconds
    if arguments.quick:
        sizes = [size for size in sizes if size in ((512, 512), (768, 3072), (1024, 1024))]
        rows, seconds = [count for count in rows if count in (1, 256)], min(seconds, 0.1)
    setting = results.cpu_setting(arguments.threads)
    done: list[dict[str, Any]] = []
    for part in arguments.only:
        for case in cases(part, sizes, rows, seconds, arguments.quick):
            found = case()
            found = found if isinstance(found, list) else [found]
            done += found
            print("·", found[-1]["part"], found[-1]["case"], found[-1]["rows"], flush=True)
            if arguments.json:
                results.add(arguments.json, TITLE, setting, found)
    results.show(f"{TITLE}: {', '.join(f'{name} {value}' for name, value in setting.items())}", done)


if __name__ == "__main__":
    main()
