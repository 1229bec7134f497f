"""How long a checkpoint stops the training loop: a save that waits beside one that does not.

    python -m experiments.checkpoint_stall [--megabytes 200] [--rounds 7]

After every save the state is donated to a step, as in training, and the step is timed as well:
what the save puts off until then would show there. Then the disk is left to finish.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import jax
import numpy as np

from deqjax.training import Checkpoints


def measure(megabytes: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds, (rounds, 3), of every kind of save: in the save, in the step after it, until all
    is on the disk."""
    keys = jax.random.split(jax.random.key(0), 20)
    size = megabytes * 2**20 // 4 // len(keys)
    state = {f"layer {i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}
    step = jax.jit(lambda state: jax.tree.map(lambda x: 0.999 * x, state), donate_argnums=0)
    state = jax.block_until_ready(step(state))
    taken: dict[str, list[tuple[float, ...]]] = {"synchronous": [], "asynchronous": []}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        for round_ in range(rounds + 1):
            order = list(taken) if round_ % 2 == 0 else list(taken)[::-1]
            for k, name in enumerate(order):
                began = time.perf_counter()
                checkpoints.save(2 * round_ + k, state, wait=name == "synchronous")
                saved = time.perf_counter()
                state = jax.block_until_ready(step(state))
                stepped = time.perf_counter()
                checkpoints.wait()
                done = time.perf_counter()
                if round_:  # the first warms the process up
                    taken[name].append((saved - began, stepped - saved, done - began))
    return {name: np.array(rows) for name, rows in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    taken = measure(options.megabytes, options.rounds)
    print(f"{options.megabytes} MB, {jax.default_backend()}, medians of {options.rounds} rounds")
    for name, rows in taken.items():
        save, step, all_ = np.median(rows, axis=0)
        print(
            f"{name:13} save {save:.3f} s, next step {step:.3f} s, on the disk after {all_:.3f} s"
        )


if __name__ == "__main__":
    main()
