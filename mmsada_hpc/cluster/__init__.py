"""Where a process runs: its rank, its host, its cores, and the profiles of clusters."""
