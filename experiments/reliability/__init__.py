"""What training survives: kills, damaged files, a full disk, other clocks and hosts, bad samples.

`run` is the training that all of it is done to, `trials` how its processes are started, killed and
compared; `kills`, `damage`, `full_disk`, `elsewhere` and `bad_sample` are one part of the table
each.
"""
