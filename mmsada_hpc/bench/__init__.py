"""`mmsada bench ...`: what things cost, against the limit and against the plain alternative, measured in one run."""
