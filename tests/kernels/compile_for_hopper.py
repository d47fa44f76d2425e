"""Compiles the RMSNorm kernels to Hopper machine code, without a GPU, and prints what each one uses as JSON.

Run by test_rmsnorm_compiled.py in a process of its own, as the tests around it hold Triton in its interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from bodyplan.kernels.rmsnorm import triton as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WIDTHS = [(64, "bf16"), (100, "fp32"), (1024, "bf16"), (4096, "bf16"), (8192, "fp16")]
FLOAT32 = ("rstd_ptr", "dweight_ptr", "weight_ptr")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def kind(name: str, constants: dict, element: str) -> str:
    if name in constants:
        return "constexpr"
    if name.endswith("_ptr"):
        return "*fp32" if name in FLOAT32 else f"*{element}"
    return "i32"


def usage(kernel, constants: dict, element: str, warps: int) -> dict:
    names = kernel.arg_names
    # What a launch finds out about real tensors; without it the register counts are too pessimistic.
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n.endswith(("_ptr", "_stride"))}
    signature = {name: kind(name, constants, element) for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK")}
    return {"kernel": kernel.__name__, "shared_bytes": built.metadata.shared, **numbers}


def main() -> None:
    facts = []
    for width, element in WIDTHS:
        config = kernels.tile(width)
        warps = config.pop("num_warps")
        common = {"WIDTH": width, "ACC": tl.float32, **config}
        for fused in (False, True):
            forward = {"EPS": 1e-6, "HAS_RESIDUAL": fused, **common}
            backward = {"HAS_DTOTAL": fused, **common}
            for kernel, constants in ((kernels.forward_kernel, forward), (kernels.backward_kernel, backward)):
                facts.append({"width": width, "fused": fused, **usage(kernel, constants, element, warps)})
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
