"""Is this machine, or every node of an allocation, fit to train on? `mmsada doctor`."""
