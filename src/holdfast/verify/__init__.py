"""Trust: what is compared with what, and who is believed. A check that could not run is not a pass."""
