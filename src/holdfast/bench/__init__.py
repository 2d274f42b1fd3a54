"""The experiments that measure what Holdfast promises: grids of small seeded runs, one tidy table and one figure each."""
