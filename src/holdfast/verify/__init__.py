"""Trust: what is compared with what, and who is believed; every verdict is a value and a check that could not run is not a pass."""
