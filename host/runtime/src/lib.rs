//! Loads, limits and schedules plugins; parameters, data, runs, registry. Knows no terminal.
