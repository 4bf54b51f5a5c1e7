"""K-matrices in data-parallel and sharded training: two processes learn what one does."""

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ksurgeon.kmatrix.linear import KLinear
from tests.export import dynamic_batch

WORLD = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(KLinear(32, 64), nn.GELU(), KLinear(64, 32)).double()


def loss(y: Tensor) -> Tensor:
    return y.square().sum() / 100


def learn(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    try:
        alone = network()
        parallel, sharded = DistributedDataParallel(copy.deepcopy(alone)), copy.deepcopy(alone)
        for child in sharded:
            if isinstance(child, KLinear):
                fully_shard(child)
        fully_shard(sharded)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, parallel, sharded)]
        for seed in range(2):
            x = torch.randn(8, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():  # what is kept for inference must not outlive a step
                wanted = alone(x)
                assert torch.allclose(parallel(x), wanted) and torch.allclose(sharded(x), wanted)
            (loss(alone(x)) / WORLD).backward()
            loss(parallel(x[rank::WORLD])).backward()
            loss(sharded(x[rank::WORLD])).backward()
            for one, two, three in zip(
                alone.parameters(), parallel.parameters(), sharded.parameters(), strict=True
            ):
                assert torch.allclose(two.grad, one.grad)
                assert torch.allclose(three.grad.full_tensor(), one.grad)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    finally:
        dist.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(learn, (str(tmp_path / "store"),), nprocs=WORLD)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    layer = KLinear(64, 48).eval()
    x = torch.randn(5, 64)
    program = torch.export.export(layer, (x,), dynamic_shapes=dynamic_batch())
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for rows in (5, 9) if dynamic_batch() else (5,):
        x = torch.randn(rows, 64)
        assert torch.allclose(compiled(x), layer(x), atol=1e-6)
