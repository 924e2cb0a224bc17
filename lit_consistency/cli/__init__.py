"""The command line: one file a command. No other room owns one."""
