"""Pages and figures made from a run's files."""
