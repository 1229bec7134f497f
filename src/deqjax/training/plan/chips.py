"""What chips can do, as their makers publish it."""

from __future__ import annotations

from dataclasses import dataclass

GB, TB, GIB = 1e9, 1e12, 2**30
TERA = 1e12


@dataclass(frozen=True)
class Chip:
    """One chip. Rates are peaks that no program reaches.

    Attributes:
        name: as a topology names it.
        memory: bytes of main memory that a program can have.
        bandwidth: of that memory, bytes a second.
        flops: of matrix products, by the dtype of the operands, operations a second. A TPU
            multiplies float32 in one bfloat16 pass unless a precision is asked for, a GPU in TF32.
        link: bytes a second that it can send to other chips, over all links together.
        source: where these are published.
    """

    name: str
    memory: float
    bandwidth: float | None
    flops: dict[str, float]
    link: float | None
    source: str


def _tpu(name, memory, bandwidth, bf16, link, page) -> Chip:
    flops = dict(bfloat16=bf16 * TERA, float32=bf16 * TERA)
    return Chip(name, memory, bandwidth, flops, link, f"https://cloud.google.com/tpu/docs/{page}")


# Memory of TPUs is what libtpu 0.0.42 says that a program can have (v5e: "exceeds available HBM
# (15.75G)"; published: 16 GB). The pages give the links' bandwidth in both directions together
# (v5e: 400 GB/s), or of one direction in bits (v5p: 4800 Gbps): `link` is of one, in bytes.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v5e", 15.75 * GIB, 819 * GB, 197, 200 * GB, "v5e"),
        _tpu("v5p", 95.74 * GIB, 2765 * GB, 459, 600 * GB, "v5p"),
        _tpu("v6e", 31.25 * GIB, 1600 * GB, 918, 400 * GB, "v6e"),
        Chip(
            "h100",  # SXM; without sparsity
            80 * GB,
            3.35 * TB,
            dict(bfloat16=989 * TERA, float32=494.5 * TERA),
            450 * GB,
            "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
        ),
        Chip("cpu", float("inf"), None, {}, None, "this machine: nothing is known of it"),
    )
}

TPUS = ("v5e", "v5p", "v6e")

# Products go to cuBLAS: the sizes of Triton's tiles are found by trying them out on a GPU.
GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}
# What XLA must know of a GPU to compile for one that is not there (its `GpuTargetConfigProto`).
GPUS = {
    "h100": """
        gpu_device_info {
          cuda_compute_capability { major: 9 }
          core_count: 132  fpus_per_core: 128  threads_per_warp: 32
          threads_per_block_limit: 1024  threads_per_core_limit: 2048
          thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          registers_per_core_limit: 65536  registers_per_block_limit: 65536
          shared_memory_per_core: 233472  shared_memory_per_block: 49152
          shared_memory_per_block_optin: 232448  l2_cache_size: 52428800
          clock_rate_ghz: 1.98  memory_bandwidth: 3350000000000  device_memory_size: 80000000000
        }
        platform_name: "CUDA"
        dnn_version_info { major: 9  minor: 8 }
        device_description_str: "NVIDIA H100 80GB HBM3"
    """,
}
