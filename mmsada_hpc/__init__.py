"""mmsada-hpc: multi-node training of MM-SADA and its baselines."""

__version__ = "0.1.0"
