"""Your first DEQ: see `__main__` and docs/first_deq.md."""
