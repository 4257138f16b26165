"""Large-batch scaling studies: a grid of cells over nodes, batches and recipes, its plan, its runs and its report."""
