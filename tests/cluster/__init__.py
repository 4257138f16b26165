"""A real Slurm of a few nodes on this one machine, each node in namespaces of its own; `python -m tests.cluster`."""
