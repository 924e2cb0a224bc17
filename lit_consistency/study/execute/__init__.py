"""How a run is started: as a process of the command line."""
