"""Many runs: planned, started as processes of the command line, and read from what they left on disk."""
