"""Experiments on top of `deqjax.training`: one short file each, run as `python -m experiments.NAME`."""
