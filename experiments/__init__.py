"""Experiments on top of `deqjax.training`, one short file each: `python -m experiments.NAME`."""
