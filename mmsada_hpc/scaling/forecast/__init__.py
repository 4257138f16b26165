"""What a training step takes on nodes one does not have: parts that each fit measured rows or public figures."""
