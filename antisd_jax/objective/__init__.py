"""The mathematics of the method: pure functions of arrays and numbers. No I/O, no configuration."""
