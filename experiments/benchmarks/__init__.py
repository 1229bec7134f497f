"""What deqjax costs, beside its peers in one run: `python -m experiments.benchmarks`."""
