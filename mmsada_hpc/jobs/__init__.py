"""What people ask of their runs ten times a day: status, logs, cancel. Needs no torch."""
