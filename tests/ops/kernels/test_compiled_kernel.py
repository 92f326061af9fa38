"""What Triton makes of the kernels for a GPU of the Hopper generation; it needs none to compile for it."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not there")

# In a process of its own, where kernels are compiled and not interpreted: every launch ends before the GPU would begin.
COMPILE = """
import json, re
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from detkit.ops.kernels import decode, select

class Hopper:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

triton.runtime.driver.set_active(Hopper())
run, launches = JITFunction.run, []

def compile_only(kernel, *args, warmup, **options):
    made = run(kernel, *args, warmup=True, **options)
    fused = len(re.findall(r"\\bfma\\.", made.asm["ptx"]))
    launches.append((kernel.fn.__name__, fused, len(made.asm["cubin"]), made.hash))

JITFunction.run = compile_only
count = torch.tensor([5, 9])
for labels in (torch.zeros(2, 100, dtype=torch.long), None):
    select.greedy_nms(torch.rand(2, 100, 4), labels, count, 0.5, 10)
maps = [torch.zeros(2, 255, side, side, dtype=torch.bfloat16) for side in (19, 38, 76)]
decode.yolo_candidates(maps, [torch.ones(3, 2)] * 3, (608, 608), 0.25, None, False)
maps = [torch.zeros(2, 125, 13, 13).contiguous(memory_format=torch.channels_last)]
decode.yolo_candidates(maps, [torch.ones(5, 2)], (416, 416), 0.25, None, True)
valid = torch.ones(2, 30, dtype=torch.bool)
heads = torch.zeros(2, 30, 91), torch.zeros(2, 30, 90, 4), torch.zeros(2, 30, 4), valid, torch.ones(2, 2)
decode.region_candidates(*heads, 0.05, (10, 10, 5, 5), 0.01)
maps = [torch.zeros(2, 12, 38, 38, dtype=torch.bfloat16), torch.zeros(2, 12, 19, 19)]
best = [(torch.zeros(2, n), torch.zeros(2, n, dtype=torch.long)) for n in (1000, 361)]
grids = [(torch.ones(3, 2), 38, 38, (16, 16)), (torch.ones(3, 2), 19, 19, (32, 32))]
decode.proposal_candidates(maps, best, grids, torch.ones(2, 2), 0.001)
for n in (15, 16, 17):
    select.greedy_nms(torch.rand(2, n, 4), torch.zeros(2, n, dtype=torch.long), count, 0.5, n)
print(json.dumps(launches))
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_without_fused_multiply_add() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    launches = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, *_ in launches] == [
        "_suppress", "_compact", "_suppress", "_compact", "_yolo", "_yolo", "_yolo", "_yolo", "_regions", "_regions",
        "_proposals", *["_suppress", "_compact"] * 3,
    ]  # fmt: skip
    assert all(fused == 0 and size > 0 for _, fused, size, _ in launches)
    # Code is made anew for no other number of candidates.
    assert {(name, code) for name, *_, code in launches[-6:]} == {(name, code) for name, *_, code in launches[:2]}
