"""work.py MODE FILE STEPS: a deterministic GPU program that appends `step value` lines to FILE, STEPS of them.

Every value depends on what was on the GPU before, so that a line of a restored run is equal to that of an uninterrupted
one only if all of it came back. Run by the tests twice: in a container that is captured and restored, and alone.
"""

import hashlib
import os
import sys
import time

MODE, FILE, STEPS = sys.argv[1], sys.argv[2], int(sys.argv[3])
PAUSE = 0.05
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def digest(data):
    return hashlib.sha256(bytes(data)).hexdigest()[:16]


def seeded():
    import torch

    torch.manual_seed(1)
    data = torch.randint(0, 1 << 30, (1 << 26,), device="cuda", dtype=torch.int64)
    while True:
        data = (data * 3 + 1) % 1000003
        yield int(data.sum())


def big():
    import torch

    torch.manual_seed(1)
    count = int(os.environ.get("GIB", "40")) // 4
    parts = [torch.randint(0, 1 << 30, (1 << 30,), device="cuda", dtype=torch.int32) for _ in range(count)]
    while True:
        yield [int(part[:: 1 << 10].sum()) for part in parts] + [int(parts[len(parts) // 2].sum())]


def whole():
    """Every word of it counts, by its place: 2 GiB of data, and weights."""
    import torch

    torch.manual_seed(3)
    made = [torch.randint(-(1 << 31), 1 << 31, (1 << 28,), device="cuda", dtype=torch.int32) for _ in range(3)]
    weights = made.pop() | 1
    while True:
        yield [int((part * weights).sum(dtype=torch.int64)) for part in made] + [int(weights.sum(dtype=torch.int64))]


def training():
    import torch

    torch.manual_seed(2)
    torch.use_deterministic_algorithms(True)
    layers = [torch.nn.Linear(512, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 512)]
    model = torch.nn.Sequential(*layers).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    while True:
        batch = torch.randn(256, 512, device="cuda")
        loss = ((model(batch) - batch.roll(1, 1)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item().hex()


def graphs():
    import torch

    torch.manual_seed(3)
    host = torch.arange(1 << 20, dtype=torch.float32).pin_memory()
    static = torch.zeros(1 << 20, device="cuda")
    side, done = torch.cuda.Stream(), torch.cuda.Event()
    graph = torch.cuda.CUDAGraph()
    static.copy_(host)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        static.mul_(1.0000001).add_(1.0)
    while True:
        graph.replay()
        with torch.cuda.stream(side):
            side.wait_stream(torch.cuda.default_stream())
            host.copy_(static, non_blocking=True)
            done.record(side)
        done.synchronize()
        yield digest(host.numpy().tobytes())


def tokens():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(4)
    model = GPT2LMHeadModel(GPT2Config(n_layer=4, n_head=4, n_embd=256, vocab_size=5000, n_positions=512)).cuda().eval()
    ids = torch.arange(8, device="cuda")[None]
    while True:
        with torch.no_grad():
            ids = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[:, -256:]
        yield digest(ids.cpu().numpy().tobytes())


def model():
    """A language model whose weights are in the file MODEL (made where it is missing), token by token."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(n_layer=48, n_head=25, n_embd=1600)  # GPT-2 XL: 1.5 billion parameters
    with torch.device("meta"):
        model = GPT2LMHeadModel(settings).half()
    if not os.path.exists(os.environ["MODEL"]):
        torch.manual_seed(9)
        torch.save({k: torch.randn(v.shape).half() / 50 for k, v in model.state_dict().items()}, os.environ["MODEL"])
    weights = torch.load(os.environ["MODEL"], mmap=True, map_location="cuda")
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model = model.cuda().eval()
    ids, cache = torch.arange(64, device="cuda")[None], None
    while True:
        with torch.no_grad():
            out = model(ids, past_key_values=cache, use_cache=True)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        yield int(ids)


def cupy():
    import cupy as cp

    data = cp.arange(1 << 24, dtype=cp.int64)
    while True:
        data = (data * 3 + 1) % 1000003
        yield int(data.sum())


def jax():
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    import jax.numpy as jnp
    import numpy
    from jax import jit, random

    step = jit(lambda x: jnp.tanh(x @ x.T @ x / 1000.0 + 0.1))
    data = random.normal(random.PRNGKey(5), (512, 512))
    while True:
        data = step(data)
        yield digest(numpy.asarray(data).tobytes())


def two():
    import subprocess

    subprocess.Popen([sys.executable, __file__, "seeded", FILE + ".second", str(STEPS)])
    yield from seeded()


def both():
    """One process with two GPUs, each of which has what the other made."""
    import torch

    torch.manual_seed(6)
    first = torch.randint(0, 1 << 20, (1 << 26,), device="cuda:0", dtype=torch.int64)
    second = torch.randint(0, 1 << 20, (1 << 26,), device="cuda:1", dtype=torch.int64)
    while True:
        first = (first * 3 + second.to("cuda:0")) % 1000003
        second = (second * 5 + first.to("cuda:1")) % 1000003
        yield [int(first.sum()), int(second.sum())]


def ddp():
    """Two processes, a GPU each, that train one model by NCCL; the first one writes."""
    import subprocess

    import torch
    from torch import distributed

    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        if os.path.exists(FILE + ".store"):
            os.unlink(FILE + ".store")
        environment = {**os.environ, "RANK": "1"}
        with open(FILE + ".rank1", "w") as said:  # why it ended, if it did
            subprocess.Popen([sys.executable, __file__, "ddp", FILE, str(STEPS)], env=environment, stderr=said)
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", init_method=f"file://{FILE}.store", rank=rank, world_size=2)
    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2048, 2048).cuda(), device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(8 + rank)
    while True:
        batch = torch.randn(64, 2048, device="cuda")
        loss = ((model(batch) - batch) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        distributed.all_reduce(total)
        yield total.item().hex()


def shared():
    """A tensor on the GPU that a second process imports, by torch.multiprocessing: CUDA IPC."""
    import torch
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue, back = context.Queue(), context.Queue()
    child = context.Process(target=importer, args=(queue, back), daemon=True)
    child.start()
    data = torch.arange(1 << 20, device="cuda")
    queue.put(data)
    while True:
        data += 1
        torch.cuda.synchronize()
        queue.put(None)
        yield back.get(timeout=60)


def importer(queue, back):
    data = queue.get()
    while True:
        queue.get()
        back.put(int(data.sum()))


def endless():
    """Work on the GPU that does not end for a minute."""
    import torch

    torch.cuda.init()
    yield 1
    while True:
        torch.cuda._sleep(int(120e9))
        torch.cuda.synchronize()
        yield 2


def managed():
    import cupy as cp

    cp.cuda.set_allocator(cp.cuda.malloc_managed)
    yield from cupy()


if __name__ == "__main__":
    for number, value in zip(range(STEPS), globals()[MODE](), strict=False):
        if os.environ.get("RANK", "0") == "0":
            with open(FILE, "a") as stream:
                stream.write(f"{number} {value}\n")
        time.sleep(PAUSE)
