"""From a config, or a grid of them, to queued jobs: parse, compose, submit, resume."""
