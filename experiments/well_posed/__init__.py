"""Well-posedness and universality, measured."""
