"""What all optimizers share: groups and entries, checks, states, rounding, workspaces."""
