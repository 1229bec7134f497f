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


def _gpu(name, memory, bandwidth, *, bf16, tf32, link, page) -> Chip:
    flops = dict(bfloat16=bf16 * TERA, float32=tf32 * TERA)
    return Chip(name, memory * GB, bandwidth * TB, flops, link * GB, page)


_NVIDIA = "https://www.nvidia.com/en-us/data-center"

# Memory of TPUs is what libtpu 0.0.42 says that a program can have (v5e: "exceeds available HBM
# (15.75G)"; published: 16 GB). The pages give the links' bandwidth in both directions together
# (v5e: 400 GB/s), or of one direction in bits (v5p: 4800 Gbps): `link` is of one, in bytes.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v5e", 15.75 * GIB, 819 * GB, 197, 200 * GB, "v5e"),
        _tpu("v5p", 95.74 * GIB, 2765 * GB, 459, 600 * GB, "v5p"),
        _tpu("v6e", 31.25 * GIB, 1600 * GB, 918, 400 * GB, "v6e"),
        # The SXM forms, without sparsity; a link's two directions are published together.
        _gpu("a100", 80, 2.039, bf16=312, tf32=156, link=300, page=f"{_NVIDIA}/a100/"),
        _gpu("h100", 80, 3.35, bf16=989, tf32=494.5, link=450, page=f"{_NVIDIA}/h100/"),
        _gpu("h200", 141, 4.8, bf16=989, tf32=494.5, link=450, page=f"{_NVIDIA}/h200/"),
        # Systems of eight, divided by eight: products by the page of HGX, memory by that of DGX.
        _gpu(
            *("b200", 180, 8.0),
            **dict(bf16=2250, tf32=1125, link=900),
            page=f"{_NVIDIA}/hgx/, {_NVIDIA}/dgx-b200/",
        ),
        Chip("cpu", float("inf"), None, {}, None, "this machine: nothing is known of it"),
    )
}

TPUS = ("v5e", "v5p", "v6e")

# Products go to cuBLAS: the sizes of Triton's tiles are found by trying them out on a GPU.
GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}


def _target(
    capability: int, cores: int, per_core: int, shared: int, l2: int, clock: float, chip: Chip
) -> str:
    """What XLA must know of a GPU to compile for one that is not there (`GpuTargetConfigProto`).

    Args:
        capability: the major compute capability.
        cores: streaming multiprocessors.
        per_core: float32 units of each.
        shared: KiB of shared memory of each.
        l2: MiB of the second cache.
        clock: GHz at most.
    """
    return f"""
        gpu_device_info {{
          cuda_compute_capability {{ major: {capability} }}
          core_count: {cores}  fpus_per_core: {per_core}  threads_per_warp: 32
          threads_per_block_limit: 1024  threads_per_core_limit: 2048
          thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          registers_per_core_limit: 65536  registers_per_block_limit: 65536
          shared_memory_per_core: {1024 * shared}  shared_memory_per_block: 49152
          shared_memory_per_block_optin: {1024 * (shared - 1)}  l2_cache_size: {l2 * 2**20}
          clock_rate_ghz: {clock}  memory_bandwidth: {chip.bandwidth:.0f}
          device_memory_size: {chip.memory:.0f}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9  minor: 8 }}
        device_description_str: "NVIDIA {chip.name.upper()}"
    """


# Sizes by compute capability are those of the CUDA C++ Programming Guide, "Compute Capabilities".
GPUS = {
    name: _target(*sizes, CHIPS[name])
    for name, sizes in {
        "a100": (8, 108, 64, 164, 40, 1.41),
        "h100": (9, 132, 128, 228, 50, 1.98),
        "h200": (9, 132, 128, 228, 50, 1.98),
        "b200": (10, 148, 128, 228, 126, 1.965),
    }.items()
}
