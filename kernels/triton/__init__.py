"""GPU kernels in Triton. A module of this package imports triton, which `mmsada_kernels` itself never does."""
