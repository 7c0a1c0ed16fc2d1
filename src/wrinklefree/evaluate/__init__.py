"""What every model of a run is worth: likelihood, ternary statistics, samples, tables, plots."""
